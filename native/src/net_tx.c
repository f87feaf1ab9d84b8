/* The net engine: frames from the driver to the port. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "pykvm_net_engine.h"

enum { NEEDS_CSUM = 1, GSO_NONE = 0, FRAME_MIN = 14, OUTBOUND = 2 };
enum { SENT, DROPPED, FULL, GONE };

static uint64_t length_of(const struct pykvm_net *e, const struct pykvm_chain *c)
{
    return c->readable_bytes > e->c.header ? c->readable_bytes - e->c.header : 0;
}

/* The chain at tx.at is done. */
static void done(struct pykvm_net *e, int failed)
{
    const struct pykvm_chain *c = &e->tx.chain[e->tx.at++];
    e->tx_done[e->tx_pushed++] =
        (struct pykvm_vq_used){.id = c->id, .count = c->count, .position = c->position};
    pykvm_stat_add(&e->c.stats[1], length_of(e, c), pykvm_now() - e->now, failed);
    e->paid = 0;
}

static int flush_done(struct pykvm_net *e)
{
    uint32_t count = e->tx_pushed;
    e->tx_pushed = 0;
    if (!count)
        return 0;
    if (pykvm_vq_push_batch(e->c.tx, e->tx_done, count))
        return -1;
    int wanted = pykvm_vq_should_notify(e->c.tx);
    if (wanted > 0)
        pykvm_vq_signal(&e->c.tx_signal);
    return wanted < 0 ? -1 : 0;
}

/* Why a frame goes nowhere: its counter, or NULL. */
static uint64_t *reason(struct pykvm_net *e, const struct pykvm_chain *c)
{
    uint64_t length = length_of(e, c);
    if (c->writable || length < FRAME_MIN || length > PYKVM_NET_FRAME)
        return &e->c.drops->bad;
    if (e->c.fd < 0)
        return &e->c.drops->no_link;
    if (e->blocked_at)
        return &e->c.drops->stalled;
    if (e->c.port_header != e->c.header) {
        uint8_t head[PYKVM_NET_HEADER];
        net_copy_out(c->iov, c->readable, head, e->c.header);
        if (head[0] & NEEDS_CSUM || head[1] != GSO_NONE)
            return &e->c.drops->bad;
    }
    return NULL;
}

static void capture(struct pykvm_net *e, const struct pykvm_chain *c)
{
    struct iovec frame[64];
    if (e->c.pcap_fd >= 0)
        net_capture(e, frame, net_slice(c->iov, c->readable, e->c.header, PYKVM_NET_FRAME, frame, 64),
                    OUTBOUND);
}

/* ---- packets ----------------------------------------------------------------------------------- */

static int send_packet(struct pykvm_net *e, const struct pykvm_chain *c)
{
    const struct iovec *iov = c->iov;
    uint32_t count = c->readable;
    ssize_t n;
    if (e->c.port_header != e->c.header) {
        count = net_slice(iov, count, e->c.header, PYKVM_NET_FRAME, e->tiov, NET_IOV_MAX);
        iov = e->tiov;
    }
    while ((n = writev(e->c.fd, iov, (int)count)) < 0 && errno == EINTR)
        ;
    if (n >= 0) {
        capture(e, c);
        return SENT;
    }
    if (errno == EAGAIN || errno == ENOBUFS)
        return FULL;
    if (net_gone(errno)) {
        e->why = strerror(errno);
        return GONE;
    }
    net_count(&e->c.drops->refused);
    return DROPPED;
}

/* ---- streams ----------------------------------------------------------------------------------- */

static int64_t put(struct pykvm_net *e, struct iovec *iov, uint32_t count)
{
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = count};
    ssize_t n;
    while ((n = sendmsg(e->c.fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT)) < 0 && errno == EINTR)
        ;
    if (n >= 0)
        return n;
    if (errno == EAGAIN || errno == ENOBUFS)
        return 0;
    e->why = strerror(errno);
    return -1;
}

/* What is left of a frame. */
static int push_rest(struct pykvm_net *e)
{
    struct pykvm_net_stream *s = e->c.stream;
    while (s && s->out_at < s->out_end) {
        struct iovec rest = {s->out + s->out_at, s->out_end - s->out_at};
        int64_t n = put(e, &rest, 1);
        if (n <= 0)
            return n ? GONE : FULL;
        s->out_at += (uint32_t)n;
    }
    return SENT;
}

/* The chains from tx.at on, as many as go into one call and `count` allows. */
static int send_stream(struct pykvm_net *e, uint32_t count)
{
    struct pykvm_net_stream *s = e->c.stream;
    uint32_t used = 0, frames = 0;
    uint64_t total = 0;
    while (frames < count) {
        const struct pykvm_chain *c = &e->tx.chain[e->tx.at + frames];
        uint64_t length = length_of(e, c);
        if (c->readable + 1 > NET_IOV_MAX - used) {
            if (frames)
                break;
            uint64_t size = net_copy_out(c->iov, c->readable, e->bounce, sizeof e->bounce);
            e->tiov[1] = (struct iovec){e->bounce + e->c.header, size - e->c.header};
            used = 2;
        } else {
            used += 1 + net_slice(c->iov, c->readable, e->c.header, length, e->tiov + used + 1,
                                  NET_IOV_MAX - used - 1);
        }
        uint32_t big = htonl((uint32_t)length);
        memcpy(e->lengths[frames], &big, 4);
        uint32_t place = used;
        for (uint64_t left = length; left;) /* back to where this frame's entries begin */
            left -= e->tiov[--place].iov_len;
        e->tiov[place - 1] = (struct iovec){e->lengths[frames], 4};
        total += 4 + length;
        frames++;
    }
    int64_t n = put(e, e->tiov, used);
    if (n <= 0)
        return n ? GONE : FULL;
    for (uint64_t sent = (uint64_t)n; frames && sent; frames--) {
        const struct pykvm_chain *c = &e->tx.chain[e->tx.at];
        uint64_t size = 4 + length_of(e, c);
        capture(e, c);
        if (sent < size) { /* the driver may have the rest of its memory back */
            uint32_t big = htonl((uint32_t)(size - 4));
            uint8_t *to = s->out;
            if (sent < 4) {
                memcpy(to, (uint8_t *)&big + sent, 4 - sent);
                to += 4 - sent;
            }
            uint64_t skip = sent > 4 ? sent - 4 : 0;
            uint32_t k = net_slice(c->iov, c->readable, e->c.header + skip, size - 4 - skip,
                                   e->tiov, NET_IOV_MAX);
            to += net_copy_out(e->tiov, k, to, size - 4 - skip);
            s->out_at = 0;
            s->out_end = (uint32_t)(to - s->out);
            sent = size;
        }
        sent -= size;
        done(e, 0);
    }
    return s->out_at < s->out_end ? FULL : SENT;
}

/* ---- both -------------------------------------------------------------------------------------- */

/* Whether it has its tokens; else tx_until is when to ask again. */
static int may_go(struct pykvm_net *e, const struct pykvm_chain *c)
{
    if (e->paid || !net_limited(e->c.limit_out))
        return 1;
    uint64_t wait = pykvm_limit_take(e->c.limit_out, e->now, length_of(e, c));
    if (wait)
        e->tx_until = e->now + wait;
    else
        e->paid = 1;
    return !wait;
}

static void full(struct pykvm_net *e)
{
    if (!e->blocked_at)
        e->blocked_at = e->now;
    e->writable = 0;
}

/* Frames that may go now, one system call's worth. NET_IDLE: go on. */
static int some(struct pykvm_net *e)
{
    const struct pykvm_chain *c = &e->tx.chain[e->tx.at];
    if (!may_go(e, c))
        return NET_BLOCKED;
    uint64_t *why = reason(e, c);
    if (why) {
        net_count(why);
        done(e, 1);
        return NET_IDLE;
    }
    int how;
    if (e->c.flags & PYKVM_NET_STREAM) {
        uint32_t count = 1;
        if (!net_limited(e->c.limit_out))
            while (e->tx.at + count < e->tx.end && !reason(e, c + count))
                count++;
        how = send_stream(e, count);
    } else {
        how = send_packet(e, c);
        if (how == SENT || how == DROPPED)
            done(e, how == DROPPED);
    }
    if (how == FULL)
        full(e);
    if (how == GONE)
        return NET_LOST;
    return how == FULL ? NET_BLOCKED : NET_IDLE;
}

int net_transmit(struct pykvm_net *e)
{
    int result = NET_MORE;
    if (e->tx_until)
        return NET_BLOCKED;
    if (e->blocked_at && e->writable) {
        int how = push_rest(e);
        if (how == GONE)
            return NET_LOST;
        if (how == SENT)
            e->blocked_at = 0;
        e->writable = 0;
    }
    if (e->blocked_at && e->now - e->blocked_at < e->c.stall_ns)
        return NET_BLOCKED;
    while (result == NET_MORE && e->tx_pushed < NET_BATCH) {
        int got = net_take(e->c.tx, &e->tx, 0);
        if (got < 0) {
            uint32_t error = e->c.tx->error;
            flush_done(e);
            e->c.tx->error = error;
            return NET_BROKEN;
        }
        if (!got)
            result = NET_IDLE;
        else if ((got = some(e)) != NET_IDLE)
            result = got;
    }
    if (flush_done(e))
        return NET_BROKEN;
    return result;
}

void net_transmit_stop(struct pykvm_net *e)
{
    net_give_back(e->c.tx, &e->tx);
    flush_done(e);
}
