/* compute2: two CPUs compute in ring 3 at the same time. Each notes the TSC when it starts and when
   it is done, so that the host can tell whether they really ran side by side. */
#include "runtime.h"
#include "work.h"

uint64_t turns = 1000000; /* for each CPU */
uint32_t cpus = 2;        /* 1: leave the second CPU alone */
struct result {
    uint64_t start, end, number;
} results[2];

static volatile int ready, go, finished;

static uint64_t work(uint64_t cpu, uint64_t n)
{
    results[cpu].start = rdtsc();
    uint64_t number = lcg(n, cpu + 1);
    results[cpu].end = rdtsc();
    return number;
}

static void second_cpu(void)
{
    ready = 1;
    while (!go)
        pause();
    results[1].number = ring3_call(work, 1, turns, 1);
    finished = 1;
}

int main(void)
{
    if (cpus == 2) {
        if (!start_cpu(second_cpu)) {
            print("the second CPU did not start\n");
            return 2;
        }
        while (!ready)
            pause();
        go = 1;
    }
    results[0].number = ring3_call(work, 0, turns, 0);
    while (cpus == 2 && !finished)
        pause();
    for (unsigned cpu = 0; cpu < cpus && cpu < 2; cpu++)
        print("cpu %u: %lu turns, start %lu, end %lu, result 0x%016lx\n", cpu, turns,
              results[cpu].start, results[cpu].end, results[cpu].number);
    return 0;
}
