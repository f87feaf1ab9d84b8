/* Requests of virtio-blk: what they ask for, and giving them back. The checks are those of
 * pykvm/devices/virtio/blk.py, in the same order; tests hold the two against each other. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include "pykvm_blk_engine.h"

struct header { uint32_t type, reserved; uint64_t sector; };
struct segment { uint64_t sector; uint32_t sectors, flags; };

/* `length` bytes between buffers and flat memory. */
void blk_copy(const struct iovec *iov, uint32_t count, void *flat, uint64_t length, int to_iov)
{
    char *at = flat;
    for (uint32_t i = 0; i < count && length; i++) {
        uint64_t n = iov[i].iov_len < length ? iov[i].iov_len : length;
        if (to_iov)
            memcpy(iov[i].iov_base, at, n);
        else
            memcpy(at, iov[i].iov_base, n);
        at += n;
        length -= n;
    }
}

/* Leaves out the first `n` bytes. */
static void skip(struct iovec **iov, uint32_t *count, uint64_t n)
{
    while (*count && n >= (*iov)->iov_len) {
        n -= (*iov)->iov_len;
        ++*iov;
        --*count;
    }
    if (n && *count) {
        (*iov)->iov_base = (char *)(*iov)->iov_base + n;
        (*iov)->iov_len -= n;
    }
}

/* Leaves only the first `n` bytes. */
static void cut(struct iovec *iov, uint32_t *count, uint64_t n)
{
    uint32_t i = 0;
    for (; i < *count && n; i++) {
        if (iov[i].iov_len > n)
            iov[i].iov_len = n;
        n -= iov[i].iov_len;
    }
    *count = i;
}

static int on_disk(struct pykvm_blk *b, uint64_t sector, uint64_t length)
{
    uint64_t size = b->c.size;
    return sector <= size / BLK_SECTOR && length <= size - sector * BLK_SECTOR;
}

static void zero(struct iovec *iov, uint32_t count, uint64_t from)
{
    for (uint32_t i = 0; i < count; i++) {
        uint64_t n = iov[i].iov_len;
        if (from < n) {
            memset((char *)iov[i].iov_base + from, 0, n - from);
            from = 0;
        } else {
            from -= n;
        }
    }
}

static int refuse(struct blk_request *r, int status)
{
    *r->status = status;
    return 0;
}

static int parse_clear(struct pykvm_blk *b, struct blk_request *r, struct iovec *data,
                       uint32_t count, uint64_t length)
{
    struct segment s[BLK_SEGMENTS];
    int discard = r->type == T_DISCARD;
    uint32_t most = discard ? b->c.discard_segments : 1;
    uint32_t longest = discard ? b->c.discard_sectors : b->c.zero_sectors;
    if (b->c.flags & PYKVM_BLK_READ_ONLY)
        return refuse(r, S_IOERR);
    if (!length || length % sizeof *s || length > most * sizeof *s)
        return refuse(r, S_IOERR);
    blk_copy(data, count, s, length, 0);
    r->segments = length / sizeof *s;
    for (uint32_t i = 0; i < r->segments; i++) {
        if (s[i].flags & ~1u || (discard && s[i].flags))
            return refuse(r, S_UNSUPP);
        if (s[i].sectors > longest)
            return refuse(r, S_IOERR);
        if (!on_disk(b, s[i].sector, (uint64_t)s[i].sectors * BLK_SECTOR))
            return refuse(r, S_IOERR);
        r->segment[i].offset = b->c.offset + s[i].sector * BLK_SECTOR;
        r->segment[i].length = (uint64_t)s[i].sectors * BLK_SECTOR;
        r->segment[i].unmap = discard || s[i].flags & 1;
    }
    return 1;
}

int blk_parse(struct pykvm_blk *b, struct blk_request *r)
{
    struct pykvm_chain *c = &r->chain;
    struct iovec *out = c->iov, *in = c->iov + c->readable, *last = in + c->writable - 1;
    uint32_t out_count = c->readable, in_count = c->writable;
    uint64_t room = c->writable_bytes - 1;
    struct header header;

    r->status = (uint8_t *)last->iov_base + last->iov_len - 1;
    r->stat = PYKVM_BLK_STAT_OTHER;
    r->asked = r->zeros = r->length = 0;
    r->alone = r->dsync = 0;
    r->error = 0;
    r->bounce = NULL;
    r->segments = 0;
    r->type = ~0u;
    if (c->readable_bytes < sizeof header || c->readable_bytes + room > b->c.request_bytes)
        return refuse(r, S_IOERR);
    blk_copy(out, out_count, &header, sizeof header, 0);
    r->type = header.type;
    switch (header.type) {
    case T_IN:
        r->stat = PYKVM_BLK_STAT_READ;
        if (!room || room % BLK_SECTOR || !on_disk(b, header.sector, room))
            return refuse(r, S_IOERR);
        cut(in, &in_count, room);
        r->iov = in;
        r->count = in_count;
        r->length = r->asked = room;
        r->offset = header.sector * BLK_SECTOR;
        if (r->offset + room > b->c.bytes) { /* the last sector is not all there */
            uint64_t have = r->offset < b->c.bytes ? b->c.bytes - r->offset : 0;
            zero(in, in_count, have);
            cut(r->iov, &r->count, have);
            r->length = have;
        }
        r->offset += b->c.offset;
        if (!r->length) {
            *r->status = S_OK;
            return 0;
        }
        return 1;
    case T_OUT:
        r->stat = PYKVM_BLK_STAT_WRITE;
        r->length = r->asked = c->readable_bytes - sizeof header;
        if (b->c.flags & PYKVM_BLK_READ_ONLY || !r->length || r->length % BLK_SECTOR ||
            !on_disk(b, header.sector, r->length))
            return refuse(r, S_IOERR);
        r->offset = header.sector * BLK_SECTOR;
        if (r->offset + r->length > b->c.bytes)
            return refuse(r, S_IOERR);
        r->offset += b->c.offset;
        skip(&out, &out_count, sizeof header);
        r->iov = out;
        r->count = out_count;
        r->dsync = atomic_load_explicit(&b->write_through, memory_order_relaxed) &&
                   !(b->c.flags & PYKVM_BLK_UNSAFE);
        return 1;
    case T_FLUSH:
        r->stat = PYKVM_BLK_STAT_FLUSH;
        if (b->c.flags & (PYKVM_BLK_UNSAFE | PYKVM_BLK_READ_ONLY)) {
            *r->status = S_OK;
            return 0;
        }
        return 1;
    case T_GET_ID:
        r->asked = room < sizeof b->c.serial ? room : sizeof b->c.serial;
        cut(in, &in_count, room);
        blk_copy(in, in_count, b->c.serial, r->asked, 1);
        *r->status = S_OK;
        return 0;
    case T_DISCARD:
    case T_WRITE_ZEROES:
        r->stat = PYKVM_BLK_STAT_CLEAR;
        r->dsync = atomic_load_explicit(&b->write_through, memory_order_relaxed) &&
                   !(b->c.flags & PYKVM_BLK_UNSAFE);
        skip(&out, &out_count, sizeof header);
        return parse_clear(b, r, out, out_count, c->readable_bytes - sizeof header);
    }
    return refuse(r, S_UNSUPP);
}

/* A host error: noted for Python, unless there were many already. */
void blk_fail(struct pykvm_blk *b, struct blk_request *r, int error)
{
    if (b->reports < b->c.reports && !b->event.kind) {
        b->reports++;
        b->event = (struct pykvm_blk_event){
            .kind = PYKVM_BLK_FAILED, .request = r->type, .offset = r->offset - b->c.offset,
            .length = r->length, .error = error,
        };
        atomic_store(&b->attention, 1);
    }
}

void blk_finish(struct pykvm_blk *b, struct blk_request *r, uint8_t status)
{
    struct blk_queue *q = r->queue;
    int reads = r->type == T_IN || r->type == T_GET_ID;
    uint32_t written = status == S_OK && reads ? (uint32_t)r->asked + 1 : 1;
    *r->status = status;
    pykvm_stat_add(&b->c.stats[r->stat], status == S_OK ? r->asked : 0, b->now - r->start,
                   status != S_OK);
    if (pykvm_vq_push(q->vq, &r->chain, written) < 0 && !b->broken)
        blk_broke(b, q);
    q->pushed = 1;
    r->next = b->free;
    b->free = r;
}
