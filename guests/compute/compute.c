/* compute: `turns` turns of arithmetic in 64-bit ring 3, without a single exit. */
#include "runtime.h"
#include "work.h"

uint64_t turns = 1000000;
uint64_t seed = 1;
uint64_t results[3]; /* TSC at the start, at the end, the number computed */

static uint64_t work(uint64_t n, uint64_t from)
{
    results[0] = rdtsc();
    uint64_t result = lcg(n, from);
    results[1] = rdtsc();
    return result;
}

int main(void)
{
    results[2] = ring3_call(work, turns, seed, 0);
    print("compute: %lu turns, result 0x%016lx, %lu ticks\n", turns, results[2],
          results[1] - results[0]);
    return 0;
}
