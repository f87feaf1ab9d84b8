/* The net engine: frames from the port to the driver. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include "pykvm_net_engine.h"

enum { FRAME_MIN = 14, LOOK = 18, INBOUND = 1, NUM_BUFFERS = 10 };

/* ---- filters ----------------------------------------------------------------------------------- */

static int listed(const uint8_t *table, uint32_t count, const uint8_t *mac)
{
    for (uint32_t i = 0; i < count; i++)
        if (!memcmp(table + 6 * i, mac, 6))
            return 1;
    return 0;
}

/* Whether the driver wants a frame that begins with these LOOK bytes. */
static int wanted(struct pykvm_net *e, const uint8_t *at, uint64_t length)
{
    const struct pykvm_net_filter *f = &e->filter;
    if (f->promisc)
        return 1;
    if (f->vlans_on && length >= 16 && at[12] == 0x81 && at[13] == 0) {
        uint32_t number = (at[14] << 8 | at[15]) & 0xFFF;
        if (!(f->vlans[number >> 3] >> (number & 7) & 1))
            return 0;
    }
    if (at[0] & 1) {
        if (!memcmp(at, "\xff\xff\xff\xff\xff\xff", 6))
            return !f->nobcast;
        return !f->nomulti &&
               (f->allmulti || listed(f->table + 6 * f->unicast, f->multicast, at));
    }
    return !f->nouni &&
           (f->alluni || !memcmp(at, f->mac, 6) || listed(f->table, f->unicast, at));
}

/* Counts those that are not for the driver. */
static int accept_frame(struct pykvm_net *e, const uint8_t *at, int64_t length)
{
    if (length < FRAME_MIN) {
        net_count(&e->c.drops->bad);
        return 0;
    }
    if (wanted(e, at, (uint64_t)length))
        return 1;
    net_count(&e->c.drops->filtered);
    return 0;
}

/* ---- buffers ----------------------------------------------------------------------------------- */

static int flush_done(struct pykvm_net *e)
{
    uint32_t count = e->rx_pushed;
    e->rx_pushed = 0;
    if (!count)
        return 0;
    if (pykvm_vq_push_batch(e->c.rx, e->rx_done, count))
        return -1;
    int notify = pykvm_vq_should_notify(e->c.rx);
    if (notify > 0)
        pykvm_vq_signal(&e->c.rx_signal);
    return notify < 0 ? -1 : 0;
}

/* A receive buffer has to be writable, and the first of a frame takes the header in any case. */
static int usable(struct pykvm_net *e, const struct pykvm_chain *c)
{
    if (!c->readable && c->writable_bytes >= e->c.header)
        return 1;
    e->c.rx->error = 0;
    e->why = "a receive buffer without room for a header";
    return 0;
}

/* Chains from rx.at on with room for `need` bytes: their number; 0: not enough; -1: broken. */
static int gather(struct pykvm_net *e, uint64_t need, uint64_t *room)
{
    uint32_t n = 0;
    *room = 0;
    for (;;) {
        if (e->rx.at + n == e->rx.end) {
            uint32_t before = e->rx.end - e->rx.at;
            int got = net_take(e->c.rx, &e->rx, 1);
            if (got < 0)
                return -1;
            if (!got || e->rx.end - e->rx.at == before)
                return 0;
        }
        const struct pykvm_chain *c = &e->rx.chain[e->rx.at + n];
        if (!usable(e, c))
            return -1;
        *room += c->writable_bytes;
        n++;
        if (*room >= need)
            return (int)n;
        if (!(e->c.flags & PYKVM_NET_MERGEABLE) || n == NET_BATCH)
            return 0;
    }
}

/* Writes at an offset into the first chain; a header may lie across several entries. */
static void poke(struct pykvm_net *e, uint64_t offset, const void *data, uint64_t size)
{
    const struct pykvm_chain *c = &e->rx.chain[e->rx.at];
    struct iovec part[PYKVM_NET_HEADER];
    uint32_t n = net_slice(c->iov, c->writable, offset, size, part, PYKVM_NET_HEADER);
    const uint8_t *from = data;
    for (uint32_t i = 0; i < n; from += part[i++].iov_len)
        memcpy(part[i].iov_base, from, part[i].iov_len);
}

/* `total` bytes, the header included, are in the chains from rx.at on. */
static void finish(struct pykvm_net *e, uint64_t total)
{
    uint32_t first = e->rx.at, n = 0;
    uint64_t left = total;
    do
        left -= left < e->rx.chain[first + n].writable_bytes ? left
                                                             : e->rx.chain[first + n].writable_bytes;
    while (++n, left);
    if (e->c.header == PYKVM_NET_HEADER) {
        uint16_t buffers = (uint16_t)n;
        poke(e, NUM_BUFFERS, &buffers, 2);
    }
    if (e->c.pcap_fd >= 0) {
        struct iovec frame[64];
        uint32_t k = 0;
        uint64_t skip = e->c.header, most = total - skip;
        for (uint32_t i = 0; i < n && most; i++) {
            const struct pykvm_chain *c = &e->rx.chain[first + i];
            uint32_t got = net_slice(c->iov, c->writable, skip, most, frame + k, 64 - k);
            for (uint32_t j = k; j < k + got; j++)
                most -= frame[j].iov_len;
            k += got;
            skip = 0;
        }
        net_capture(e, frame, k, INBOUND);
    }
    left = total;
    for (uint32_t i = 0; i < n; i++) {
        const struct pykvm_chain *c = &e->rx.chain[e->rx.at++];
        uint32_t part = left < c->writable_bytes ? (uint32_t)left : (uint32_t)c->writable_bytes;
        e->rx_done[e->rx_pushed++] = (struct pykvm_vq_used){
            .written = part, .id = c->id, .count = c->count, .position = c->position};
        left -= part;
    }
    pykvm_stat_add(&e->c.stats[0], total - e->c.header, pykvm_now() - e->now, 0);
}

/* A frame (with the port's header) from memory. IDLE: it is gone; BLOCKED: it has to wait. */
static int deliver(struct pykvm_net *e, const uint8_t *from, uint64_t length)
{
    uint64_t frame = length - e->c.port_header, room;
    if (!e->charged && net_limited(e->c.limit_in)) {
        uint64_t wait = pykvm_limit_take(e->c.limit_in, e->now, frame);
        if (wait) {
            e->rx_until = e->now + wait;
            return NET_BLOCKED;
        }
    }
    e->charged = 1;
    int n = gather(e, frame + e->c.header, &room);
    if (n < 0)
        return NET_BROKEN;
    if (!n) {
        uint32_t have = e->rx.end - e->rx.at;
        e->rx_starved = 1;
        if (!have)
            return NET_BLOCKED;
        if ((e->tried && have > e->tried) || have == NET_BATCH || (have && !(e->c.flags & PYKVM_NET_MERGEABLE))) {
            net_count(&e->c.drops->no_room);
            e->charged = e->tried = e->rx_starved = 0;
            return NET_IDLE;
        }
        e->tried = (uint8_t)have; /* a kick without new buffers changes nothing */
        return NET_BLOCKED;
    }
    uint8_t head[PYKVM_NET_HEADER] = {0};
    if (e->c.port_header)
        memcpy(head, from, e->c.port_header);
    poke(e, 0, head, e->c.header);
    from += e->c.port_header;
    uint64_t skip = e->c.header, left = frame;
    for (int i = 0; left; i++) {
        const struct pykvm_chain *c = &e->rx.chain[e->rx.at + i];
        for (uint32_t j = 0; j < c->writable && left; j++) {
            const struct iovec *v = &c->iov[j];
            if (skip >= v->iov_len) {
                skip -= v->iov_len;
                continue;
            }
            uint64_t part = v->iov_len - skip < left ? v->iov_len - skip : left;
            memcpy((uint8_t *)v->iov_base + skip, from, part);
            from += part;
            left -= part;
            skip = 0;
        }
    }
    finish(e, frame + e->c.header);
    e->charged = e->tried = 0;
    return NET_IDLE;
}

/* ---- packets ----------------------------------------------------------------------------------- */

/* One read, straight into the driver's buffers; what they do not hold goes behind, into `wait`. */
static int packet(struct pykvm_net *e)
{
    uint64_t room, gap = e->c.header - e->c.port_header;
    int n = gather(e, e->want, &room);
    if (n < 0)
        return NET_BROKEN;
    if (!n) {
        n = (int)(e->rx.end - e->rx.at);
        if (n && !(e->c.flags & PYKVM_NET_MERGEABLE))
            n = 1;
    }
    if (!n) {
        e->rx_starved = 1;
        return NET_BLOCKED;
    }
    uint64_t direct = 0; /* bytes of the frame that go into the buffers */
    uint32_t k = 0;
    for (int i = 0; i < n; i++) {
        const struct pykvm_chain *c = &e->rx.chain[e->rx.at + i];
        uint32_t got = net_slice(c->iov, c->writable, i ? 0 : gap, NET_TOTAL - direct, e->riov + k,
                                 NET_IOV_MAX - 1 - k);
        for (uint32_t j = k; j < k + got; j++)
            direct += e->riov[j].iov_len;
        k += got;
    }
    e->riov[k] = (struct iovec){e->wait + direct, sizeof e->wait - direct};
    ssize_t size;
    while ((size = readv(e->c.fd, e->riov, (int)k + 1)) < 0 && errno == EINTR)
        ;
    if ((size < 0 && net_gone(errno)) || (!size && e->c.flags & PYKVM_NET_ENDS)) {
        e->why = size ? strerror(errno) : "the peer closed";
        return NET_LOST;
    }
    if (size <= 0)
        return NET_IDLE;
    uint8_t look[PYKVM_NET_HEADER + LOOK] = {0};
    net_copy_out(e->riov, k + 1, look, (uint64_t)size < sizeof look ? (uint64_t)size : sizeof look);
    if (!accept_frame(e, look + e->c.port_header, size - (int64_t)e->c.port_header))
        return NET_MORE;
    if ((uint64_t)size <= direct && !net_limited(e->c.limit_in)) {
        static const uint8_t zeros[PYKVM_NET_HEADER];
        if (gap)
            poke(e, 0, zeros, gap);
        finish(e, (uint64_t)size + gap);
        return NET_MORE;
    }
    if ((uint64_t)size > e->want)
        e->want = (uint64_t)size + gap < NET_TOTAL ? (uint32_t)(size + gap) : NET_TOTAL;
    net_copy_out(e->riov, k, e->wait, (uint64_t)size < direct ? (uint64_t)size : direct);
    e->wait_len = (uint32_t)size;
    return NET_MORE;
}

/* ---- streams ----------------------------------------------------------------------------------- */

static int fill(struct pykvm_net *e)
{
    struct pykvm_net_stream *s = e->c.stream;
    if (s->in_at == s->in_end) {
        s->in_at = s->in_end = 0;
    } else if (s->in_at && PYKVM_NET_IN - s->in_end < PYKVM_NET_OUT) {
        memmove(s->in, s->in + s->in_at, s->in_end - s->in_at);
        s->in_end -= s->in_at;
        s->in_at = 0;
    }
    ssize_t n;
    while ((n = read(e->c.fd, s->in + s->in_end, PYKVM_NET_IN - s->in_end)) < 0 && errno == EINTR)
        ;
    if (n < 0 && errno == EAGAIN)
        return NET_IDLE;
    if (n <= 0) {
        e->why = n ? strerror(errno) : "the peer closed";
        return NET_LOST;
    }
    s->in_end += (uint32_t)n;
    return NET_MORE;
}

static int stream(struct pykvm_net *e)
{
    struct pykvm_net_stream *s = e->c.stream;
    uint32_t have = s->in_end - s->in_at;
    const uint8_t *at = s->in + s->in_at;
    uint32_t length = have >= 4 ? (uint32_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3] : 0;
    if (have >= 4 && (!length || length > PYKVM_NET_FRAME)) {
        e->why = "the peer announced a frame of impossible length";
        return NET_LOST;
    }
    if (have < 4 || have - 4 < length) {
        int how = fill(e);
        return how;
    }
    if (!e->charged && !e->tried) { /* seen for the first time */
        uint8_t look[LOOK] = {0};
        memcpy(look, at + 4, length < LOOK ? length : LOOK);
        if (!accept_frame(e, look, length)) {
            s->in_at += 4 + length;
            return NET_MORE;
        }
    }
    int how = deliver(e, at + 4, length);
    if (how != NET_IDLE)
        return how;
    s->in_at += 4 + length;
    return NET_MORE;
}

/* ---- both -------------------------------------------------------------------------------------- */

int net_receive(struct pykvm_net *e)
{
    int result = NET_MORE;
    pthread_mutex_lock(&e->filter_lock);
    while (result == NET_MORE && e->rx_pushed < NET_BATCH) {
        if (e->wait_len) {
            result = deliver(e, e->wait, e->wait_len);
            if (result == NET_IDLE) {
                e->wait_len = 0;
                result = NET_MORE;
            }
        } else if (e->c.flags & PYKVM_NET_STREAM) {
            result = stream(e);
        } else {
            result = packet(e);
        }
    }
    pthread_mutex_unlock(&e->filter_lock);
    uint32_t error = e->c.rx->error;
    if (flush_done(e))
        return NET_BROKEN;
    if (result == NET_BROKEN)
        e->c.rx->error = error;
    return result;
}

void net_receive_stop(struct pykvm_net *e)
{
    net_give_back(e->c.rx, &e->rx);
    flush_done(e);
}
