/* What the parts of the net engine share. */
#ifndef PYKVM_NET_ENGINE_H
#define PYKVM_NET_ENGINE_H
#include <pthread.h>
#include <stdatomic.h>
#include "pykvm_net.h"

enum {
    NET_BATCH = 64,                        /* frames a turn */
    NET_IOV = 4096,                        /* entries for the chains that are held */
    NET_IOV_MAX = 1024,                    /* of one system call */
    NET_TOTAL = PYKVM_NET_FRAME + PYKVM_NET_HEADER,
};
enum { NET_IDLE, NET_MORE, NET_BLOCKED, NET_LOST, NET_BROKEN };

/* Chains that were taken from a ring, first come first served. */
struct net_chains {
    struct pykvm_chain chain[NET_BATCH];
    struct iovec iov[NET_IOV];
    uint32_t at, end, used;                /* of chain; of iov */
};

struct pykvm_net {
    struct pykvm_net_config c;
    struct pykvm_net_filter filter;
    pthread_mutex_t filter_lock;
    int epoll, control;
    atomic_int stopping;
    const char *why;
    uint64_t now;
    /* for the driver */
    struct net_chains rx;
    struct pykvm_vq_used rx_done[2 * NET_BATCH];
    uint32_t rx_pushed, want;              /* bytes of buffers to have ready for a frame */
    uint64_t rx_until;                     /* waits for tokens until then; 0: does not */
    uint32_t wait_len;                     /* of the frame in `wait` */
    uint8_t charged, tried, rx_ready, rx_starved;
    uint8_t wait[NET_TOTAL + 8];
    struct iovec riov[NET_IOV_MAX];
    /* from the driver */
    struct net_chains tx;
    struct pykvm_vq_used tx_done[2 * NET_BATCH];
    uint32_t tx_pushed;
    uint64_t tx_until, blocked_at;         /* ns; 0: not */
    uint8_t paid, tx_ready, writable;
    struct iovec tiov[NET_IOV_MAX];
    uint8_t lengths[NET_BATCH][4];
    uint8_t bounce[NET_TOTAL];
    /* what epoll waits for on the port */
    uint32_t waiting_for;
    uint8_t watched;
};

int net_receive(struct pykvm_net *e);      /* IDLE: nothing there; BLOCKED: no buffers or tokens */
int net_transmit(struct pykvm_net *e);     /* BLOCKED: the port is full, or no tokens */
void net_receive_stop(struct pykvm_net *e);
void net_transmit_stop(struct pykvm_net *e);

static inline void net_count(uint64_t *counter)
{
    __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}
static inline int net_limited(const struct pykvm_limit *l)
{
    return l && (l->ops.rate || l->bytes.rate);
}
int net_gone(int error);                   /* whether an errno means that the peer is gone */
/* iov behind `skip` bytes into `to` (room for `room` entries), at most `most` bytes; the count. */
uint32_t net_slice(const struct iovec *iov, uint32_t count, uint64_t skip, uint64_t most,
                   struct iovec *to, uint32_t room);
uint64_t net_copy_out(const struct iovec *iov, uint32_t count, uint8_t *to, uint64_t most);
void net_capture(struct pykvm_net *e, const struct iovec *iov, uint32_t count, uint32_t direction);
/* Chains at e->rx/tx; takes more when it has none (or `more`). 1: there is one; 0; -1: broken. */
int net_take(struct pykvm_vq *q, struct net_chains *s, int more);
void net_give_back(struct pykvm_vq *q, struct net_chains *s);
#endif
