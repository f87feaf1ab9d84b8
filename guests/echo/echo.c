/* echo: sends back what comes in on COM1, driven by interrupts, until Ctrl-D.

   The UART's FIFOs stay off: switching them on throws away what has already come, and whoever
   pipes input into this guest may be faster than it. */
#include "runtime.h"

enum {
    COM1 = 0x3f8, /* +0: data */
    IER = COM1 + 1, LCR = COM1 + 3, MCR = COM1 + 4, LSR = COM1 + 5,
    COM1_IRQ = 4,
    CTRL_D = 4,
};

static volatile int done;

/* One interrupt may stand for several bytes: take them all, or the line stays up and an
   edge-triggered PIC never sees the next edge. */
static void on_serial(struct frame *frame)
{
    (void)frame;
    while (inb(LSR) & 1) {
        uint8_t byte = inb(COM1);
        if (byte == CTRL_D) {
            done = 1;
            break;
        }
        if (byte == '\r')
            outb(COM1, '\n');
        outb(COM1, byte);
    }
    pic_eoi(COM1_IRQ);
}

int main(void)
{
    pic_init();
    lapic_init();
    set_handler(VECTOR_PIC + COM1_IRQ, on_serial);
    set_handler(VECTOR_PIC + 7, pic_spurious);
    outb(LCR, 0x80); /* DLAB: the first two registers are the baud divisor */
    outb(COM1, 1);   /* 115200 */
    outb(IER, 0);
    outb(LCR, 0x03); /* 8 data bits, no parity, 1 stop bit */
    outb(MCR, 0x0b); /* DTR, RTS, and OUT2: the gate between the UART and the PIC in a PC */
    outb(IER, 0x01); /* interrupt when data has come */
    pic_mask((uint16_t)~(1 << COM1_IRQ));
    print("echo: Ctrl-D ends\n");
    while (!done)
        wait_for_interrupt();
    outb(IER, 0);
    print("\nbye\n");
    return 0;
}
