/* Rate limits and statistics of devices, shared by the engines (blk, net) and by Python devices. A
 * struct may be used by several threads at once, and read or changed while engines run. */
#ifndef PYKVM_LIMITS_H
#define PYKVM_LIMITS_H
#include <stdint.h>

/* A token bucket: `rate` tokens a second (0: no limit), at most `burst` of them saved up. */
struct pykvm_bucket {
    uint64_t rate, burst;
    uint64_t full_at;    /* CLOCK_MONOTONIC in ns when the bucket will be full again */
};

struct pykvm_limit {
    uint32_t lock;
    struct pykvm_bucket ops, bytes;
    uint64_t held;       /* requests that had to wait */
};

enum { PYKVM_STAT_SLOTS = 40 };      /* the last one takes everything from 2^39 ns (9 minutes) on */

struct pykvm_stat {                  /* one kind of request */
    uint64_t requests, bytes, errors;
    uint64_t total_ns;
    uint64_t latency[PYKVM_STAT_SLOTS];  /* [n]: requests that took 2^n to 2^(n+1)-1 ns */
};

uint64_t pykvm_now(void);            /* CLOCK_MONOTONIC in ns */

/* New rates; what was saved up before stays, up to the new burst. A burst of 0 is a tenth of a
 * second's worth, at least 1. */
void pykvm_limit_set(struct pykvm_limit *l, uint64_t ops, uint64_t bytes, uint64_t burst_ops,
                     uint64_t burst_bytes);
/* May a request of `bytes` go at `now`? 0: yes, and its tokens are taken; else ns to wait before
 * asking again. A request goes as soon as both buckets hold anything, and may leave them in debt, so
 * one larger than the burst is not held for ever. */
uint64_t pykvm_limit_take(struct pykvm_limit *l, uint64_t now, uint64_t bytes);
/* Takes the tokens without asking. */
void pykvm_limit_charge(struct pykvm_limit *l, uint64_t now, uint64_t bytes);

/* A request of `bytes` ended after `ns`. */
void pykvm_stat_add(struct pykvm_stat *s, uint64_t bytes, uint64_t ns, int failed);
#endif
