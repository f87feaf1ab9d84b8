/* Virtqueues: guest memory, chains of buffers, batches, order. The formats: virtq_split.c, _packed.c */
#include <errno.h>
#include <unistd.h>
#include "pykvm_virtq_ring.h"

/* ---- guest memory ------------------------------------------------------------------------------ */

/* The entry that holds `gpa`, or NULL. */
static const struct pykvm_map_entry *find(const struct pykvm_map *map, uint64_t gpa)
{
    uint32_t low = 0, high = map->count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        const struct pykvm_map_entry *e = &map->entry[middle];
        if (gpa < e->gpa)
            high = middle;
        else if (gpa - e->gpa >= e->size)
            low = middle + 1;
        else
            return e;
    }
    return NULL;
}

/* [gpa, gpa + length), all of it in `e`, is about to be written: snapshots count on it. */
static void mark(const struct pykvm_map_entry *e, uint64_t gpa, uint64_t length)
{
    uint64_t first = (gpa - e->gpa) / 4096, last = (gpa - e->gpa + length - 1) / 4096;
    if (e->marks && length)
        memset(e->marks + first, 1, last - first + 1);
}

static void mark_rings(const struct pykvm_vq *q)
{
    for (int i = 0; i < 2; i++)
        if (q->ring_marks[i])
            memset(q->ring_marks[i], 1, q->ring_pages[i]);
}

uint8_t *vq_host(const struct pykvm_map *map, uint64_t gpa, uint64_t length)
{
    const struct pykvm_map_entry *e = find(map, gpa);
    if (!e || length > e->size - (gpa - e->gpa))
        return NULL;
    return e->host + (gpa - e->gpa);
}

int vq_contains(const struct pykvm_map *map, uint64_t gpa, uint64_t length)
{
    if (length && gpa + (length - 1) < gpa)
        return 0;
    while (length) {
        const struct pykvm_map_entry *e = find(map, gpa);
        if (!e)
            return 0;
        uint64_t here = e->size - (gpa - e->gpa);
        if (here >= length)
            return 1;
        gpa += here;
        length -= here;
    }
    return 1;
}

static int copy(struct pykvm_vq *q, uint64_t base, uint32_t offset, uint8_t *bytes, uint32_t length,
                int out)
{
    uint64_t gpa = base + offset;
    if (gpa < base || !vq_contains(q->map, gpa, length))
        return vq_fail(q, PYKVM_VQE_MEMORY, base, length, offset);
    while (length) {
        const struct pykvm_map_entry *e = find(q->map, gpa);
        uint64_t here = e->size - (gpa - e->gpa);
        uint32_t step = here < length ? (uint32_t)here : length;
        uint8_t *host = e->host + (gpa - e->gpa);
        if (out)
            mark(e, gpa, step);
        if (step == 2 && !((uintptr_t)host & 1) && out) {
            uint16_t value;
            memcpy(&value, bytes, 2);
            __atomic_store_n((uint16_t *)host, value, __ATOMIC_RELEASE);
        } else if (step == 2 && !((uintptr_t)host & 1)) {
            uint16_t value = __atomic_load_n((uint16_t *)host, __ATOMIC_ACQUIRE);
            memcpy(bytes, &value, 2);
        } else if (out) {
            memcpy(host, bytes, step);
        } else {
            memcpy(bytes, host, step);
        }
        gpa += step;
        bytes += step;
        length -= step;
    }
    __asm__ volatile("" ::: "memory"); /* what was read is not read again */
    return 0;
}

int vq_copy_in(struct pykvm_vq *q, uint64_t base, uint32_t offset, void *to, uint32_t length)
{
    return copy(q, base, offset, to, length, 0);
}

int vq_copy_out(struct pykvm_vq *q, uint64_t base, uint32_t offset, const void *from, uint32_t length)
{
    return copy(q, base, offset, (uint8_t *)from, length, 1);
}

/* ---- chains ------------------------------------------------------------------------------------ */

static int add_piece(struct walk *w, uint64_t gpa, uint8_t *host, uint64_t length)
{
    if (w->used == PYKVM_VQ_BUFFERS)
        return vq_fail(w->q, PYKVM_VQE_LIMIT, 0, 0, 0);
    if (w->used == w->room)
        return NO_ROOM;
    w->c->iov[w->used].iov_base = host;
    w->c->iov[w->used].iov_len = length;
    if (w->c->gpa)
        w->c->gpa[w->used] = gpa;
    w->used++;
    return 0;
}

int vq_add_buffer(struct walk *w, uint64_t gpa, uint32_t length, uint16_t flags)
{
    struct pykvm_vq *q = w->q;
    struct pykvm_chain *c = w->c;
    if (!length)
        return vq_fail(q, PYKVM_VQE_EMPTY, gpa, 0, 0);
    w->total += length;
    if (w->total > BYTES_LIMIT || w->used >= PYKVM_VQ_BUFFERS)
        return vq_fail(q, PYKVM_VQE_LIMIT, 0, 0, 0);
    if (!(flags & DESC_WRITE) && c->writable)
        return vq_fail(q, PYKVM_VQE_DIRECTION, 0, 0, 0);
    uint32_t before = w->used;
    uint64_t left = length, at = gpa;
    const struct pykvm_map_entry *e = find(q->map, gpa);
    if (!e || (length > e->size - (gpa - e->gpa) && !vq_contains(q->map, gpa, length)))
        return vq_fail(q, PYKVM_VQE_MEMORY, gpa, length, 0);
    for (;;) {
        uint64_t here = e->size - (at - e->gpa);
        if (here > left)
            here = left;
        int bad = add_piece(w, at, e->host + (at - e->gpa), here);
        if (bad)
            return bad;
        if (flags & DESC_WRITE)
            mark(e, at, here);
        left -= here;
        if (!left)
            break;
        at += here;
        e++; /* sorted, and there is no hole */
    }
    if (flags & DESC_WRITE) {
        c->writable += w->used - before;
        c->writable_bytes += length;
    } else {
        c->readable += w->used - before;
        c->readable_bytes += length;
    }
    return 0;
}

int vq_add_table(struct walk *w, uint64_t gpa, uint32_t length, int linked)
{
    struct pykvm_vq *q = w->q;
    uint32_t count = length / 16, index = 0;
    if (length % 16 || count < 1 || count > PYKVM_VQ_BUFFERS)
        return vq_fail(q, PYKVM_VQE_TABLE, length, 0, 0);
    const uint8_t *host = vq_host(q->map, gpa, length);
    if (!host && !vq_contains(q->map, gpa, length))
        return vq_fail(q, PYKVM_VQE_MEMORY, gpa, length, 0);
    for (uint32_t step = 0; step < count; step++) {
        struct split_desc d;
        if (vq_get_desc(q, host, gpa, index, &d))
            return -1;
        /* In the packed format `next` is reserved here, and so is NEXT: all entries count (2.8.8). */
        uint16_t flags = linked ? d.flags : d.next; /* bytes 12 and 14 */
        if (flags & DESC_INDIRECT)
            return vq_fail(q, PYKVM_VQE_NESTED, 0, 0, 0);
        int bad = vq_add_buffer(w, d.addr, d.len, flags);
        if (bad)
            return bad;
        if (!linked) {
            index++;
            continue;
        }
        if (!(flags & DESC_NEXT))
            return 0;
        if (d.next >= count)
            return vq_fail(q, PYKVM_VQE_TABLE_NEXT, index, d.next, count);
        index = d.next;
    }
    return linked ? vq_fail(q, PYKVM_VQE_TABLE_LOOP, 0, 0, 0) : 0;
}

/* ---- queues ------------------------------------------------------------------------------------ */

static void find_marks(struct pykvm_vq *q, int which, const uint8_t *host, uint64_t gpa,
                       uint32_t length)
{
    const struct pykvm_map_entry *e = host ? find(q->map, gpa) : NULL;
    q->ring_marks[which] = NULL;
    if (!e || !e->marks)
        return;
    uint64_t first = (gpa - e->gpa) / 4096, last = (gpa - e->gpa + length - 1) / 4096;
    q->ring_marks[which] = e->marks + first;
    q->ring_pages[which] = (uint32_t)(last - first + 1);
}

int pykvm_vq_start(struct pykvm_vq *q)
{
    uint32_t size = q->size;
    int packed = q->flags & PYKVM_VQ_PACKED;
    q->error = 0;
    q->desc_host = q->driver_host = q->device_host = NULL;
    q->ring_marks[0] = q->ring_marks[1] = NULL;
    if (!size || size > 1u << 15 || (!packed && size & (size - 1)) ||
        (packed && (q->next_avail >= size || q->next_used >= size)))
        return vq_fail(q, PYKVM_VQE_SIZE, size, 0, 0);
    struct { uint64_t gpa; uint32_t length, align; uint8_t **host; } area[3] = {
        {q->desc, 16 * size, 16, &q->desc_host},
        {q->driver, packed ? 4 : 6 + 2 * size, packed ? 4 : 2, &q->driver_host},
        {q->device, packed ? 4 : 6 + 8 * size, 4, &q->device_host},
    };
    int result = 0;
    for (int i = 0; i < 3; i++) {
        if (area[i].gpa % area[i].align)
            result = vq_fail(q, PYKVM_VQE_ALIGN, i, area[i].gpa, 0);
        else if (!vq_contains(q->map, area[i].gpa, area[i].length))
            result = vq_fail(q, PYKVM_VQE_AREA, i, area[i].gpa, 0);
        else
            *area[i].host = vq_host(q->map, area[i].gpa, area[i].length);
        if (i != 1)
            find_marks(q, i ? 0 : 1, i || packed ? *area[i].host : NULL, area[i].gpa, area[i].length);
    }
    return result;
}

static int pop(struct pykvm_vq *q, struct pykvm_chain *c, uint32_t room)
{
    q->error = 0;
    c->readable = c->writable = 0;
    c->readable_bytes = c->writable_bytes = 0;
    mark_rings(q);                 /* it may ask for a kick there */
    int found = q->flags & PYKVM_VQ_PACKED ? vq_packed_pop(q, c, room) : vq_split_pop(q, c, room);
    if (found == 1 && q->flags & PYKVM_VQ_IN_ORDER) {
        c->position = q->popped;
        q->popped = q->popped + 1 < q->size ? q->popped + 1 : 0;
    }
    return found;
}

int pykvm_vq_pop(struct pykvm_vq *q, struct pykvm_chain *c)
{
    c->position = 0;
    return pop(q, c, PYKVM_VQ_BUFFERS);
}

int pykvm_vq_pop_batch(struct pykvm_vq *q, struct pykvm_chain *c, uint32_t limit,
                       struct iovec *iov, uint64_t *gpa, uint32_t room, int *more)
{
    uint32_t done = 0, used = 0;
    int found = 1;
    while (done < limit) {
        struct pykvm_chain *one = &c[done];
        one->iov = iov + used;
        one->gpa = gpa ? gpa + used : NULL;
        one->position = 0;
        found = pop(q, one, room - used);
        if (found != 1)
            break;
        used += one->readable + one->writable;
        done++;
    }
    if (more)
        *more = found != 0;
    if (found == -1 && !done)
        return -1;
    q->error = 0;
    return (int)done;
}

static int emit(struct pykvm_vq *q, const struct pykvm_vq_used *used, uint32_t count)
{
    mark_rings(q);
    return q->flags & PYKVM_VQ_PACKED ? vq_packed_emit(q, used, count)
                                      : vq_split_emit(q, used, count);
}

/* What was done out of order waits until all before it are done (2.7.9, 2.8.11). Its turn comes
 * once, also if the ring it goes to is not there. */
static int release_in_order(struct pykvm_vq *q)
{
    for (int result = 0;;) {
        uint32_t first = q->oldest, end = first;
        while (end < q->size && q->held[end].done)
            end++;
        if (end == first)
            return result;
        if (!result)
            result = emit(q, q->held + first, end - first);
        for (uint32_t at = first; at < end; at++)
            q->held[at].done = 0;
        q->oldest = end < q->size ? (uint16_t)end : 0;
    }
}

int pykvm_vq_push_batch(struct pykvm_vq *q, const struct pykvm_vq_used *used, uint32_t count)
{
    q->error = 0;
    if (!(q->flags & PYKVM_VQ_IN_ORDER))
        return emit(q, used, count);
    for (uint32_t i = 0; i < count; i++) {
        struct pykvm_vq_used *place = &q->held[used[i].position % q->size];
        *place = used[i];
        place->done = 1;
    }
    return release_in_order(q);
}

int pykvm_vq_push(struct pykvm_vq *q, const struct pykvm_chain *c, uint32_t written)
{
    struct pykvm_vq_used used = {written, c->id, c->count, c->position, 0};
    return pykvm_vq_push_batch(q, &used, 1);
}

int pykvm_vq_should_notify(struct pykvm_vq *q)
{
    uint32_t fresh = q->unasked;
    q->error = 0;
    if (!fresh)
        return 0;
    q->unasked = 0;
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* what was used is seen before the wish is read */
    return q->flags & PYKVM_VQ_PACKED ? vq_packed_should_notify(q, fresh)
                                      : vq_split_should_notify(q, fresh);
}

int pykvm_vq_want_kicks(struct pykvm_vq *q, int on)
{
    q->error = 0;
    q->no_kicks = !on;
    mark_rings(q);
    return q->flags & PYKVM_VQ_PACKED ? vq_packed_kicks(q, on) : vq_split_kicks(q, on);
}

void pykvm_vq_signal(const struct pykvm_vq_signal *s)
{
    uint64_t one = 1;
    if (s->isr)
        __atomic_fetch_or(s->isr, s->bits, __ATOMIC_SEQ_CST);
    if (s->fd >= 0) /* EAGAIN: the counter is full, so it is signalled already */
        while (write(s->fd, &one, sizeof one) < 0 && errno == EINTR)
            ;
}
