/* virtio_rng.c: the simplest device of all: one queue, buffers in, random bytes out (VIRTIO 1.2,
   5.4). */
#include "virtio.h"

/* Fills `to`; it may take several rounds, since the device gives what it has. 0: no device. */
int rng_read(struct virtio *device, struct queue *queue, void *to, uint32_t bytes)
{
    if (!device->transport &&
        (!virtio_find(device, VIRTIO_RNG, 0) || !virtio_start(device, F_EVENT_IDX) ||
         !virtio_queue(device, queue, 0, 8) || !virtio_ready(device)))
        return 0;
    for (uint32_t done = 0, got; done < bytes; done += got) {
        struct piece piece = {(uint8_t *)to + done, bytes - done, 1};
        queue_add(queue, &piece, 1, to);
        queue_kick(queue);
        queue_wait(queue, &got);
        if (got == 0 || got > bytes - done)
            return 0;
    }
    return 1;
}
