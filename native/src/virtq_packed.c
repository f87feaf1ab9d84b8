/* The packed virtqueue (VIRTIO 1.2, section 2.8). */
#include "pykvm_virtq_ring.h"

enum { EVENT_OFFSET = 0, EVENT_FLAGS = 2 };            /* of the event suppression structures */
enum { EVENT_ENABLE = 0, EVENT_DISABLE = 1, EVENT_DESC = 2, EVENT_MASK = 3 };
enum { DESC_FLAGS = 14 };

static int head_flags(struct pykvm_vq *q, uint16_t *flags)
{
    return vq_get16(q, q->desc_host, q->desc, 16u * q->next_avail + DESC_FLAGS, flags);
}

static int is_available(const struct pykvm_vq *q, uint16_t flags)
{
    int avail = !!(flags & DESC_AVAIL), used = !!(flags & DESC_USED);
    return avail == q->avail_wrap && used != q->avail_wrap;
}

/* Asks for a kick at the next request; then looks again, it may have come meanwhile. */
static int arm(struct pykvm_vq *q, uint16_t *flags)
{
    uint16_t mode = EVENT_ENABLE;
    if (q->flags & PYKVM_VQ_EVENT_IDX) {
        uint16_t place = q->next_avail | q->avail_wrap << 15;
        if (vq_put16(q, q->device_host, q->device, EVENT_OFFSET, place))
            return -1;
        mode = EVENT_DESC;
    }
    if (vq_put16(q, q->device_host, q->device, EVENT_FLAGS, mode))
        return -1;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return head_flags(q, flags);
}

/* Descriptors that the driver may have made available: those that are not in flight. */
static int free_slots(const struct pykvm_vq *q)
{
    int flight = q->next_avail - q->next_used;
    if (q->avail_wrap != q->used_wrap)
        flight += q->size;
    return flight > 0 ? q->size - flight : q->size;
}

static int collect(struct walk *w, uint16_t flags)
{
    struct pykvm_vq *q = w->q;
    struct packed_desc d;
    uint32_t slot = q->next_avail;
    int room = free_slots(q);
    for (w->c->count = 1;; w->c->count++) {
        if (w->c->count > room)
            return vq_fail(q, PYKVM_VQE_LONG, q->next_avail, room > 0 ? room : 0, 0);
        if (vq_get_desc(q, q->desc_host, q->desc, slot, &d))
            return -1;
        if (w->c->count > 1)
            flags = d.flags; /* those of the head were read before */
        if (flags & DESC_INDIRECT) {
            if (w->c->count > 1)
                return vq_fail(q, PYKVM_VQE_MIXED, slot, 0, 0);
            if (!(q->flags & PYKVM_VQ_INDIRECT))
                return vq_fail(q, PYKVM_VQE_INDIRECT, 0, 0, 0);
            if (flags & DESC_NEXT)
                return vq_fail(q, PYKVM_VQE_INDIRECT_NEXT, 0, 0, 0);
            w->c->id = d.id;
            return vq_add_table(w, d.addr, d.len, 0);
        }
        int bad = vq_add_buffer(w, d.addr, d.len, flags);
        if (bad)
            return bad;
        w->c->id = d.id; /* that of the last one counts (2.8.6) */
        if (!(flags & DESC_NEXT))
            return 0;
        slot = slot + 1 < q->size ? slot + 1 : 0;
    }
}

int vq_packed_pop(struct pykvm_vq *q, struct pykvm_chain *c, uint32_t room)
{
    uint16_t flags;
    if (q->next_avail >= q->size)
        return vq_fail(q, PYKVM_VQE_SIZE, q->size, 0, 0);
    if (head_flags(q, &flags))
        return -1;
    if (!is_available(q, flags)) {
        if (!(q->flags & PYKVM_VQ_EVENT_IDX) || q->no_kicks)
            return 0;
        if (arm(q, &flags))
            return -1;
        if (!is_available(q, flags))
            return 0;
    }
    struct walk w = {q, c, 0, room, 0};
    int bad = collect(&w, flags);
    if (bad)
        return bad;
    uint32_t next = q->next_avail + (uint32_t)c->count;
    if (next >= q->size) {
        next -= q->size;
        q->avail_wrap ^= 1;
    }
    q->next_avail = (uint16_t)next;
    return 1;
}

static int put_used(struct pykvm_vq *q, uint32_t slot, const struct pykvm_vq_used *u)
{
    struct { uint32_t len; uint16_t id; } entry = {u->written, u->id};
    if (!q->desc_host)
        return vq_copy_out(q, q->desc, 16 * slot + 8, &entry, 6);
    memcpy(q->desc_host + 16 * slot + 8, &entry, 6);
    return 0;
}

static int put_flags(struct pykvm_vq *q, uint32_t slot, int wrap, const struct pykvm_vq_used *u)
{
    uint16_t flags = (wrap ? DESC_AVAIL | DESC_USED : 0) | (u->written ? DESC_WRITE : 0);
    return vq_put16(q, q->desc_host, q->desc, 16 * slot + DESC_FLAGS, flags);
}

int vq_packed_emit(struct pykvm_vq *q, const struct pykvm_vq_used *used, uint32_t count)
{
    uint32_t slot = q->next_used, slots = 0;
    uint8_t wrap = q->used_wrap;
    /* The flags of the first come last: until then the driver sees none of them. */
    for (uint32_t i = 0; i < count; i++) {
        if (slot >= q->size || used[i].count > q->size)
            return vq_fail(q, PYKVM_VQE_SIZE, q->size, 0, 0);
        if (put_used(q, slot, &used[i]) || (i && put_flags(q, slot, wrap, &used[i])))
            return -1;
        slot += used[i].count;
        slots += used[i].count;
        if (slot >= q->size) {
            slot -= q->size;
            wrap ^= 1;
        }
    }
    if (count && put_flags(q, q->next_used, q->used_wrap, &used[0]))
        return -1;
    q->next_used = (uint16_t)slot;
    q->used_wrap = wrap;
    q->unasked = q->unasked + slots < 2u * q->size ? q->unasked + slots : 2u * q->size;
    return 0;
}

int vq_packed_should_notify(struct pykvm_vq *q, uint32_t fresh)
{
    uint16_t flags, event;
    if (vq_get16(q, q->driver_host, q->driver, EVENT_FLAGS, &flags))
        return -1;
    flags &= EVENT_MASK;
    if (flags != EVENT_DESC || !(q->flags & PYKVM_VQ_EVENT_IDX))
        return flags != EVENT_DISABLE;
    if (vq_get16(q, q->driver_host, q->driver, EVENT_OFFSET, &event))
        return -1;
    /* Two laps (wrap counter 1, then 0) number all places: is the event's among the fresh ones? */
    uint32_t laps = 2u * q->size;
    uint32_t now = q->next_used + (q->used_wrap ? 0u : q->size);
    uint32_t wanted = ((event & 0x7FFFu) + (event >> 15 ? 0u : q->size)) % laps;
    return (now + 2 * laps - 1 - wanted) % laps < fresh;
}

int vq_packed_kicks(struct pykvm_vq *q, int on)
{
    uint16_t flags;
    if (!on)
        return vq_put16(q, q->device_host, q->device, EVENT_FLAGS, EVENT_DISABLE);
    if (arm(q, &flags))
        return -1;
    return is_available(q, flags);
}
