/* What the parts of the blk engine share; for native/src/blk*.c only. */
#ifndef PYKVM_BLK_ENGINE_H
#define PYKVM_BLK_ENGINE_H
#include <pthread.h>
#include <stdatomic.h>
#include "pykvm_blk.h"
#include "pykvm_uring.h"

enum { T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13 };
enum { S_OK = 0, S_IOERR = 1, S_UNSUPP = 2 };
#define BLK_SECTOR 512
#define BLK_SEGMENTS 16
#define BLK_THREADS 8
#define BLK_BOUNCE (64u << 20)     /* bytes of bounce buffers at a time */
#define BLK_TURN 64                /* requests of one queue before the next has its turn */

struct blk_queue {
    struct pykvm_vq *vq;           /* NULL: not served */
    struct pykvm_vq_signal signal;
    int kick;
    uint8_t look;                  /* there may be something */
    uint8_t armed;                 /* its kick fd is being polled */
    uint8_t pushed;                /* since the driver was last interrupted */
    struct blk_request *held;      /* waits: for tokens, or to be alone */
};

struct blk_segment { uint64_t offset, length; uint32_t unmap; };

struct blk_request {
    struct pykvm_chain chain;
    struct blk_queue *queue;
    struct blk_request *next;
    uint32_t type, stat;
    uint8_t *status;               /* the last writable byte */
    uint64_t start;                /* ns */
    uint64_t offset, length;       /* in the file; bytes left to move */
    uint64_t asked;                /* bytes moved if all goes well */
    uint64_t zeros;                /* bytes to clear behind the end of the file (reads) */
    struct iovec *iov;             /* what is left */
    uint32_t count;
    uint8_t alone;                 /* nothing else may be in flight, and by plain_fd */
    uint8_t dsync;
    int error;
    void *bounce;
    struct iovec *data;            /* the guest's buffers, while `iov` is the bounce buffer */
    uint32_t data_count;
    struct iovec bounce_iov;
    struct blk_segment segment[BLK_SEGMENTS];
    uint32_t segments;
    struct iovec vector[PYKVM_VQ_BUFFERS];
};

struct pykvm_blk {
    struct pykvm_blk_config c;
    struct blk_queue *queue;
    struct blk_request *requests, *free;
    uint32_t in_flight;            /* taken and not given back, held ones not counted */
    uint32_t held, alone_held;
    uint64_t bounced;
    atomic_int write_through;
    struct pykvm_uring ring;
    int uring;                     /* -1: not tried yet */
    int control, done;             /* eventfds: pause, stop, wake; the pool has finished something */
    uint8_t control_armed, done_armed;
    uint64_t slow_until;           /* writes to the page cache block at the moment */
    uint64_t now;
    /* told to Python */
    int broken;
    uint32_t reports;
    struct pykvm_blk_event event;
    /* pausing */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int pause, stop, quiet;
    atomic_int attention;          /* look at the three above */
    /* the pool */
    pthread_mutex_t pool_mutex;
    pthread_cond_t pool_work;
    pthread_t threads[BLK_THREADS];
    int thread_count, idle_threads, pool_stop;
    struct blk_request *jobs, **jobs_end, *finished;
};

/* blk.c */
void blk_broke(struct pykvm_blk *b, struct blk_queue *q);    /* by the rule in its vq */
/* blk_request.c */
int blk_parse(struct pykvm_blk *b, struct blk_request *r);   /* 1: to be done; 0: r->status says */
void blk_fail(struct pykvm_blk *b, struct blk_request *r, int error);
void blk_finish(struct pykvm_blk *b, struct blk_request *r, uint8_t status);
void blk_copy(const struct iovec *iov, uint32_t count, void *flat, uint64_t length, int to_iov);
/* blk_io.c */
int blk_prepare(struct pykvm_blk *b, struct blk_request *r); /* bounce; 0 or errno */
int blk_submit(struct pykvm_blk *b, struct blk_request *r);  /* 1: ended at once (r->error) */
int blk_moved(struct blk_request *r, int64_t result);        /* 1: ended (r->error); 0: go on */
void blk_perform(struct pykvm_blk *b, struct blk_request *r);
void blk_unbounce(struct pykvm_blk *b, struct blk_request *r);
/* blk_guard.c */
int blk_guarded(struct pykvm_blk *b, struct blk_request *r);
int blk_foreign(struct pykvm_blk *b, struct blk_request *r, const uint8_t *data);
/* blk_pool.c */
void blk_pool_start(struct pykvm_blk *b);
void blk_pool_give(struct pykvm_blk *b, struct blk_request *r);
struct blk_request *blk_pool_take(struct pykvm_blk *b);      /* a list of finished ones */
void blk_pool_end(struct pykvm_blk *b);
#endif
