/* The blk engine as other threads see it. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include "pykvm_blk_engine.h"

static void wake(struct pykvm_blk *b)
{
    uint64_t one = 1;
    while (write(b->control, &one, sizeof one) < 0 && errno == EINTR)
        ;
}

struct pykvm_blk *pykvm_blk_new(const struct pykvm_blk_config *config)
{
    struct pykvm_blk *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    b->c = *config;
    b->uring = -1;
    b->ring.fd = -1;
    b->quiet = 1;
    b->queue = calloc(config->queues, sizeof *b->queue);
    size_t bytes = (size_t)config->requests * sizeof *b->requests;
    b->requests = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    b->control = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    b->done = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_init(&b->mutex, NULL);
    pthread_cond_init(&b->changed, NULL);
    blk_pool_start(b);
    if (!b->queue || b->requests == MAP_FAILED || b->control < 0 || b->done < 0) {
        pykvm_blk_free(b);
        return NULL;
    }
    for (uint32_t i = config->requests; i--;) {
        struct blk_request *r = &b->requests[i];
        r->chain.iov = r->vector;
        r->next = b->free;
        b->free = r;
    }
    return b;
}

void pykvm_blk_free(struct pykvm_blk *b)
{
    blk_pool_end(b);
    if (b->ring.fd >= 0)
        pykvm_uring_close(&b->ring);
    if (b->requests != MAP_FAILED)
        munmap(b->requests, (size_t)b->c.requests * sizeof *b->requests);
    if (b->control >= 0)
        close(b->control);
    if (b->done >= 0)
        close(b->done);
    pthread_cond_destroy(&b->changed);
    pthread_mutex_destroy(&b->mutex);
    free(b->queue);
    free(b);
}

void pykvm_blk_set_queue(struct pykvm_blk *b, uint32_t index, struct pykvm_vq *vq, int kick,
                         const struct pykvm_vq_signal *signal)
{
    struct blk_queue *q = &b->queue[index];
    q->vq = vq;
    q->kick = kick;
    q->look = vq != NULL;
    q->pushed = 0;
    if (signal)
        q->signal = *signal;
}

void pykvm_blk_set_size(struct pykvm_blk *b, uint64_t size, uint64_t bytes)
{
    b->c.size = size;
    b->c.bytes = bytes;
}

void pykvm_blk_set_write_through(struct pykvm_blk *b, int on)
{
    atomic_store(&b->write_through, on);
}

void pykvm_blk_take_event(struct pykvm_blk *b, struct pykvm_blk_event *event)
{
    *event = b->event;
    b->event.kind = 0;
}

void pykvm_blk_mend(struct pykvm_blk *b)
{
    b->broken = 0;
}

void pykvm_blk_pause(struct pykvm_blk *b)
{
    pthread_mutex_lock(&b->mutex);
    b->pause++;
    atomic_store(&b->attention, 1);
    if (!b->quiet)
        wake(b);
    while (!b->quiet)
        pthread_cond_wait(&b->changed, &b->mutex);
    pthread_mutex_unlock(&b->mutex);
}

void pykvm_blk_resume(struct pykvm_blk *b)
{
    pthread_mutex_lock(&b->mutex);
    b->pause--;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->mutex);
}

void pykvm_blk_stop(struct pykvm_blk *b)
{
    pthread_mutex_lock(&b->mutex);
    b->stop = 1;
    atomic_store(&b->attention, 1);
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->mutex);
    wake(b);
}

void pykvm_blk_wake(struct pykvm_blk *b)
{
    wake(b);
}

int pykvm_blk_uses_uring(struct pykvm_blk *b)
{
    return b->uring;
}

uint32_t pykvm_blk_in_flight(struct pykvm_blk *b)
{
    return b->in_flight;
}
