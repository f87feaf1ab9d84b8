/* virtio.c: the handshake and the split virtqueue, the same on every transport. */
#include "virtio.h"

enum { NEXT = 1, WRITE = 2, NO_INTERRUPT = 1, NO_NOTIFY = 1, PAGE = 4096, POOL_PAGES = 64 };

/* Memory for rings and buffers, zeroed and aligned; nobody gives any back. */
void *pages(unsigned n)
{
    static uint8_t pool[POOL_PAGES * PAGE] __attribute__((aligned(PAGE)));
    static unsigned taken;
    if (n > POOL_PAGES - taken)
        return 0;
    taken += n;
    return pool + (taken - n) * PAGE;
}

/* The nth device of a type, on PCI if there is such a bus, else on virtio-mmio. 1: found. */
int virtio_find(struct virtio *device, unsigned id, unsigned nth)
{
    return virtio_pci_find(device, id, &nth) || virtio_mmio_find(device, id, &nth);
}

/* The first half of the initialisation (3.1.1): reset, "I have seen you", "I can drive you", and
   the features. `wanted` are those that the caller understands. 0: the device refused. */
int virtio_start(struct virtio *device, uint64_t wanted)
{
    const struct transport *transport = device->transport;
    transport->set_status(device, 0);
    while (transport->status(device) != 0) /* a reset may take time (4.1.4.3.1) */
        pause();
    transport->set_status(device, STATUS_ACKNOWLEDGE);
    transport->set_status(device, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    uint64_t offered = transport->features(device);
    if (!(offered & F_VERSION_1))
        return 0; /* a legacy device has another register layout */
    device->features = offered & (wanted | F_VERSION_1);
    transport->set_features(device, device->features);
    transport->set_status(device, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
    return transport->status(device) & STATUS_FEATURES_OK;
}

/* Gives the device queue number `index`, of `most` entries or what the device can. 0: there is no
   such queue, or no memory. */
int virtio_queue(struct virtio *device, struct queue *queue, unsigned index, unsigned most)
{
    unsigned size = device->transport->queue_size(device, index);
    if (most > QUEUE_MOST)
        most = QUEUE_MOST;
    while (size > most)
        size /= 2; /* sizes are powers of two */
    uint8_t *memory = pages(3);
    if (size == 0 || !memory)
        return 0;
    queue->device = device;
    queue->index = index;
    queue->size = size;
    queue->table = (void *)memory;
    queue->available = (void *)(memory + PAGE);
    queue->used = (void *)(memory + 2 * PAGE);
    for (unsigned i = 0; i < size; i++)
        queue->table[i].next = i + 1; /* the free list */
    queue->free_count = size;
    queue->available->flags = NO_INTERRUPT;
    device->transport->queue_start(device, queue);
    return 1;
}

/* The second half: the queues are there, the device may use them. */
int virtio_ready(struct virtio *device)
{
    const struct transport *transport = device->transport;
    transport->set_status(device, transport->status(device) | STATUS_DRIVER_OK);
    return transport->status(device) & STATUS_DRIVER_OK;
}

/* The device found that we break the rules, and stopped. */
int virtio_broken(struct virtio *device)
{
    return device->transport->status(device) & (STATUS_NEEDS_RESET | STATUS_FAILED);
}

/* Makes one chain of descriptors of the pieces: those that the device reads first (2.7.4.2), and
   shows it to the device. It is not told: that is queue_kick(). 0: the queue is full. */
int queue_add(struct queue *queue, const struct piece *pieces, unsigned n, void *token)
{
    if (n == 0 || n > queue->free_count)
        return 0;
    uint16_t head = queue->free, at = head;
    for (unsigned i = 0; i < n; i++) {
        volatile struct descriptor *descriptor = &queue->table[at];
        descriptor->address = (uintptr_t)pieces[i].data;
        descriptor->length = pieces[i].bytes;
        descriptor->flags = (i + 1 < n ? NEXT : 0) | (pieces[i].device_writes ? WRITE : 0);
        at = descriptor->next;
    }
    queue->free = at;
    queue->free_count -= n;
    queue->length[head] = n;
    queue->token[head] = token;
    queue->available->ring[queue->next_available & (queue->size - 1)] = head;
    barrier(); /* the device may look as soon as it sees the index */
    queue->available->index = ++queue->next_available;
    return 1;
}

/* Tells the device that there is something new, unless it said that it looks anyway.
   With EVENT_IDX (2.7.10) it left the index, behind the used ring, whose passing it wants to hear
   of; without, a flag. */
void queue_kick(struct queue *queue)
{
    uint16_t before = queue->kicked, now = queue->next_available;
    if (before == now)
        return;
    full_barrier(); /* our index must be out before we read what the device wants */
    queue->kicked = now;
    if (queue->device->features & F_EVENT_IDX) {
        uint16_t event = *(volatile uint16_t *)&queue->used->ring[queue->size];
        if ((uint16_t)(now - event - 1) >= (uint16_t)(now - before))
            return;
    } else if (queue->used->flags & NO_NOTIFY) {
        return;
    }
    queue->kicks++;
    if (queue->device->notify)
        *(volatile uint16_t *)queue->doorbell = queue->index;
    else
        *(volatile uint32_t *)queue->doorbell = queue->index;
}

/* The token of a chain that the device is done with, or 0: none. `written`: bytes that it wrote. */
void *queue_take(struct queue *queue, uint32_t *written)
{
    if (queue->used->index == queue->next_used)
        return 0;
    barrier(); /* the entry is complete once the index shows it */
    volatile struct used *entry = &queue->used->ring[queue->next_used++ & (queue->size - 1)];
    uint16_t head = entry->id & (queue->size - 1), tail = head;
    if (written)
        *written = entry->length;
    for (unsigned n = queue->length[head]; n > 1; n--)
        tail = queue->table[tail].next;
    queue->table[tail].next = queue->free; /* the chain goes back to the free list */
    queue->free = head;
    queue->free_count += queue->length[head];
    return queue->token[head];
}
