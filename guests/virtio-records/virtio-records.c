/* virtio-records: writes numbered records, and says on the serial port which ones are safe.

   Record n is one sector, number n modulo the disk's size, of 64 equal little-endian words: RECORD
   plus n. It is written, then flushed, and when the device has
   acknowledged that flush, "safe n" is printed. From then on no loss of power may lose it: VIRTIO
   1.2, 5.2.6.2 makes a FLUSH cover every write that was completed before it was submitted.

   With a depth over 1, each of so many slots does this on its own, so writes and flushes are under
   way together, and numbers come out of order. */
#include "options.h"
#include "virtio.h"

#define RECORD 0x4345520000000000ull /* "REC" in the last three bytes */

enum { DEPTH_MOST = 64, WORDS = SECTOR / 8 };

uint64_t first = 0;
uint64_t count = 0;
uint32_t depth = 1;

static struct slot {
    struct blk_request request; /* must be first: the queue gives it back */
    uint64_t number;
    uint64_t data[WORDS];
} slots[DEPTH_MOST];

static struct blk disk;

static int write_record(struct slot *slot, uint64_t number)
{
    uint64_t value = RECORD + number, n = WORDS;
    void *to = slot->data;
    asm volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(value) : "memory");
    slot->number = number;
    return blk_submit(&disk, &slot->request, BLK_WRITE, number % disk.sectors, slot->data, SECTOR);
}

int main(void)
{
    first = option("first", first);
    count = option("count", count);
    depth = option("depth", depth);
    if (depth < 1 || depth > DEPTH_MOST) {
        print("virtio-records: depth must be 1 to %u\n", DEPTH_MOST);
        return 2;
    }
    if (!blk_open(&disk, 0, QUEUE_MOST)) {
        print("virtio-records: no disk\n");
        return 1;
    }
    uint64_t next = first, end = count ? first + count : ~0ull;
    unsigned under_way = 0;
    for (; under_way < depth && next < end; under_way++)
        if (!write_record(&slots[under_way], next++))
            return 3;
    while (under_way) {
        queue_kick(&disk.queue);
        struct slot *slot = queue_wait(&disk.queue, 0);
        if (slot->request.status != BLK_OK) {
            print("virtio-records: record %lu failed, status %u\n", slot->number,
                  slot->request.status);
            return 4;
        }
        if (slot->request.header.type == BLK_WRITE) {
            if (!blk_submit(&disk, &slot->request, BLK_FLUSH, 0, 0, 0))
                return 3;
            continue;
        }
        print("safe %lu\n", slot->number);
        if (next < end) {
            if (!write_record(slot, next++))
                return 3;
        } else {
            under_way--;
        }
    }
    print("virtio-records: done\n");
    return 0;
}
