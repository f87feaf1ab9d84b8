/* The split virtqueue (VIRTIO 1.2, section 2.7). */
#include "pykvm_virtq_ring.h"

enum { AVAIL_INDEX = 2, AVAIL_RING = 4, USED_INDEX = 2, USED_RING = 4 };
enum { NO_INTERRUPT = 1, NO_NOTIFY = 1 };

static int avail_index(struct pykvm_vq *q, uint16_t *index)
{
    return vq_get16(q, q->driver_host, q->driver, AVAIL_INDEX, index);
}

/* Asks for a kick at the next request; then looks again, it may have come meanwhile. */
static int arm(struct pykvm_vq *q, uint16_t *index)
{
    if (vq_put16(q, q->device_host, q->device, USED_RING + 8u * q->size, q->next_avail))
        return -1;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return avail_index(q, index);
}

static int collect(struct walk *w, uint16_t head)
{
    struct pykvm_vq *q = w->q;
    uint32_t index = head, steps = 0;
    for (;;) {
        struct split_desc d;
        if (vq_get_desc(q, q->desc_host, q->desc, index, &d))
            return -1;
        steps++;
        if (d.flags & DESC_INDIRECT) {
            if (!(q->flags & PYKVM_VQ_INDIRECT))
                return vq_fail(q, PYKVM_VQE_INDIRECT, 0, 0, 0);
            if (d.flags & DESC_NEXT)
                return vq_fail(q, PYKVM_VQE_INDIRECT_NEXT, 0, 0, 0);
            return vq_add_table(w, d.addr, d.len, 1);
        }
        int bad = vq_add_buffer(w, d.addr, d.len, d.flags);
        if (bad)
            return bad;
        if (!(d.flags & DESC_NEXT))
            return 0;
        if (steps >= q->size)
            return vq_fail(q, PYKVM_VQE_LOOP, head, 0, 0);
        if (d.next >= q->size)
            return vq_fail(q, PYKVM_VQE_NEXT, index, d.next, 0);
        index = d.next;
    }
}

int vq_split_pop(struct pykvm_vq *q, struct pykvm_chain *c, uint32_t room)
{
    uint16_t index, head, waiting, unused;
    if (avail_index(q, &index))
        return -1;
    if (index == q->next_avail) {
        if (!(q->flags & PYKVM_VQ_EVENT_IDX) || q->no_kicks)
            return 0;
        if (arm(q, &index))
            return -1;
        if (index == q->next_avail)
            return 0;
    }
    waiting = index - q->next_avail;
    unused = index - q->next_used; /* those in flight too: a chain has a descriptor of its own */
    if (waiting > q->size || unused > q->size)
        return vq_fail(q, PYKVM_VQE_AVAILABLE, waiting > unused ? waiting : unused, 0, 0);
    uint32_t slot = q->next_avail & (q->size - 1);
    if (vq_get16(q, q->driver_host, q->driver, AVAIL_RING + 2 * slot, &head))
        return -1;
    if (head >= q->size)
        return vq_fail(q, PYKVM_VQE_HEAD, head, 0, 0);
    c->id = head;
    c->count = 1;
    struct walk w = {q, c, 0, room, 0};
    int bad = collect(&w, head);
    if (bad)
        return bad;
    q->next_avail++;
    return 1;
}

int vq_split_emit(struct pykvm_vq *q, const struct pykvm_vq_used *used, uint32_t count)
{
    uint16_t next = q->next_used;
    for (uint32_t i = 0; i < count; i++, next++) {
        uint32_t entry[2] = {used[i].id, used[i].written};
        uint32_t offset = USED_RING + 8u * (next & (q->size - 1));
        if (q->device_host)
            memcpy(q->device_host + offset, entry, 8);
        else if (vq_copy_out(q, q->device, offset, entry, 8))
            return -1;
    }
    if (vq_put16(q, q->device_host, q->device, USED_INDEX, next))
        return -1;
    q->next_used = next;
    q->unasked = q->unasked + count < 1u << 16 ? q->unasked + count : 1u << 16;
    return 0;
}

int vq_split_should_notify(struct pykvm_vq *q, uint32_t fresh)
{
    uint16_t flags, event;
    if (!(q->flags & PYKVM_VQ_EVENT_IDX)) {
        if (vq_get16(q, q->driver_host, q->driver, 0, &flags))
            return -1;
        return !(flags & NO_INTERRUPT);
    }
    if (vq_get16(q, q->driver_host, q->driver, AVAIL_RING + 2u * q->size, &event))
        return -1;
    return (uint16_t)(q->next_used - event - 1) < fresh;
}

int vq_split_kicks(struct pykvm_vq *q, int on)
{
    uint16_t index;
    if (q->flags & PYKVM_VQ_EVENT_IDX) {
        if (!on)
            return 0; /* the event stays behind: the driver passed it */
        if (arm(q, &index))
            return -1;
        return index != q->next_avail;
    }
    if (vq_put16(q, q->device_host, q->device, 0, on ? 0 : NO_NOTIFY))
        return -1;
    if (!on)
        return 0;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (avail_index(q, &index))
        return -1;
    return index != q->next_avail;
}
