/* smp.c: wakes the second CPU, as Intel SDM vol. 3, "MP Initialization Protocol" tells. */
#include "runtime.h"

enum {
    AP_PAGE = 0x8000,
    ICR_INIT = 0x4500,    /* delivery mode INIT, assert */
    ICR_STARTUP = 0x4600, /* delivery mode start-up, assert; low byte = page number */
};

extern const uint8_t trampoline[], trampoline_end[];

void (*ap_function)(void);
static void (*ap_work)(void);
static volatile int ap_alive;

static void ap_begin(void)
{
    ap_alive = 1;
    ap_work();
}

/* Runs `function` on the CPU with APIC id 1. That CPU halts when it returns. */
int start_cpu(void (*function)(void))
{
    memcpy((void *)AP_PAGE, trampoline, trampoline_end - trampoline);
    ap_function = ap_begin;
    ap_work = function;
    lapic_init();
    lapic_write(LAPIC_ICR_HIGH, 1 << 24); /* destination: APIC id 1 */
    lapic_write(LAPIC_ICR_LOW, ICR_INIT);
    /* Real hardware wants 10 ms here, and a second SIPI; KVM's APIC needs neither. */
    lapic_write(LAPIC_ICR_HIGH, 1 << 24);
    lapic_write(LAPIC_ICR_LOW, ICR_STARTUP | AP_PAGE >> 12);
    uint64_t start = rdtsc();
    while (!ap_alive && rdtsc() - start < 4000000000) /* a second or more on any CPU */
        pause();
    return ap_alive;
}
