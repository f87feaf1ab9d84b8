/* virtio_wait.c: waiting for a device, by looking or by its interrupt. */
#include "virtio.h"

enum { NO_INTERRUPT = 1, WAKERS = 8 };

static struct virtio *wakers[WAKERS];

/* An interrupt says no more than "look at the used rings". Whoever waits will. */
static void on_interrupt(struct frame *frame)
{
    struct virtio *device = wakers[frame->vector - VECTOR_VIRTIO];
    device->transport->acknowledge(device);
    device->interrupts++;
    lapic_write(LAPIC_EOI, 0);
}

/* The device interrupts with VECTOR_VIRTIO + `n` from now on: MSI-X if it has it, else its line.
   Call it between virtio_start() and virtio_queue(), for the queues' vectors. */
void virtio_interrupts(struct virtio *device, unsigned n)
{
    wakers[n] = device;
    device->interrupts = 1;
    lapic_init();
    set_handler(VECTOR_VIRTIO + n, on_interrupt);
    device->transport->interrupts(device, VECTOR_VIRTIO + n);
}

/* The next chain that the device is done with; waits for it, polling or asleep.

   Asleep: ask for an interrupt, then look once more, because the device may have been done just
   before it could see the wish; only then sleep. Interrupts are off between the look and HLT. */
void *queue_wait(struct queue *queue, uint32_t *written)
{
    void *token;
    while (!(token = queue_take(queue, written))) {
        if (!queue->device->interrupts) {
            pause();
            continue;
        }
        if (queue->device->features & F_EVENT_IDX)
            queue->available->ring[queue->size] = queue->next_used; /* used_event */
        else
            queue->available->flags = 0;
        full_barrier();
        if (queue->used->index == queue->next_used)
            wait_for_interrupt();
        queue->available->flags = NO_INTERRUPT;
    }
    return token;
}
