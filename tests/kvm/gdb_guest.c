/* What the tests of the GDB stub debug: functions to break on, variables to watch, a second CPU,
   a wait that can be interrupted, and a crash on demand. */
#include "runtime.h"

struct point {
    int x, y;
};

volatile int counter;
volatile int limit = 5;
volatile int how;        /* 0: end well, 1: wait for `go_on`, 2: triple fault */
volatile int go_on;
volatile struct point place = {3, 4};
volatile int second_runs, second_turns;

__attribute__((noinline)) int square(int n)
{
    int result = n * n;
    asm volatile("" : "+r"(result));
    return result;
}

__attribute__((noinline)) int length2(volatile struct point *p)
{
    int x2 = square(p->x);
    int y2 = square(p->y);
    return x2 + y2;
}

__attribute__((noinline)) void count(void)
{
    for (int i = 0; i < limit; i++)
        counter = counter + 1;
}

__attribute__((noinline)) void second_cpu(void)
{
    second_runs = 1;
    while (second_runs) {
        second_turns = second_turns + 1;
        pause();
    }
}

__attribute__((noinline)) void wait_here(void)
{
    while (!go_on)
        pause();
}

__attribute__((noinline)) void crash(void)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) idt = {0, 0};
    asm volatile("lidt %0; ud2" : : "m"(idt));
}

int main(void)
{
    int length = length2(&place);
    count();
    if (how == 1) {
        start_cpu(second_cpu);
        print("waiting\n");
        wait_here();
        second_runs = 0;
    }
    if (how == 2)
        crash();
    print("length %d, counter %d\n", length, counter);
    return 0;
}
