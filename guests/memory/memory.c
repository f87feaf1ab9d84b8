/* memory: touches and copies guest memory, in ring 3 so that it runs at the CPU's own speed on
   every host. For dirty logging, snapshots, resets and page-fault costs.

   Each round touches one word every `stride` bytes of [start, start + length). */
#include "runtime.h"

enum { TOUCH = 0, READ = 1, COPY = 2, FILL = 3 };

uint32_t operation = TOUCH;
uint32_t rounds = 1;
uint64_t start = 0x200000;
uint64_t length = 0x100000;
uint64_t stride = 4096;
uint64_t destination = 0x300000; /* COPY */

static uint64_t run(uint64_t round, uint64_t unused)
{
    (void)unused;
    uint64_t sum = 0;
    switch (operation) {
    case TOUCH: /* write the round and the address, so that the host can check every word */
        for (uint64_t a = start; a + 8 <= start + length; a += stride)
            *(volatile uint64_t *)a = a + round;
        break;
    case READ:
        for (uint64_t a = start; a + 8 <= start + length; a += stride)
            sum += *(volatile uint64_t *)a;
        break;
    case COPY:
        memcpy((void *)destination, (void *)start, length);
        break;
    case FILL:
        memset((void *)start, (int)round, length);
        break;
    }
    return sum;
}

int main(void)
{
    uint64_t sum = 0, begin = rdtsc();
    if (operation > FILL || stride == 0) {
        print("operation must be 0 to 3, stride not 0\n");
        return 1;
    }
    for (uint32_t round = 1; round <= rounds; round++)
        sum += ring3_call(run, round, 0, 0);
    print("memory: operation %u, %u rounds over 0x%lx bytes at 0x%lx, sum 0x%lx, %lu ticks\n",
          operation, rounds, length, start, sum, rdtsc() - begin);
    return 0;
}
