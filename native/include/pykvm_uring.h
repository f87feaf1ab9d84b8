/* An io_uring by the bare system calls (io_uring(7)); one thread owns it. */
#ifndef PYKVM_URING_H
#define PYKVM_URING_H
#include <linux/io_uring.h>
#include <stddef.h>
#include <stdint.h>

struct pykvm_uring {
    int fd;
    void *rings, *sqes_map;
    size_t rings_bytes, sqes_bytes;
    unsigned *sq_head, *sq_tail, sq_mask, sq_entries, *sq_flags;
    unsigned *cq_head, *cq_tail, cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    unsigned tail, submitted;        /* entries filled in, and handed to the kernel */
};

/* 0, or -errno: also where the kernel has an io_uring without what the engines need. To be called
 * by the thread that uses it. */
int pykvm_uring_open(struct pykvm_uring *u, unsigned entries);
void pykvm_uring_close(struct pykvm_uring *u);
/* A cleared entry. When all are taken, what there is goes to the kernel first; NULL if it does not. */
struct io_uring_sqe *pykvm_uring_sqe(struct pykvm_uring *u);
/* Hands over what was filled in; waits for `wait` completions, at most `timeout` ns (negative: for
 * ever). 0, or -errno (-ETIME, -EINTR and -EBUSY are no failures). */
int pykvm_uring_enter(struct pykvm_uring *u, unsigned wait, int64_t timeout);

static inline unsigned pykvm_uring_unsubmitted(const struct pykvm_uring *u)
{
    return u->tail - u->submitted;
}

/* The next completion or NULL; pykvm_uring_seen() after it was looked at. */
static inline struct io_uring_cqe *pykvm_uring_peek(struct pykvm_uring *u)
{
    unsigned head = *u->cq_head;
    if (head == __atomic_load_n(u->cq_tail, __ATOMIC_ACQUIRE))
        return NULL;
    return &u->cqes[head & u->cq_mask];
}

static inline void pykvm_uring_seen(struct pykvm_uring *u)
{
    __atomic_store_n(u->cq_head, *u->cq_head + 1, __ATOMIC_RELEASE);
}
#endif
