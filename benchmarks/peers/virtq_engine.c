/* The least that an engine in C does with a virtqueue: take a batch, serve it, give it back. Built as
 * a library together with native/src/virtq*.c; called by benchmarks/virtqueue.py. */
#include <string.h>
#include "pykvm_virtq.h"

enum { LIMIT = 256, ROOM = PYKVM_VQ_BUFFERS + 1024 };

/* Serves up to `limit` requests; with `disk`, each reads its second buffer from it, block by block.
 * How many; the result of should_notify in *notify. */
int engine_serve(struct pykvm_vq *q, uint32_t limit, const uint8_t *disk, uint32_t block, int *notify)
{
    static struct pykvm_chain chain[LIMIT];
    static struct iovec iov[ROOM];
    static struct pykvm_vq_used used[LIMIT];
    int count = pykvm_vq_pop_batch(q, chain, limit < LIMIT ? limit : LIMIT, iov, NULL, ROOM, NULL);
    for (int i = 0; i < count; i++) {
        struct pykvm_chain *c = &chain[i];
        if (disk) {
            struct iovec *data = c->iov + c->readable, *status = data + c->writable - 1;
            memcpy(data->iov_base, disk + (size_t)block * i, data->iov_len);
            *(uint8_t *)status->iov_base = 0;
        }
        used[i] = (struct pykvm_vq_used){(uint32_t)c->writable_bytes, c->id, c->count, c->position, 0};
    }
    if (count > 0)
        pykvm_vq_push_batch(q, used, (uint32_t)count);
    *notify = pykvm_vq_should_notify(q);
    return count;
}
