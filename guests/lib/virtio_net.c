/* virtio_net.c: a network card with one pair of queues (VIRTIO 1.2, 5.1). No offloads: the header
   before each frame stays zero. */
#include "virtio.h"

#define F_MAC (1ull << 5)

enum { RECEIVE = 0, TRANSMIT = 1 };

/* Opens the nth network card. It receives nothing before it got buffers by net_post(). */
int net_open(struct net *net, unsigned nth, unsigned queue_size)
{
    struct virtio *device = &net->virtio;
    if (!virtio_find(device, VIRTIO_NET, nth) || !virtio_start(device, F_MAC | F_EVENT_IDX) ||
        !virtio_queue(device, &net->receive, RECEIVE, queue_size) ||
        !virtio_queue(device, &net->transmit, TRANSMIT, queue_size) || !virtio_ready(device))
        return 0;
    for (unsigned i = 0; i < 6; i++) /* without F_MAC, one of our own (locally administered) */
        net->mac[i] = device->features & F_MAC ? get8(device->config + i) : "\2pykvm"[i];
    return 1;
}

/* A buffer for the device to put a frame into; queue_kick() tells it. */
int net_post(struct net *net, struct net_buffer *buffer)
{
    struct piece piece = {buffer, sizeof *buffer, 1};
    return queue_add(&net->receive, &piece, 1, buffer);
}

/* The next frame, or 0: none yet. Post the buffer again when the frame is done with. */
struct net_buffer *net_receive(struct net *net, unsigned *bytes)
{
    uint32_t written;
    struct net_buffer *buffer = queue_take(&net->receive, &written);
    *bytes = buffer && written > sizeof buffer->header ? written - sizeof buffer->header : 0;
    return buffer;
}

/* Sends `bytes` of the buffer's frame. queue_take(&net->transmit) gives the buffer back. */
int net_send(struct net *net, struct net_buffer *buffer, unsigned bytes)
{
    struct piece piece = {buffer, sizeof buffer->header + bytes, 0};
    memset(&buffer->header, 0, sizeof buffer->header);
    return queue_add(&net->transmit, &piece, 1, buffer);
}
