/* apic.c: the interrupt controllers of a PC: the pair of 8259 PICs, the IOAPIC and the local APIC. */
#include "runtime.h"

enum { PIC1 = 0x20, PIC2 = 0xa0, LAPIC_BASE = 0xfee00000, IOAPIC_BASE = 0xfec00000 };

uint32_t lapic_read(unsigned reg)
{
    return *(volatile uint32_t *)(uintptr_t)(LAPIC_BASE + reg);
}

void lapic_write(unsigned reg, uint32_t value)
{
    *(volatile uint32_t *)(uintptr_t)(LAPIC_BASE + reg) = value;
}

/* Switch the local APIC on, and let the PIC through: LINT0 is wired to the PIC's output, delivery
   mode 7 (ExtINT) means "ask the PIC for the vector". */
void lapic_init(void)
{
    lapic_write(LAPIC_SPURIOUS, 0x100 | VECTOR_SPURIOUS);
    lapic_write(LAPIC_LVT_LINT0, 7 << 8);
}

/* The PICs come up with IRQ 0..7 on vectors 8..15, where the exceptions are: move them. */
void pic_init(void)
{
    outb(PIC1, 0x11); /* ICW1: edge triggered, cascade, ICW4 follows */
    outb(PIC2, 0x11);
    outb(PIC1 + 1, VECTOR_PIC); /* ICW2: first vector */
    outb(PIC2 + 1, VECTOR_PIC + 8);
    outb(PIC1 + 1, 1 << 2); /* ICW3: the second PIC is on IRQ 2 */
    outb(PIC2 + 1, 2);
    outb(PIC1 + 1, 1); /* ICW4: 8086 mode */
    outb(PIC2 + 1, 1);
    pic_mask(0xffff);
}

/* One bit an IRQ line; 1 = masked. */
void pic_mask(uint16_t mask)
{
    outb(PIC1 + 1, (uint8_t)mask);
    outb(PIC2 + 1, mask >> 8);
}

void pic_eoi(unsigned irq)
{
    if (irq >= 8)
        outb(PIC2, 0x20);
    outb(PIC1, 0x20);
}

/* For set_handler(VECTOR_PIC + 7, …): the PIC's way to say that a request went away before the CPU
   asked. There is nothing to do, and no EOI to give. */
void pic_spurious(struct frame *frame)
{
    (void)frame;
}

/* The IOAPIC sends its input `gsi` to the first CPU as `vector`. Two registers a pin, reached through
   a window: the index goes to offset 0, the data to offset 0x10. */
void ioapic_route(unsigned gsi, unsigned vector, uint32_t trigger)
{
    volatile uint32_t *window = (volatile uint32_t *)(uintptr_t)IOAPIC_BASE;
    window[0] = 0x11 + 2 * gsi;
    window[4] = 0; /* destination: APIC id 0 */
    window[0] = 0x10 + 2 * gsi;
    window[4] = vector | trigger; /* fixed delivery, active high, not masked */
}
