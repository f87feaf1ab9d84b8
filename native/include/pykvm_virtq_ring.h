/* What the ring formats share; for native/src/virtq*.c only. */
#ifndef PYKVM_VIRTQ_RING_H
#define PYKVM_VIRTQ_RING_H
#include <stddef.h>
#include <string.h>
#include "pykvm_virtq.h"

enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4, DESC_AVAIL = 1 << 7, DESC_USED = 1 << 15 };
#define BYTES_LIMIT (1ull << 32)   /* of one chain (2.7.4) */
#define NO_ROOM (-2)               /* the batch is full; nothing was taken */

/* 16 bytes, little endian, in the rings and in indirect tables. */
struct split_desc { uint64_t addr; uint32_t len; uint16_t flags, next; };
struct packed_desc { uint64_t addr; uint32_t len; uint16_t id, flags; };

/* A chain while it is being read. */
struct walk {
    struct pykvm_vq *q;
    struct pykvm_chain *c;
    uint32_t used, room;           /* entries of c->iov */
    uint64_t total;                /* bytes */
};

static inline int vq_fail(struct pykvm_vq *q, uint32_t error, uint64_t a, uint64_t b, uint64_t c)
{
    q->error = error;
    q->detail[0] = a;
    q->detail[1] = b;
    q->detail[2] = c;
    return -1;
}

/* Bytes of guest memory at base + offset; they may cross regions. 0, or -1 with q->error and
 * nothing changed. For what is not in one piece: the rest goes by host pointers. */
int vq_copy_in(struct pykvm_vq *q, uint64_t base, uint32_t offset, void *to, uint32_t length);
int vq_copy_out(struct pykvm_vq *q, uint64_t base, uint32_t offset, const void *from, uint32_t length);
/* The host address if all of it lies in one region, else NULL. */
uint8_t *vq_host(const struct pykvm_map *map, uint64_t gpa, uint64_t length);
int vq_contains(const struct pykvm_map *map, uint64_t gpa, uint64_t length);

/* Reads that nobody can make two of; acquire: what the driver wrote before is seen too. */
static inline int vq_get16(struct pykvm_vq *q, const uint8_t *host, uint64_t base, uint32_t offset,
                           uint16_t *value)
{
    if (!host)
        return vq_copy_in(q, base, offset, value, 2);
    *value = __atomic_load_n((const uint16_t *)(host + offset), __ATOMIC_ACQUIRE);
    return 0;
}

/* Release: whoever sees it sees what was written before. */
static inline int vq_put16(struct pykvm_vq *q, uint8_t *host, uint64_t base, uint32_t offset,
                           uint16_t value)
{
    if (!host) {
        __atomic_thread_fence(__ATOMIC_RELEASE);
        return vq_copy_out(q, base, offset, &value, 2);
    }
    __atomic_store_n((uint16_t *)(host + offset), value, __ATOMIC_RELEASE);
    return 0;
}

/* 16 bytes of a table whose place in memory was checked, or that is read by copying. */
static inline int vq_get_desc(struct pykvm_vq *q, const uint8_t *host, uint64_t base,
                              uint32_t index, void *desc)
{
    uint64_t word[2];
    if (!host)
        return vq_copy_in(q, base, 16 * index, desc, 16);
    memcpy(word, host + 16 * (size_t)index, 16);
    __asm__ volatile("" : "+m"(word)); /* from here on only this copy exists */
    memcpy(desc, word, 16);
    return 0;
}

/* One buffer for the chain, checked. 0; -1 with q->error; NO_ROOM. */
int vq_add_buffer(struct walk *w, uint64_t gpa, uint32_t length, uint16_t flags);
/* An indirect table; `linked`: in the split format entries name the next one. As vq_add_buffer. */
int vq_add_table(struct walk *w, uint64_t gpa, uint32_t length, int linked);

int vq_split_pop(struct pykvm_vq *q, struct pykvm_chain *c, uint32_t room);
int vq_split_emit(struct pykvm_vq *q, const struct pykvm_vq_used *used, uint32_t count);
int vq_split_should_notify(struct pykvm_vq *q, uint32_t fresh);
int vq_split_kicks(struct pykvm_vq *q, int on);
int vq_packed_pop(struct pykvm_vq *q, struct pykvm_chain *c, uint32_t room);
int vq_packed_emit(struct pykvm_vq *q, const struct pykvm_vq_used *used, uint32_t count);
int vq_packed_should_notify(struct pykvm_vq *q, uint32_t fresh);
int vq_packed_kicks(struct pykvm_vq *q, int on);
#endif
