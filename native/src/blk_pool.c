/* Threads for what io_uring does not do here, and for all of it where there is no io_uring. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <unistd.h>
#include "pykvm_blk_engine.h"

static void *worker(void *argument)
{
    struct pykvm_blk *b = argument;
    pthread_mutex_lock(&b->pool_mutex);
    for (;;) {
        while (!b->jobs && !b->pool_stop) {
            b->idle_threads++;
            pthread_cond_wait(&b->pool_work, &b->pool_mutex);
            b->idle_threads--;
        }
        struct blk_request *r = b->jobs;
        if (!r)
            break;
        b->jobs = r->next;
        if (!b->jobs)
            b->jobs_end = &b->jobs;
        pthread_mutex_unlock(&b->pool_mutex);
        blk_perform(b, r);
        pthread_mutex_lock(&b->pool_mutex);
        int first = !b->finished;
        r->next = b->finished;
        b->finished = r;
        if (first) { /* the engine takes all that there are then */
            uint64_t one = 1;
            while (write(b->done, &one, sizeof one) < 0 && errno == EINTR)
                ;
        }
    }
    pthread_mutex_unlock(&b->pool_mutex);
    return NULL;
}

void blk_pool_start(struct pykvm_blk *b)
{
    pthread_mutex_init(&b->pool_mutex, NULL);
    pthread_cond_init(&b->pool_work, NULL);
    b->jobs_end = &b->jobs;
}

/* One more thread: 0, or an errno. The host's signals are for Python's threads. */
static int grow(struct pykvm_blk *b)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&b->threads[b->thread_count], NULL, worker, b);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        b->thread_count++;
    return error;
}

void blk_pool_give(struct pykvm_blk *b, struct blk_request *r)
{
    pthread_mutex_lock(&b->pool_mutex);
    r->next = NULL;
    *b->jobs_end = r;
    b->jobs_end = &r->next;
    if (b->idle_threads)
        pthread_cond_signal(&b->pool_work);
    else if (b->thread_count < BLK_THREADS && grow(b) && !b->thread_count) {
        /* No thread can be made at all: it is done here. */
        b->jobs = NULL;
        b->jobs_end = &b->jobs;
        pthread_mutex_unlock(&b->pool_mutex);
        blk_perform(b, r);
        pthread_mutex_lock(&b->pool_mutex);
        r->next = b->finished;
        b->finished = r;
        uint64_t one = 1;
        while (write(b->done, &one, sizeof one) < 0 && errno == EINTR)
            ;
    }
    pthread_mutex_unlock(&b->pool_mutex);
}

struct blk_request *blk_pool_take(struct pykvm_blk *b)
{
    uint64_t count;
    while (read(b->done, &count, sizeof count) < 0 && errno == EINTR)
        ;
    pthread_mutex_lock(&b->pool_mutex);
    struct blk_request *list = b->finished;
    b->finished = NULL;
    pthread_mutex_unlock(&b->pool_mutex);
    return list;
}

void blk_pool_end(struct pykvm_blk *b)
{
    pthread_mutex_lock(&b->pool_mutex);
    b->pool_stop = 1;
    pthread_cond_broadcast(&b->pool_work);
    pthread_mutex_unlock(&b->pool_mutex);
    for (int i = 0; i < b->thread_count; i++)
        pthread_join(b->threads[i], NULL);
    pthread_cond_destroy(&b->pool_work);
    pthread_mutex_destroy(&b->pool_mutex);
}
