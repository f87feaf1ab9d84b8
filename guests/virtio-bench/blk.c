/* blk.c: requests to a disk, `qd` at once. */
#include "bench.h"

enum { SEQUENTIAL = 0, RANDOM = 1 };

static struct blk disk;
static struct blk_request requests[DEPTH_MOST];
static uint64_t count, depth, bytes, blocks;
static int writes, order, flush;
static const char *name;

const char *blk_prepare(void)
{
    static const struct { const char *name; int writes, order, flush; } operations[] = {
        {"randread", 0, RANDOM, 0}, {"randwrite", 1, RANDOM, 0}, {"read", 0, SEQUENTIAL, 0},
        {"write", 1, SEQUENTIAL, 0}, {"flush", 1, RANDOM, 1},
    };
    for (unsigned i = 0; i < sizeof operations / sizeof *operations; i++)
        if (option_is("op", operations[i].name)) {
            name = operations[i].name;
            writes = operations[i].writes;
            order = operations[i].order;
            flush = operations[i].flush;
        }
    if (!name)
        return "op must be randread, randwrite, read, write or flush";
    count = option("count", 1000);
    depth = flush ? 1 : option("qd", 1);
    bytes = option("bs", 4096);
    if (bytes % SECTOR || (bytes == 0 && !flush) || depth < 1 || depth > DEPTH_MOST ||
        depth * bytes > BUFFER_BYTES)
        return "bs must be sectors, qd 1 to 256, and all of it fit 16 MiB";
    if (!blk_open(&disk, option("disk", 0), QUEUE_MOST))
        return "no disk";
    uint64_t area = option("area", disk.sectors * SECTOR);
    blocks = bytes ? (area < disk.sectors * SECTOR ? area : disk.sectors * SECTOR) / bytes : 1;
    if (blocks == 0)
        return "the disk is smaller than one request";
    if (depth * 3 > disk.queue.size) /* three descriptors a request */
        return "the queue is too short for this depth";
    return 0;
}

/* xorshift64: every block is as likely as every other, and no two runs differ. */
static uint64_t next_block(void)
{
    static uint64_t state = 88172645463325252ull, sequence;
    if (order == SEQUENTIAL)
        return sequence++ % blocks;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % blocks;
}

static void submit(struct blk_request *request)
{
    void *data = (void *)(BUFFERS + (request - requests) * bytes);
    uint64_t sector = next_block() * (bytes / SECTOR);
    blk_submit(&disk, request, writes ? BLK_WRITE : BLK_READ, sector, data, bytes);
}

/* Ring 3. One request: a write and the flush that secures it; the flush alone for bs=0. */
static void measure_flush(void)
{
    for (; outcome.requests < count; outcome.requests++) {
        int status = 0;
        if (bytes)
            status = blk_do(&disk, BLK_WRITE, next_block() * (bytes / SECTOR), (void *)BUFFERS, bytes);
        status |= blk_do(&disk, BLK_FLUSH, 0, 0, 0);
        outcome.errors += status != BLK_OK;
    }
}

/* Ring 3. As many requests as the depth allows; whatever is done is replaced, with one kick for
   all that came back together. */
static void measure_requests(void)
{
    uint64_t started = 0;
    while (started < depth && started < count)
        submit(&requests[started++]);
    queue_kick(&disk.queue);
    while (outcome.requests < count) {
        struct blk_request *done = queue_take(&disk.queue, 0);
        if (!done) {
            pause();
            continue;
        }
        for (; done; done = queue_take(&disk.queue, 0)) {
            outcome.requests++;
            outcome.errors += done->status != BLK_OK;
            if (started < count) {
                submit(done);
                started++;
            }
        }
        queue_kick(&disk.queue);
    }
}

uint64_t blk_measure(uint64_t a, uint64_t b)
{
    (void)a, (void)b;
    if (writes) /* pages of our own, no sector like another */
        for (uint64_t *at = (void *)BUFFERS, i = 0; i < depth * bytes / 8; i++)
            at[i] = i * 0x9e3779b97f4a7c15;
    else /* every page is there before the clock runs */
        for (uint64_t i = 0; i < depth * bytes; i += 4096)
            *(volatile uint8_t *)(BUFFERS + i) = 0;
    outcome.begin = rdtsc();
    if (flush)
        measure_flush();
    else
        measure_requests();
    outcome.end = rdtsc();
    outcome.bytes = outcome.requests * bytes;
    return 0;
}

void blk_describe(void)
{
    print("{\"device\":\"blk\",\"transport\":\"%s\",\"op\":\"%s\",\"bs\":%lu,\"qd\":%lu,"
          "\"kicks\":%lu,",
          disk.virtio.transport->name, name, bytes, depth, disk.queue.kicks);
}
