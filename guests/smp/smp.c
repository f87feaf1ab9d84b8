/* smp: wakes the second CPU with INIT and SIPI; both count under a spin lock and with an atomic
   instruction. A lost update would show in the sums. */
#include "runtime.h"

uint32_t rounds = 300; /* increments by each CPU */

static volatile int lock;
static volatile unsigned counter; /* only under the lock */
static unsigned atomic_counter;
static volatile int go, finished;
static volatile uint32_t ap_id;

static void acquire(void)
{
    while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
        while (lock)
            pause();
}

static void release(void)
{
    __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
}

static void work(void)
{
    for (uint32_t i = 0; i < rounds; i++) {
        acquire();
        counter = counter + 1;
        release();
        __atomic_fetch_add(&atomic_counter, 1, __ATOMIC_SEQ_CST);
    }
}

static void second_cpu(void)
{
    ap_id = lapic_read(LAPIC_ID) >> 24;
    go = 1;
    work();
    finished = 1;
}

int main(void)
{
    print("CPU %u: started\n", lapic_read(LAPIC_ID) >> 24);
    if (!start_cpu(second_cpu)) {
        print("the second CPU did not start\n");
        return 2;
    }
    while (!go)
        pause();
    work();
    while (!finished)
        pause();
    print("CPU %u: started\n", ap_id);
    print("counter %u, atomic counter %u, expected %u\n", counter, atomic_counter, 2 * rounds);
    return counter != 2 * rounds || atomic_counter != 2 * rounds;
}
