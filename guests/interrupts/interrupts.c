/* interrupts: the PIT through the PIC, and the local APIC's own timer; masked, unmasked, and held
   back by CLI. Each step waits for one timer while it counts the other, so that nothing here
   depends on how fast the CPU is. */
#include "runtime.h"

enum {
    PIT_CHANNEL0 = 0x40,
    PIT_COMMAND = 0x43,
    PIT_HZ = 1193182,
    LVT_MASKED = 1 << 16,
    LVT_PERIODIC = 1 << 17,
    DIVIDE_BY_1 = 0xb,
    MILLISECOND = 1000000, /* KVM's APIC timer counts nanoseconds at divisor 1 */
};

static volatile unsigned pit_ticks, apic_ticks;
static int wrong;

static void on_pit(struct frame *frame)
{
    (void)frame;
    pit_ticks++;
    pic_eoi(0);
}

static void on_apic_timer(struct frame *frame)
{
    (void)frame;
    apic_ticks++;
    lapic_write(LAPIC_EOI, 0);
}

static void check(const char *what, int good)
{
    print("%s: %s\n", what, good ? "ok" : "WRONG");
    wrong += !good;
}

/* KVM's PIT remembers ticks that the guest was too slow to take, and delivers them late. Setting
   the counter forgets them, so `ticks` then take that many milliseconds, or almost. */
static void start_pit(void)
{
    unsigned divisor = PIT_HZ / 1000;
    outb(PIT_COMMAND, 0x34); /* channel 0, low byte then high byte, mode 2: rate generator */
    outb(PIT_CHANNEL0, (uint8_t)divisor);
    outb(PIT_CHANNEL0, divisor >> 8);
}

static void wait_pit(unsigned ticks)
{
    start_pit();
    unsigned end = pit_ticks + ticks;
    while ((int)(pit_ticks - end) < 0)
        wait_for_interrupt();
}

static void wait_apic(unsigned ticks)
{
    unsigned end = apic_ticks + ticks;
    while ((int)(apic_ticks - end) < 0)
        wait_for_interrupt();
}

static void start_apic_timer(uint32_t mode, uint32_t count)
{
    lapic_write(LAPIC_LVT_TIMER, mode | VECTOR_TIMER);
    lapic_write(LAPIC_TIMER_INITIAL, count);
}

int main(void)
{
    pic_init();
    lapic_init();
    lapic_write(LAPIC_TIMER_DIVIDE, DIVIDE_BY_1);
    set_handler(VECTOR_PIC + 0, on_pit);
    set_handler(VECTOR_PIC + 7, pic_spurious);
    set_handler(VECTOR_TIMER, on_apic_timer);
    set_handler(VECTOR_SPURIOUS, pic_spurious);

    pic_mask(0xfffe);
    wait_pit(5);
    check("PIT at 1000 Hz: 5 ticks", pit_ticks >= 5);

    pic_mask(0xffff);
    unsigned before = pit_ticks;
    start_apic_timer(0, 5 * MILLISECOND);
    wait_apic(1);
    check("PIC masked: no PIT tick in 5 ms", pit_ticks == before);

    pic_mask(0xfffe);
    wait_pit(1);
    check("PIC unmasked: it ticks again", pit_ticks > before);

    apic_ticks = 0;
    start_apic_timer(0, MILLISECOND);
    wait_apic(1);
    wait_pit(5); /* time for a second one */
    check("APIC timer, one-shot 1 ms: fires once", apic_ticks == 1);

    apic_ticks = 0;
    start_apic_timer(LVT_PERIODIC, MILLISECOND);
    wait_apic(3);
    check("APIC timer, periodic 1 ms: 3 ticks", apic_ticks >= 3);

    start_apic_timer(LVT_MASKED | LVT_PERIODIC, MILLISECOND);
    wait_pit(5); /* let a tick that was already on its way arrive */
    apic_ticks = 0;
    wait_pit(5);
    check("APIC timer masked: silent", apic_ticks == 0);

    pic_mask(0xffff);
    apic_ticks = 0;
    start_apic_timer(0, MILLISECOND); /* with IF = 0, as it is outside of wait_for_interrupt() */
    while (lapic_read(LAPIC_TIMER_CURRENT) != 0)
        pause();
    check("CLI: the interrupt waits", apic_ticks == 0);
    wait_for_interrupt();
    check("STI: it comes", apic_ticks == 1);

    print(wrong ? "%d wrong\n" : "all as expected\n", wrong);
    return wrong ? 1 : 0;
}
