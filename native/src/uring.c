#define _GNU_SOURCE
#include <errno.h>
#include <linux/time_types.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "pykvm_uring.h"

/* Newer than the oldest headers that this is built with. */
#ifndef IORING_SETUP_CLAMP
#define IORING_SETUP_CLAMP (1U << 4)
#endif
#ifndef IORING_FEAT_RSRC_TAGS
#define IORING_FEAT_RSRC_TAGS (1U << 10)
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

static int setup(unsigned entries, struct io_uring_params *p)
{
    /* Completions are run only when this thread asks for them: no interruptions, larger batches. */
    memset(p, 0, sizeof *p);
    p->flags = IORING_SETUP_CLAMP | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    int fd = syscall(__NR_io_uring_setup, entries, p);
    if (fd < 0 && errno == EINVAL) { /* before Linux 6.1 */
        memset(p, 0, sizeof *p);
        p->flags = IORING_SETUP_CLAMP;
        fd = syscall(__NR_io_uring_setup, entries, p);
    }
    return fd < 0 ? -errno : fd;
}

int pykvm_uring_open(struct pykvm_uring *u, unsigned entries)
{
    struct io_uring_params p;
    memset(u, 0, sizeof *u);
    u->fd = setup(entries, &p);
    if (u->fd < 0)
        return u->fd;
    const unsigned need = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG |
                          IORING_FEAT_SUBMIT_STABLE |
                          IORING_FEAT_RSRC_TAGS; /* Linux 5.13: polls that stay */
    if ((p.features & need) != need) {
        close(u->fd);
        u->fd = -1;
        return -ENOSYS;
    }
    size_t sq = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    size_t cq = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    u->rings_bytes = sq > cq ? sq : cq;
    u->sqes_bytes = p.sq_entries * sizeof(struct io_uring_sqe);
    u->rings = mmap(NULL, u->rings_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u->fd,
                    IORING_OFF_SQ_RING);
    u->sqes_map = mmap(NULL, u->sqes_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                       u->fd, IORING_OFF_SQES);
    if (u->rings == MAP_FAILED || u->sqes_map == MAP_FAILED) {
        int error = errno;
        pykvm_uring_close(u);
        return -error;
    }
    char *base = u->rings;
    u->sqes = u->sqes_map;
    u->sq_head = (unsigned *)(base + p.sq_off.head);
    u->sq_tail = (unsigned *)(base + p.sq_off.tail);
    u->sq_flags = (unsigned *)(base + p.sq_off.flags);
    u->sq_entries = p.sq_entries;
    u->sq_mask = p.sq_entries - 1;
    u->cq_head = (unsigned *)(base + p.cq_off.head);
    u->cq_tail = (unsigned *)(base + p.cq_off.tail);
    u->cq_mask = p.cq_entries - 1;
    u->cqes = (struct io_uring_cqe *)(base + p.cq_off.cqes);
    unsigned *array = (unsigned *)(base + p.sq_off.array);
    for (unsigned i = 0; i < p.sq_entries; i++)
        array[i] = i;
    return 0;
}

void pykvm_uring_close(struct pykvm_uring *u)
{
    if (u->rings && u->rings != MAP_FAILED)
        munmap(u->rings, u->rings_bytes);
    if (u->sqes_map && u->sqes_map != MAP_FAILED)
        munmap(u->sqes_map, u->sqes_bytes);
    if (u->fd >= 0)
        close(u->fd);
    memset(u, 0, sizeof *u);
    u->fd = -1;
}

struct io_uring_sqe *pykvm_uring_sqe(struct pykvm_uring *u)
{
    if (u->tail - __atomic_load_n(u->sq_head, __ATOMIC_ACQUIRE) == u->sq_entries) {
        pykvm_uring_enter(u, 0, -1);
        if (u->tail - __atomic_load_n(u->sq_head, __ATOMIC_ACQUIRE) == u->sq_entries)
            return NULL;
    }
    struct io_uring_sqe *s = &u->sqes[u->tail++ & u->sq_mask];
    memset(s, 0, sizeof *s);
    return s;
}

int pykvm_uring_enter(struct pykvm_uring *u, unsigned wait, int64_t timeout)
{
    struct __kernel_timespec t = {timeout / 1000000000, timeout % 1000000000};
    struct io_uring_getevents_arg arg = {.ts = timeout < 0 ? 0 : (uint64_t)(uintptr_t)&t};
    unsigned count = pykvm_uring_unsubmitted(u);
    __atomic_store_n(u->sq_tail, u->tail, __ATOMIC_RELEASE);
    long done = syscall(__NR_io_uring_enter, u->fd, count, wait,
                        IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg, sizeof arg);
    if (done < 0) {
        u->submitted = __atomic_load_n(u->sq_head, __ATOMIC_ACQUIRE);
        return -errno;
    }
    u->submitted += done;
    return 0;
}
