#define _GNU_SOURCE
#include <sched.h>
#include <time.h>
#include "pykvm_limits.h"

#define SECOND 1000000000ull
#define FOREVER (UINT64_MAX / 4)

uint64_t pykvm_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void enter(struct pykvm_limit *l)
{
    while (__atomic_exchange_n(&l->lock, 1, __ATOMIC_ACQUIRE))
        sched_yield(); /* held for some ten instructions */
}

static void leave(struct pykvm_limit *l)
{
    __atomic_store_n(&l->lock, 0, __ATOMIC_RELEASE);
}

/* How long `tokens` take to flow in. */
static uint64_t span(uint64_t tokens, uint64_t rate)
{
    unsigned __int128 ns = (unsigned __int128)tokens * SECOND / rate;
    return ns > FOREVER ? FOREVER : (uint64_t)ns;
}

/* The bucket holds nothing while the time to be full is as long as filling all of it takes. */
static uint64_t wait_of(const struct pykvm_bucket *b, uint64_t now)
{
    if (!b->rate || b->full_at <= now)
        return 0;
    uint64_t missing = b->full_at - now, whole = span(b->burst, b->rate);
    return missing < whole ? 0 : missing - whole + 1;
}

static void take(struct pykvm_bucket *b, uint64_t now, uint64_t tokens)
{
    if (!b->rate)
        return;
    uint64_t from = b->full_at > now ? b->full_at : now, cost = span(tokens, b->rate);
    b->full_at = from - now > FOREVER ? from : from + cost;
}

static void change(struct pykvm_bucket *b, uint64_t now, uint64_t rate, uint64_t burst)
{
    unsigned __int128 missing = 0; /* tokens */
    if (b->rate && b->full_at > now)
        missing = (unsigned __int128)(b->full_at - now) * b->rate / SECOND;
    if (rate && !burst)
        burst = rate / 10 ? rate / 10 : 1;
    /* A debt that was made at another rate is not carried on: it could take hours at a lower one. */
    if (missing > burst)
        missing = burst;
    b->rate = rate;
    b->burst = burst;
    b->full_at = rate ? now + span((uint64_t)missing, rate) : 0;
}

void pykvm_limit_set(struct pykvm_limit *l, uint64_t ops, uint64_t bytes, uint64_t burst_ops,
                     uint64_t burst_bytes)
{
    uint64_t now = pykvm_now();
    enter(l);
    change(&l->ops, now, ops, burst_ops);
    change(&l->bytes, now, bytes, burst_bytes);
    leave(l);
}

uint64_t pykvm_limit_take(struct pykvm_limit *l, uint64_t now, uint64_t bytes)
{
    if (!l->ops.rate && !l->bytes.rate)
        return 0;
    enter(l);
    uint64_t ops_wait = wait_of(&l->ops, now), wait = wait_of(&l->bytes, now);
    if (ops_wait > wait)
        wait = ops_wait;
    if (!wait) {
        take(&l->ops, now, 1);
        take(&l->bytes, now, bytes);
    } else {
        l->held++;
    }
    leave(l);
    return wait;
}

void pykvm_limit_charge(struct pykvm_limit *l, uint64_t now, uint64_t bytes)
{
    enter(l);
    take(&l->ops, now, 1);
    take(&l->bytes, now, bytes);
    leave(l);
}

void pykvm_stat_add(struct pykvm_stat *s, uint64_t bytes, uint64_t ns, int failed)
{
    int slot = 63 - __builtin_clzll(ns | 1);
    if (slot >= PYKVM_STAT_SLOTS)
        slot = PYKVM_STAT_SLOTS - 1;
    __atomic_fetch_add(&s->requests, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&s->bytes, bytes, __ATOMIC_RELAXED);
    __atomic_fetch_add(&s->total_ns, ns, __ATOMIC_RELAXED);
    __atomic_fetch_add(&s->latency[slot], 1, __ATOMIC_RELAXED);
    if (failed)
        __atomic_fetch_add(&s->errors, 1, __ATOMIC_RELAXED);
}
