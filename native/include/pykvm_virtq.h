/* Virtqueues, device side (VIRTIO 1.2, sections 2.7 and 2.8): the same interface as the reference in
 * pykvm/devices/virtio. Called without the GIL. Every field of the rings is read once; nothing outside
 * the map is ever touched. Used by the Python wrapper and by the engines (blk, net). */
#ifndef PYKVM_VIRTQ_H
#define PYKVM_VIRTQ_H
#include <stdint.h>
#include <sys/uio.h>

/* Guest memory as the data path sees it: sorted by address; replaced only while queues are quiet. */
struct pykvm_map_entry { uint64_t gpa, size; uint8_t *host; };
struct pykvm_map { uint32_t count; struct pykvm_map_entry *entry; };

enum { PYKVM_VQ_PACKED = 1, PYKVM_VQ_EVENT_IDX = 2, PYKVM_VQ_INDIRECT = 4, PYKVM_VQ_IN_ORDER = 8 };
#define PYKVM_VQ_BUFFERS 1024     /* buffers of one chain, those of an indirect table included */

struct pykvm_vq {
    const struct pykvm_map *map;
    uint64_t desc, driver, device; /* guest-physical */
    uint8_t *desc_host, *driver_host, *device_host; /* set by start */
    uint16_t index, size;
    uint32_t flags;                /* PYKVM_VQ_* */
    uint16_t next_avail, next_used;
    uint16_t notified;             /* next_used when should_notify was last asked */
    uint8_t avail_wrap, used_wrap, notified_wrap; /* packed only */
    uint32_t error;                /* 0, or which rule was broken (enum pykvm_vq_error) */
    uint64_t detail[3];
};

/* One request. The caller gives iov with PYKVM_VQ_BUFFERS entries: readable buffers, then writable. */
struct pykvm_chain {
    uint16_t id;                   /* head index (split) or buffer id (packed) */
    uint16_t count;                /* ring slots that it takes */
    uint32_t readable, writable;   /* entries of iov */
    uint64_t readable_bytes, writable_bytes;
    struct iovec *iov;
    uint64_t *gpa;                 /* of each entry; may be NULL */
};

int pykvm_vq_start(struct pykvm_vq *q);                    /* 0, or -1 with q->error */
int pykvm_vq_pop(struct pykvm_vq *q, struct pykvm_chain *c); /* 1: one; 0: none; -1: q->error */
int pykvm_vq_push(struct pykvm_vq *q, const struct pykvm_chain *c, uint32_t written);
int pykvm_vq_should_notify(struct pykvm_vq *q);            /* 1: the driver wants an interrupt */
/* With on = 0 the driver need not kick (polling). With on = 1 it must; 1: there is something already. */
int pykvm_vq_want_kicks(struct pykvm_vq *q, int on);

/* Who interrupts the driver for a queue: sets bits in *isr (virtio-mmio; NULL elsewhere), writes fd. */
struct pykvm_vq_signal { uint32_t *isr; uint32_t bits; int fd; };
void pykvm_vq_signal(const struct pykvm_vq_signal *s);
#endif
