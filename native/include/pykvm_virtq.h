/* Virtqueues, device side (VIRTIO 1.2, sections 2.7 and 2.8): the same interface as the reference in
 * pykvm/devices/virtio. Called without the GIL. Every field of the rings is read once; nothing outside
 * the map is ever touched. Used by the Python wrapper and by the engines (blk, net). */
#ifndef PYKVM_VIRTQ_H
#define PYKVM_VIRTQ_H
#include <stdint.h>
#include <sys/uio.h>

/* Guest memory as the data path sees it: sorted by address; replaced only while queues are quiet. */
struct pykvm_map_entry {
    uint64_t gpa, size;
    uint8_t *host;
    uint8_t *marks;                /* a byte for each page: set before it is written; may be NULL */
};
struct pykvm_map { uint32_t count; struct pykvm_map_entry *entry; };

enum { PYKVM_VQ_PACKED = 1, PYKVM_VQ_EVENT_IDX = 2, PYKVM_VQ_INDIRECT = 4, PYKVM_VQ_IN_ORDER = 8 };
#define PYKVM_VQ_BUFFERS 1024     /* buffers of one chain, those of an indirect table included */

/* Which rule the driver broke; in detail[] what the sentence about it needs. */
enum pykvm_vq_error {
    PYKVM_VQE_SIZE = 1,           /* ring of impossible size: size */
    PYKVM_VQE_ALIGN,              /* which area (0 desc, 1 driver, 2 device), its address */
    PYKVM_VQE_AREA,               /* not in memory: which area, its address */
    PYKVM_VQE_MEMORY,             /* not in memory: base, length, offset from the base */
    PYKVM_VQE_AVAILABLE,          /* entries available or in flight: more than the ring has */
    PYKVM_VQE_HEAD,               /* available entry outside the table: head */
    PYKVM_VQE_LOOP,               /* head */
    PYKVM_VQE_NEXT,               /* descriptor, its next */
    PYKVM_VQE_INDIRECT,           /* indirect tables were not negotiated */
    PYKVM_VQE_INDIRECT_NEXT,      /* an indirect descriptor with a next one */
    PYKVM_VQE_TABLE,              /* indirect table of impossible length: bytes */
    PYKVM_VQE_NESTED,             /* an indirect table within another */
    PYKVM_VQE_TABLE_NEXT,         /* entry, its next, entries of the table */
    PYKVM_VQE_TABLE_LOOP,
    PYKVM_VQE_EMPTY,              /* buffer of no bytes: address */
    PYKVM_VQE_LIMIT,              /* over 4 GiB or PYKVM_VQ_BUFFERS pieces */
    PYKVM_VQE_DIRECTION,          /* readable after writable */
    PYKVM_VQE_LONG,               /* packed: slot, descriptors that are free to be used */
    PYKVM_VQE_MIXED,              /* packed: an indirect descriptor within a list: slot */
};

/* A chain to give back; with IN_ORDER also one that waits for those before it. */
struct pykvm_vq_used { uint32_t written; uint16_t id, count, position, done; };

struct pykvm_vq {
    const struct pykvm_map *map;
    uint64_t desc, driver, device; /* guest-physical */
    uint8_t *desc_host, *driver_host, *device_host; /* set by start; NULL: not in one piece */
    uint16_t index, size;
    uint32_t flags;                /* PYKVM_VQ_* */
    uint16_t next_avail, next_used;
    uint8_t avail_wrap, used_wrap; /* packed only; 1 after a reset */
    uint8_t no_kicks;              /* want_kicks(0) was the last word */
    uint32_t unasked;              /* ring slots used since should_notify was last asked */
    struct pykvm_vq_used *held;    /* with IN_ORDER: `size` entries, given by the owner */
    uint16_t popped, oldest;       /* with IN_ORDER: positions in it, modulo size */
    uint32_t error;                /* 0, or which rule was broken (enum pykvm_vq_error) */
    uint64_t detail[3];
    uint8_t *ring_marks[2];        /* of the pages of `device`, and (packed) `desc`; set by start */
    uint32_t ring_pages[2];
};

/* One request. The caller gives iov with PYKVM_VQ_BUFFERS entries: readable buffers, then writable.
 * A buffer that crosses from one region of memory into the next takes one entry for each. */
struct pykvm_chain {
    uint16_t id;                   /* head index (split) or buffer id (packed) */
    uint16_t count;                /* ring slots that it takes */
    uint32_t readable, writable;   /* entries of iov */
    uint64_t readable_bytes, writable_bytes;
    struct iovec *iov;
    uint64_t *gpa;                 /* of each entry; may be NULL */
    uint16_t position;             /* among the chains in flight; for IN_ORDER */
};

/* Before the first pop, and after the map was replaced. 0, or -1 with q->error. */
int pykvm_vq_start(struct pykvm_vq *q);
int pykvm_vq_pop(struct pykvm_vq *q, struct pykvm_chain *c); /* 1: one; 0: none; -1: q->error */
int pykvm_vq_push(struct pykvm_vq *q, const struct pykvm_chain *c, uint32_t written);
/* Up to `limit` chains, which share `room` (>= PYKVM_VQ_BUFFERS) entries of iov and gpa (may be
 * NULL). How many; -1 with q->error when the very first was bad (an error in a later one waits for
 * the next call). `*more`, if not NULL: whether it stopped for want of room or by the limit. */
int pykvm_vq_pop_batch(struct pykvm_vq *q, struct pykvm_chain *c, uint32_t limit,
                       struct iovec *iov, uint64_t *gpa, uint32_t room, int *more);
/* The driver sees all of them at once. 0, or -1 with q->error. `done` need not be set. */
int pykvm_vq_push_batch(struct pykvm_vq *q, const struct pykvm_vq_used *used, uint32_t count);
int pykvm_vq_should_notify(struct pykvm_vq *q);            /* 1: the driver wants an interrupt */
/* With on = 0 the driver need not kick (polling). With on = 1 it must; 1: there is something already. */
int pykvm_vq_want_kicks(struct pykvm_vq *q, int on);

/* Who interrupts the driver for a queue: sets bits in *isr (virtio-mmio; NULL elsewhere), writes fd. */
struct pykvm_vq_signal { uint32_t *isr; uint32_t bits; int fd; };
void pykvm_vq_signal(const struct pykvm_vq_signal *s);
#endif
