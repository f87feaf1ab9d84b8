/* The loop of the net engine. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include "pykvm_net_engine.h"

enum { TAG_CONTROL, TAG_RX_KICK, TAG_TX_KICK, TAG_PORT };

/* Edges: each write to an eventfd wakes, and nobody has to read it. */
static int watch(struct pykvm_net *e, int fd, uint32_t tag)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u32 = tag};
    return epoll_ctl(e->epoll, EPOLL_CTL_ADD, fd, &event);
}

struct pykvm_net *pykvm_net_new(const struct pykvm_net_config *config)
{
    struct pykvm_net *e = calloc(1, sizeof *e);
    if (!e)
        return NULL;
    e->c = *config;
    e->filter.promisc = 1;
    e->want = 2048;
    pthread_mutex_init(&e->filter_lock, NULL);
    e->epoll = epoll_create1(EPOLL_CLOEXEC);
    e->control = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (e->epoll < 0 || e->control < 0 || watch(e, e->control, TAG_CONTROL) ||
        watch(e, e->c.rx_kick, TAG_RX_KICK) || watch(e, e->c.tx_kick, TAG_TX_KICK)) {
        pykvm_net_free(e);
        return NULL;
    }
    return e;
}

void pykvm_net_free(struct pykvm_net *e)
{
    if (e->epoll >= 0)
        close(e->epoll);
    if (e->control >= 0)
        close(e->control);
    pthread_mutex_destroy(&e->filter_lock);
    free(e);
}

void pykvm_net_set_filter(struct pykvm_net *e, const struct pykvm_net_filter *filter)
{
    pthread_mutex_lock(&e->filter_lock);
    e->filter = *filter;
    if (e->filter.unicast > 64)
        e->filter.unicast = 64;
    if (e->filter.multicast > 64 - e->filter.unicast)
        e->filter.multicast = 64 - e->filter.unicast;
    pthread_mutex_unlock(&e->filter_lock);
}

void pykvm_net_stop(struct pykvm_net *e)
{
    uint64_t one = 1;
    atomic_store(&e->stopping, 1);
    while (write(e->control, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

const char *pykvm_net_why(const struct pykvm_net *e)
{
    return e->why ? e->why : "";
}

int net_gone(int error)
{
    return error == EPIPE || error == ECONNRESET || error == ENOTCONN || error == EBADF ||
           error == EBADFD || error == ENODEV;
}

/* ---- buffers ----------------------------------------------------------------------------------- */

uint32_t net_slice(const struct iovec *iov, uint32_t count, uint64_t skip, uint64_t most,
                   struct iovec *to, uint32_t room)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < count && most && n < room; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        to[n].iov_base = (uint8_t *)iov[i].iov_base + skip;
        to[n].iov_len = iov[i].iov_len - skip;
        if (to[n].iov_len > most)
            to[n].iov_len = most;
        most -= to[n++].iov_len;
        skip = 0;
    }
    return n;
}

uint64_t net_copy_out(const struct iovec *iov, uint32_t count, uint8_t *to, uint64_t most)
{
    uint64_t done = 0;
    for (uint32_t i = 0; i < count && done < most; i++) {
        uint64_t part = iov[i].iov_len < most - done ? iov[i].iov_len : most - done;
        memcpy(to + done, iov[i].iov_base, part);
        done += part;
    }
    return done;
}

/* A pcapng Enhanced Packet Block; see pykvm/devices/net/pcap.py. One write, so blocks stay whole. */
void net_capture(struct pykvm_net *e, const struct iovec *iov, uint32_t count, uint32_t direction)
{
    struct iovec all[64];
    struct timespec t;
    uint64_t size = 0, most = PYKVM_NET_FRAME;
    uint32_t n = net_slice(iov, count, 0, most, all + 1, 60);
    for (uint32_t i = 1; i <= n; i++)
        size += all[i].iov_len;
    clock_gettime(CLOCK_REALTIME, &t);
    uint64_t ns = (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
    uint32_t padding = -size & 3, total = 28 + size + padding + 16;
    uint32_t head[7] = {6, total, 0, ns >> 32, (uint32_t)ns, size, size};
    uint8_t tail[3 + 16] = {0};
    uint32_t end[4] = {2 | 4 << 16, direction, 0, total};
    memcpy(tail + padding, end, sizeof end);
    all[0] = (struct iovec){head, sizeof head};
    all[n + 1] = (struct iovec){tail, padding + sizeof end};
    if (writev(e->c.pcap_fd, all, n + 2) < 0 && errno != EINTR)
        e->c.pcap_fd = -1; /* the disk is full: the network goes on */
}

/* ---- chains ------------------------------------------------------------------------------------ */

/* What is held, to the front. */
static void compact(struct net_chains *s)
{
    uint32_t count = s->end - s->at;
    struct iovec *first = s->chain[s->at].iov;
    uint32_t gone = (uint32_t)(first - s->iov);
    memmove(s->iov, first, (s->used - gone) * sizeof *first);
    memmove(s->chain, s->chain + s->at, count * sizeof *s->chain);
    for (uint32_t i = 0; i < count; i++)
        s->chain[i].iov -= gone;
    s->used -= gone;
    s->at = 0;
    s->end = count;
}

int net_take(struct pykvm_vq *q, struct net_chains *s, int more)
{
    if (s->at == s->end)
        s->at = s->end = s->used = 0;
    else if (!more)
        return 1;
    else if (s->at && (s->end == NET_BATCH || NET_IOV - s->used < PYKVM_VQ_BUFFERS))
        compact(s);
    if (s->end == NET_BATCH || NET_IOV - s->used < PYKVM_VQ_BUFFERS)
        return 0;
    int got = pykvm_vq_pop_batch(q, s->chain + s->end, NET_BATCH - s->end, s->iov + s->used, NULL,
                                 NET_IOV - s->used, NULL);
    if (got <= 0)
        return got;
    for (int i = 0; i < got; i++, s->end++)
        s->used += s->chain[s->end].readable + s->chain[s->end].writable;
    return 1;
}

/* As if they had not been taken. */
void net_give_back(struct pykvm_vq *q, struct net_chains *s)
{
    while (s->end > s->at) {
        const struct pykvm_chain *c = &s->chain[--s->end];
        if (q->flags & PYKVM_VQ_PACKED) {
            if (q->next_avail < c->count) {
                q->next_avail += q->size;
                q->avail_wrap ^= 1;
            }
            q->next_avail -= c->count;
        } else {
            q->next_avail--;
        }
        if (q->flags & PYKVM_VQ_IN_ORDER)
            q->popped = q->popped ? q->popped - 1 : q->size - 1;
    }
    s->at = s->end = s->used = 0;
}

/* ---- the loop ---------------------------------------------------------------------------------- */

/* What to wait for on the port. An fd with nothing to wait for is left out: it may have hung up. */
static void aim(struct pykvm_net *e)
{
    uint32_t wanted = 0;
    if (e->c.fd < 0)
        return;
    if (!e->rx_ready && !e->rx_starved && !e->rx_until)
        wanted |= EPOLLIN;
    if (e->blocked_at && !e->writable)
        wanted |= EPOLLOUT;
    if (wanted == e->waiting_for)
        return;
    struct epoll_event event = {.events = wanted, .data.u32 = TAG_PORT};
    int how = !wanted ? EPOLL_CTL_DEL : e->waiting_for ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    epoll_ctl(e->epoll, how, e->c.fd, &event);
    e->waiting_for = wanted;
}

static int64_t earlier(int64_t wait, uint64_t until, uint64_t now)
{
    if (!until)
        return wait;
    int64_t left = until > now ? (int64_t)(until - now) : 0;
    return wait < 0 || left < wait ? left : wait;
}

/* Waits; what happened makes the two directions ready. */
static void sleep_until(struct pykvm_net *e, int poll)
{
    struct epoll_event event[4];
    int64_t wait = -1;
    wait = earlier(wait, e->rx_until, e->now);
    wait = earlier(wait, e->tx_until, e->now);
    if (e->blocked_at && e->c.stall_ns && e->now - e->blocked_at < e->c.stall_ns)
        wait = earlier(wait, e->blocked_at + e->c.stall_ns, e->now);
    if (wait > 0)
        wait = wait / 1000000 + 1; /* ms */
    int n = epoll_wait(e->epoll, event, 4, poll ? 0 : wait > 60000 ? 60000 : (int)wait);
    for (int i = 0; i < n; i++) {
        switch (event[i].data.u32) {
        case TAG_RX_KICK:
            e->rx_starved = 0;
            e->rx_ready = 1;
            break;
        case TAG_TX_KICK:
            e->tx_ready = 1;
            break;
        case TAG_PORT:
            if (event[i].events & ~(uint32_t)EPOLLOUT)
                e->rx_ready = 1;
            if (event[i].events & ~(uint32_t)EPOLLIN)
                e->writable = e->tx_ready = 1;
            break;
        }
    }
    e->now = pykvm_now();
    if (e->rx_until && e->now >= e->rx_until) {
        e->rx_until = 0;
        e->rx_ready = 1;
    }
    if (e->tx_until && e->now >= e->tx_until) {
        e->tx_until = 0;
        e->tx_ready = 1;
    }
    if (e->blocked_at && e->now - e->blocked_at >= e->c.stall_ns)
        e->tx_ready = 1;
}

/* Before sleeping: the driver shall kick. 1 if something came meanwhile, -1: broken. */
static int ask_for_kicks(struct pykvm_net *e)
{
    int more = 0, found;
    if (!e->tx_ready && !e->tx_until && e->tx.at == e->tx.end && !(e->blocked_at && !e->writable)) {
        if ((found = pykvm_vq_want_kicks(e->c.tx, 1)) < 0)
            return -PYKVM_NET_TX_BROKEN;
        if (found)
            e->tx_ready = more = 1;
    }
    if (e->rx_starved) {
        if ((found = pykvm_vq_want_kicks(e->c.rx, 1)) < 0)
            return -PYKVM_NET_RX_BROKEN;
        if (found) {
            e->rx_starved = 0;
            e->rx_ready = more = 1;
        }
    }
    return more;
}

static int turn(struct pykvm_net *e)
{
    e->now = pykvm_now();
    if (e->tx_ready) {
        pykvm_vq_want_kicks(e->c.tx, 0);
        int found = net_transmit(e);
        if (found >= NET_LOST)
            return found == NET_LOST ? PYKVM_NET_LOST : PYKVM_NET_TX_BROKEN;
        e->tx_ready = found == NET_MORE;
        if (found == NET_IDLE && !e->rx_starved)
            e->rx_ready = 1; /* an answer is often there at once */
    }
    if (e->rx_ready && !e->rx_until && e->c.fd >= 0) {
        pykvm_vq_want_kicks(e->c.rx, 0);
        int found = net_receive(e);
        if (found >= NET_LOST)
            return found == NET_LOST ? PYKVM_NET_LOST : PYKVM_NET_RX_BROKEN;
        e->rx_ready = found == NET_MORE;
    }
    if (e->c.fd < 0)
        e->rx_ready = 0;
    int more = e->tx_ready || e->rx_ready;
    if (!more) {
        more = ask_for_kicks(e);
        if (more < 0)
            return -more;
    }
    aim(e);
    sleep_until(e, more);
    return 0;
}

int pykvm_net_run(struct pykvm_net *e)
{
    sigset_t all;
    int result = PYKVM_NET_STOPPED;
    sigfillset(&all); /* signals are for others, and a lost peer shows as EPIPE */
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    e->rx_ready = e->tx_ready = 1;
    if (e->c.stream && e->c.stream->out_at < e->c.stream->out_end)
        e->blocked_at = pykvm_now();
    while (!atomic_load(&e->stopping) && !result)
        result = turn(e);
    e->now = pykvm_now();
    net_receive_stop(e);
    net_transmit_stop(e);
    if (result != PYKVM_NET_RX_BROKEN && result != PYKVM_NET_TX_BROKEN) {
        pykvm_vq_want_kicks(e->c.rx, 1);
        pykvm_vq_want_kicks(e->c.tx, 1);
    }
    return result;
}
