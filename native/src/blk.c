/* The loop of the blk engine. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>
#include "pykvm_blk_engine.h"

/* user_data: a request's address, or one of these tags in the low bits. */
enum { TAG_KICK = 1, TAG_CONTROL = 2, TAG_DONE = 3, TAG_MASK = 7 };

/* ---- requests ------------------------------------------------------------------------------- */

static void ended(struct pykvm_blk *b, struct blk_request *r)
{
    blk_unbounce(b, r);
    if (r->error)
        blk_fail(b, r, r->error);
    b->in_flight--;
    blk_finish(b, r, r->error ? S_IOERR : S_OK);
}

/* Whether a request has its tokens; else `*wait` becomes no longer than it has to wait. */
static int may_go(struct pykvm_blk *b, struct blk_request *r, int64_t *wait)
{
    if (!b->c.limit || r->type == T_FLUSH)
        return 1;
    uint64_t bytes = r->type == T_IN || r->type == T_OUT ? r->asked : 0;
    uint64_t ns = pykvm_limit_take(b->c.limit, b->now, bytes);
    if (!ns)
        return 1;
    if (*wait < 0 || (int64_t)ns < *wait)
        *wait = ns;
    return 0;
}

static void hold(struct pykvm_blk *b, struct blk_request *r)
{
    r->queue->held = r;
    b->held++;
    b->alone_held += r->alone;
}

/* A request that has its tokens. It is held where it must be alone and is not. */
static void launch(struct pykvm_blk *b, struct blk_request *r)
{
    r->error = r->alone ? 0 : blk_prepare(b, r);
    if (r->alone && b->in_flight) {
        hold(b, r);
        return;
    }
    b->in_flight++;
    if (r->error || blk_submit(b, r))
        ended(b, r);
}

/* The request that a queue holds: 1 when it went. With `force` it does not wait for tokens. */
static int try_held(struct pykvm_blk *b, struct blk_queue *q, int64_t *wait, int force)
{
    struct blk_request *r = q->held;
    if (r->alone) { /* has its tokens */
        if (b->in_flight)
            return 0;
    } else if (force) {
        pykvm_limit_charge(b->c.limit, b->now, r->asked);
    } else if (!may_go(b, r, wait)) {
        return 0;
    }
    q->held = NULL;
    q->look = 1;
    b->held--;
    b->alone_held -= r->alone;
    launch(b, r);
    return !q->held;
}

void blk_broke(struct pykvm_blk *b, struct blk_queue *q)
{
    b->broken = 1;
    b->event = (struct pykvm_blk_event){
        .kind = PYKVM_BLK_BROKEN, .queue = q - b->queue, .rule = q->vq->error,
        .detail = {q->vq->detail[0], q->vq->detail[1], q->vq->detail[2]},
    };
    atomic_store(&b->attention, 1);
}

/* Takes what a queue has, up to a turn's worth. */
static void serve(struct pykvm_blk *b, struct blk_queue *q, int64_t *wait)
{
    if (q->held && !try_held(b, q, wait, 0))
        return;
    for (int n = 0; n < BLK_TURN && b->free && !b->broken && !b->alone_held; n++) {
        struct blk_request *r = b->free;
        int got = pykvm_vq_pop(q->vq, &r->chain);
        if (got <= 0) {
            q->look = 0;
            if (got < 0)
                blk_broke(b, q);
            return;
        }
        if (!r->chain.writable) {
            q->vq->error = 0;
            blk_broke(b, q);
            return;
        }
        b->free = r->next;
        r->queue = q;
        r->start = b->now;
        if (!blk_parse(b, r)) {
            blk_finish(b, r, *r->status);
            continue;
        }
        if (!may_go(b, r, wait)) {
            hold(b, r);
            return;
        }
        launch(b, r);
    }
}

static void interrupt(struct pykvm_blk *b)
{
    for (uint32_t i = 0; i < b->c.queues; i++) {
        struct blk_queue *q = &b->queue[i];
        if (!q->pushed)
            continue;
        q->pushed = 0;
        if (pykvm_vq_should_notify(q->vq))
            pykvm_vq_signal(&q->signal);
    }
}

/* Before sleeping: the driver shall kick again. 1 if something came meanwhile. */
static int ask_for_kicks(struct pykvm_blk *b)
{
    int more = 0;
    for (uint32_t i = 0; i < b->c.queues; i++) {
        struct blk_queue *q = &b->queue[i];
        if (q->vq && !q->held && !q->look && !b->broken && pykvm_vq_want_kicks(q->vq, 1))
            q->look = more = 1;
    }
    return more;
}

static void pool_results(struct pykvm_blk *b)
{
    struct blk_request *r = blk_pool_take(b);
    while (r) {
        struct blk_request *next = r->next;
        ended(b, r);
        r = next;
    }
}

/* ---- waiting -------------------------------------------------------------------------------- */

static void poll_on(struct pykvm_blk *b, int fd, uint64_t tag, uint8_t *armed)
{
    if (*armed)
        return;
    struct io_uring_sqe *s = pykvm_uring_sqe(&b->ring);
    if (!s)
        return;
    s->opcode = IORING_OP_POLL_ADD;
    s->fd = fd;
    s->poll32_events = POLLIN;
    s->len = IORING_POLL_ADD_MULTI; /* each write(2) to the eventfd completes; nobody reads it */
    s->user_data = tag;
    *armed = 1;
}

static int uring_start(struct pykvm_blk *b)
{
    /* The file is not registered: a ring is taken apart some time after close(2), and would hold the
     * file, and with it the lock on the disk, until then. */
    unsigned entries = b->c.requests + b->c.queues + 2;
    if (b->c.flags & PYKVM_BLK_THREADS || pykvm_uring_open(&b->ring, entries) < 0)
        return 0;
    return 1;
}

static void uring_arm(struct pykvm_blk *b)
{
    poll_on(b, b->control, TAG_CONTROL, &b->control_armed);
    poll_on(b, b->done, TAG_DONE, &b->done_armed);
    for (uint32_t i = 0; i < b->c.queues; i++)
        if (b->queue[i].vq)
            poll_on(b, b->queue[i].kick, (uint64_t)i << 3 | TAG_KICK, &b->queue[i].armed);
}

static void uring_event(struct pykvm_blk *b, uint64_t data, int32_t result, uint32_t flags)
{
    int stays = flags & IORING_CQE_F_MORE;
    switch (data & TAG_MASK) {
    case TAG_KICK: {
        struct blk_queue *q = &b->queue[data >> 3];
        q->armed = stays != 0;
        q->look = q->vq != NULL;
        return;
    }
    case TAG_CONTROL:
        b->control_armed = stays != 0;
        return;
    case TAG_DONE:
        b->done_armed = stays != 0;
        pool_results(b);
        return;
    }
    struct blk_request *r = (struct blk_request *)(uintptr_t)data;
    if (r->type == T_FLUSH) {
        r->error = result < 0 ? -result : 0;
        ended(b, r);
    } else if (blk_moved(r, result)) {
        ended(b, r);
    } else if (result < 0) {
        blk_pool_give(b, r); /* the kernel will not wait for this one; a thread can */
    } else if (blk_submit(b, r)) {
        ended(b, r);
    }
}

/* What has completed: whether there was anything. */
static int uring_reap(struct pykvm_blk *b)
{
    struct io_uring_cqe *c = pykvm_uring_peek(&b->ring);
    if (!c)
        return 0;
    b->now = pykvm_now();
    do {
        uint64_t data = c->user_data;
        int32_t result = c->res;
        uint32_t flags = c->flags;
        pykvm_uring_seen(&b->ring);
        uring_event(b, data, result, flags);
    } while ((c = pykvm_uring_peek(&b->ring)));
    return 1;
}

static void uring_wait(struct pykvm_blk *b, int sleep, int64_t timeout)
{
    uring_arm(b);
    if (pykvm_uring_unsubmitted(&b->ring)) {
        pykvm_uring_enter(&b->ring, 0, -1);
        if (uring_reap(b))
            return; /* data in the page cache: the driver need not kick meanwhile */
    }
    if (!sleep || ask_for_kicks(b)) {
        uring_reap(b);
        return;
    }
    pykvm_uring_enter(&b->ring, 1, timeout);
    b->now = pykvm_now();
    uring_reap(b);
}

static void poll_wait(struct pykvm_blk *b, int sleep, int64_t timeout)
{
    struct pollfd fds[2 + b->c.queues];
    uint32_t n = 2;
    if (ask_for_kicks(b) || !sleep)
        timeout = 0;
    fds[0] = (struct pollfd){b->control, POLLIN};
    fds[1] = (struct pollfd){b->done, POLLIN};
    for (uint32_t i = 0; i < b->c.queues; i++)
        fds[n++] = (struct pollfd){b->queue[i].vq ? b->queue[i].kick : -1, POLLIN};
    struct timespec t = {timeout / 1000000000, timeout % 1000000000};
    int got = ppoll(fds, n, timeout < 0 ? NULL : &t, NULL);
    b->now = pykvm_now();
    if (got <= 0)
        return;
    uint64_t count;
    if (fds[0].revents && read(b->control, &count, sizeof count) < 0)
        (void)count; /* looked at anyway */
    if (fds[1].revents)
        pool_results(b);
    for (uint32_t i = 0; i < b->c.queues; i++)
        if (fds[2 + i].revents) {
            /* The eventfd may block, but is readable and read by nobody else. */
            if (read(fds[2 + i].fd, &count, sizeof count) > 0)
                b->queue[i].look = 1;
        }
}

/* ---- the loop ------------------------------------------------------------------------------- */

/* Nothing new; what is held goes. Returns when all in flight has ended. */
static void drain(struct pykvm_blk *b)
{
    while (b->in_flight || b->held) {
        for (uint32_t i = 0; i < b->c.queues; i++)
            if (b->queue[i].held)
                try_held(b, &b->queue[i], NULL, 1);
        if (!b->in_flight)
            continue;
        if (b->uring) {
            uring_arm(b);
            pykvm_uring_enter(&b->ring, 1, -1);
            uring_reap(b);
        } else {
            struct pollfd fd = {b->done, POLLIN};
            ppoll(&fd, 1, NULL, NULL);
            b->now = pykvm_now();
            pool_results(b);
        }
    }
    interrupt(b);
}

/* Pause, stop, something to tell: -1 to go on, or what pykvm_blk_run() shall return. */
static int attend(struct pykvm_blk *b)
{
    int result = -1;
    drain(b);
    pthread_mutex_lock(&b->mutex);
    atomic_store(&b->attention, 0);
    b->quiet = 1;
    pthread_cond_broadcast(&b->changed);
    while (result < 0) {
        if (b->stop)
            result = PYKVM_BLK_STOPPED;
        else if (b->event.kind)
            result = PYKVM_BLK_EVENT; /* quiet until it is run again */
        else if (b->pause || b->broken)
            pthread_cond_wait(&b->changed, &b->mutex);
        else
            break;
    }
    if (result < 0)
        b->quiet = 0;
    pthread_mutex_unlock(&b->mutex);
    for (uint32_t i = 0; i < b->c.queues; i++)
        b->queue[i].look = b->queue[i].vq != NULL;
    return result;
}

int pykvm_blk_run(struct pykvm_blk *b)
{
    if (b->uring < 0)
        b->uring = uring_start(b);
    b->now = pykvm_now();
    atomic_store(&b->attention, 1); /* quiet until now */
    for (;;) {
        if (atomic_load(&b->attention)) {
            int result = attend(b);
            if (result >= 0) {
                if (result == PYKVM_BLK_STOPPED && b->uring > 0)
                    pykvm_uring_close(&b->ring); /* by the thread that opened it */
                return result;
            }
            b->now = pykvm_now();
        }
        int64_t timeout = -1;
        int more = 0;
        for (uint32_t i = 0; i < b->c.queues; i++) {
            struct blk_queue *q = &b->queue[i];
            if (!q->vq || !(q->look || q->held))
                continue;
            pykvm_vq_want_kicks(q->vq, 0);
            serve(b, q, &timeout);
            more |= q->look && !q->held && b->free && !b->alone_held;
        }
        interrupt(b);
        if (atomic_load(&b->attention))
            continue;
        if (b->uring)
            uring_wait(b, !more, timeout);
        else
            poll_wait(b, !more, timeout);
        interrupt(b);
    }
}
