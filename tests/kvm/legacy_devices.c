/* The PC's legacy devices as a kernel uses them: RTC, keyboard, counter 2 by the PIC, then the
   timer, the RTC, the keyboard and a level-triggered line by the I/O APIC. Linked by
   test_legacy_devices.py with the guests' runtime. It prints what it finds; times do not matter. */
#include "runtime.h"

enum {
    CMOS = 0x70, KEYBOARD = 0x60, KEYBOARD_STATUS = 0x64, PIT = 0x40, PORT_B = 0x61,
    TYPIST = 0xe0, TEST_IRQ = 0x2000, PAGE_IRQ = 16,
    VECTOR_LEVEL = 0x31,
    REG_A = 10, REG_B = 11, REG_C = 12,
};

static volatile unsigned ticks, rtc_ticks, keys, levels, by_pic;
static volatile uint8_t typed[64];

static uint8_t cmos(uint8_t at)
{
    outb(CMOS, at);
    return inb(CMOS + 1);
}

static void set_cmos(uint8_t at, uint8_t value)
{
    outb(CMOS, at);
    outb(CMOS + 1, value);
}

static volatile uint32_t *const ioapic = (volatile uint32_t *)0xfec00000;

static uint32_t ioapic_read(unsigned at)
{
    ioapic[0] = at;
    return ioapic[4];
}

static void ioapic_write(unsigned at, uint32_t value)
{
    ioapic[0] = at;
    ioapic[4] = value;
}

static void end(unsigned irq)
{
    if (by_pic)
        pic_eoi(irq);
    else
        lapic_write(LAPIC_EOI, 0);
}

static void on_timer(struct frame *frame)
{
    (void)frame;
    ticks++;
    end(0);
}

static void on_key(struct frame *frame)
{
    (void)frame;
    if (keys < sizeof typed)
        typed[keys++] = inb(KEYBOARD);
    end(1);
}

static void on_rtc(struct frame *frame)
{
    (void)frame;
    if (cmos(REG_C) & 0xc0)
        rtc_ticks++;
    end(8);
}

static void on_level(struct frame *frame)
{
    (void)frame;
    if (++levels == 3)
        outb(TEST_IRQ + PAGE_IRQ, 0); /* the device lets go after the third time */
    end(PAGE_IRQ);
}

static void show_keys(unsigned n)
{
    while (keys < n)
        wait_for_interrupt();
    for (unsigned i = 0; i < n; i++)
        print(" %x", typed[i]);
    print("\n");
    keys = 0;
}

static void periodic(int on)
{
    set_cmos(REG_A, 0x26); /* 1024 Hz */
    set_cmos(REG_B, on ? 0x42 : 0x02);
    cmos(REG_C);
}

static void start_pit(unsigned hertz)
{
    unsigned divisor = 1193182 / hertz;
    outb(PIT + 3, 0x34);
    outb(PIT, (uint8_t)divisor);
    outb(PIT, divisor >> 8);
}

int main(void)
{
    pic_init();
    lapic_init();
    set_handler(VECTOR_PIC + 0, on_timer); /* the vectors serve both, one after the other */
    set_handler(VECTOR_PIC + 1, on_key);
    set_handler(VECTOR_PIC + 8, on_rtc);
    set_handler(VECTOR_PIC + 7, pic_spurious);
    set_handler(VECTOR_LEVEL, on_level);
    set_handler(VECTOR_SPURIOUS, pic_spurious);

    print("date %x%x-%x-%x\n", cmos(0x32), cmos(9), cmos(8), cmos(7));
    print("RAM %u KiB above 1 MiB\n", cmos(0x17) | cmos(0x18) << 8);

    by_pic = 1;
    pic_mask(0xfef8); /* 0, 1, 2 and 8 are on */
    periodic(1);
    while (rtc_ticks < 5)
        wait_for_interrupt();
    periodic(0);
    print("RTC ticks by the PIC\n");
    outb(TYPIST, 1);
    print("typed:");
    show_keys(8);

    outb(PORT_B, inb(PORT_B) | 1); /* counter 2: mode 0, 10 ms */
    outb(PIT + 3, 0xb0);
    outb(PIT + 2, 0x9c);
    outb(PIT + 2, 0x2e);
    while (!(inb(PORT_B) & 0x20))
        pause();
    print("counter 2 has counted down\n");

    by_pic = 0;
    pic_mask(0xffff);
    unsigned pins = (ioapic_read(1) >> 16 & 0xff) + 1;
    print("I/O APIC with %u pins\n", pins);
    ioapic_write(0x10 + 2 * 2, VECTOR_PIC + 0); /* IRQ 0 is pin 2 on PCs, 0 in KVM by default */
    ioapic_write(0x10 + 2 * 0, VECTOR_PIC + 0);
    ioapic_write(0x10 + 2 * 1, VECTOR_PIC + 1);
    ioapic_write(0x10 + 2 * 8, VECTOR_PIC + 8);
    ioapic_write(0x10 + 2 * PAGE_IRQ, 0x8000 | VECTOR_LEVEL);
    ticks = rtc_ticks = 0;
    start_pit(500);
    while (ticks < 5)
        wait_for_interrupt();
    ioapic_write(0x10 + 2 * 2, 1 << 16);
    ioapic_write(0x10 + 2 * 0, 1 << 16);
    periodic(1);
    while (rtc_ticks < 5)
        wait_for_interrupt();
    periodic(0);
    print("timer and RTC by the I/O APIC\n");
    outb(TYPIST, 2);
    print("typed:");
    show_keys(4);
    outb(TEST_IRQ + PAGE_IRQ, 1);
    while (levels < 3)
        wait_for_interrupt();
    outb(TEST_IRQ + PAGE_IRQ, 1);
    levels = 0;
    while (levels < 3)
        wait_for_interrupt();
    print("a level comes until it ends\n");
    return 0;
}
