/* The engine of virtio-blk (VIRTIO 1.2, 5.2): takes requests from queues, moves the data between a
 * file and guest memory without a copy, by io_uring or a pool of threads, and gives them back. */
#ifndef PYKVM_BLK_H
#define PYKVM_BLK_H
#include <stdint.h>
#include "pykvm_limits.h"
#include "pykvm_virtq.h"

enum { /* pykvm_blk_config.flags */
    PYKVM_BLK_READ_ONLY = 1,
    PYKVM_BLK_DIRECT = 2,       /* fd is O_DIRECT; plain_fd is the same file without */
    PYKVM_BLK_UNSAFE = 4,       /* FLUSH does nothing */
    PYKVM_BLK_DEVICE = 8,       /* a block device */
    PYKVM_BLK_THREADS = 16,     /* no io_uring */
    PYKVM_BLK_GUARDED = 32,     /* writes that make it look like another format are refused */
};
enum { PYKVM_BLK_STOPPED = 0, PYKVM_BLK_EVENT = 1 };             /* pykvm_blk_run() */
enum { PYKVM_BLK_BROKEN = 1, PYKVM_BLK_FAILED = 2 };             /* pykvm_blk_event.kind */
enum { PYKVM_BLK_STAT_READ, PYKVM_BLK_STAT_WRITE, PYKVM_BLK_STAT_FLUSH, PYKVM_BLK_STAT_CLEAR,
       PYKVM_BLK_STAT_OTHER, PYKVM_BLK_STATS };

struct pykvm_blk_config {
    int fd, plain_fd;
    uint32_t flags;
    uint32_t align, memory_align; /* of O_DIRECT: file offsets and lengths; buffers */
    uint64_t offset;              /* of the disk in the file */
    uint64_t size;                /* of the disk */
    uint64_t bytes;               /* of it that the file has; the rest, less than a sector, is zeros */
    uint32_t discard_sectors, discard_segments, zero_sectors, request_bytes; /* what a request may ask */
    uint32_t queues, requests;    /* queues; requests in flight */
    uint32_t reports;             /* host errors reported one by one; later ones are only counted */
    uint8_t serial[20];
    struct pykvm_limit *limit;    /* may be NULL */
    struct pykvm_stat *stats;     /* PYKVM_BLK_STATS of them */
};

struct pykvm_blk_event {
    uint32_t kind;                /* 0: none */
    uint32_t queue;               /* BROKEN: which, and what was in its vq; rule 0: a chain without */
    uint32_t request;             /* FAILED: the request's type, where, errno */
    uint64_t offset, length;
    int error;
    uint32_t rule;                /* room for a status */
    uint64_t detail[3];
};

struct pykvm_blk;

struct pykvm_blk *pykvm_blk_new(const struct pykvm_blk_config *config); /* NULL: no memory */
void pykvm_blk_free(struct pykvm_blk *b);        /* after pykvm_blk_run() returned STOPPED */
/* While paused or before the first run. vq NULL: the queue is not served. */
void pykvm_blk_set_queue(struct pykvm_blk *b, uint32_t index, struct pykvm_vq *vq, int kick,
                         const struct pykvm_vq_signal *signal);
void pykvm_blk_set_size(struct pykvm_blk *b, uint64_t size, uint64_t bytes);  /* as above */
void pykvm_blk_set_write_through(struct pykvm_blk *b, int on); /* each write is durable; any time */
/* Serves the queues in the calling thread, always the same one: until stopped, or something is to
 * be told (after all in flight ended); then call it again. */
int pykvm_blk_run(struct pykvm_blk *b);
void pykvm_blk_take_event(struct pykvm_blk *b, struct pykvm_blk_event *event);
void pykvm_blk_mend(struct pykvm_blk *b);        /* after BROKEN, by the serving thread: go on after all */
/* From any other thread. Returns when nothing is in flight and queues and memory are not touched;
 * nests. Requests that wait for their tokens go at once. */
void pykvm_blk_pause(struct pykvm_blk *b);
void pykvm_blk_resume(struct pykvm_blk *b);
void pykvm_blk_stop(struct pykvm_blk *b);        /* after a pause that is not resumed */
void pykvm_blk_wake(struct pykvm_blk *b);        /* limits have changed */
int pykvm_blk_uses_uring(struct pykvm_blk *b);   /* 1, 0; -1: not run yet */
uint32_t pykvm_blk_in_flight(struct pykvm_blk *b);
/* Whether a sector of 512 bytes, the first or the `last` of a file, is another format's header. */
int pykvm_blk_looks_foreign(const uint8_t *sector, int last);
#endif
