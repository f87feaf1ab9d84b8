/* virtio_blk.c: a disk (VIRTIO 1.2, 5.2). */
#include "virtio.h"

#define F_FLUSH (1ull << 9)

/* Opens the nth disk, with a queue of `queue_size` descriptors. 0: there is none. */
int blk_open(struct blk *disk, unsigned nth, unsigned queue_size)
{
    struct virtio *device = &disk->virtio;
    if (!virtio_find(device, VIRTIO_BLK, nth) || !virtio_start(device, F_FLUSH | F_EVENT_IDX) ||
        !virtio_queue(device, &disk->queue, 0, queue_size) || !virtio_ready(device))
        return 0;
    disk->sectors = get32(device->config) | (uint64_t)get32(device->config + 4) << 32;
    return 1;
}

/* Puts a request into the queue: a header that the device reads, the data, and a byte where it
   writes how it went. queue_kick() then tells the device; queue_take() or queue_wait() give
   `request` back. 0: the queue is full. */
int blk_submit(struct blk *disk, struct blk_request *request, enum blk_type type, uint64_t sector,
               void *data, uint32_t bytes)
{
    struct piece pieces[3] = {
        {&request->header, sizeof request->header, 0},
        {data, bytes, type == BLK_READ || type == BLK_ID},
        {&request->status, 1, 1},
    };
    request->header.type = type;
    request->header.sector = sector;
    request->status = 0xff;
    if (bytes)
        return queue_add(&disk->queue, pieces, 3, request);
    pieces[1] = pieces[2]; /* a flush has no data */
    return queue_add(&disk->queue, pieces, 2, request);
}

/* One request from beginning to end; its status. */
int blk_do(struct blk *disk, enum blk_type type, uint64_t sector, void *data, uint32_t bytes)
{
    static struct blk_request request;
    if (!blk_submit(disk, &request, type, sector, data, bytes))
        return 0xff;
    queue_kick(&disk->queue);
    queue_wait(&disk->queue, 0);
    return request.status;
}
