/* echo-polled: sends back what comes in on COM1 until Ctrl-D, without interrupts: it asks the line
   status register again and again, and every look is an exit. Compare with echo. */
#include "runtime.h"

enum { COM1 = 0x3f8, LSR = COM1 + 5, CTRL_D = 4 };

int main(void)
{
    print("echo-polled: Ctrl-D ends\n");
    for (;;) {
        if (!(inb(LSR) & 1)) /* data ready? */
            continue;
        uint8_t byte = inb(COM1);
        if (byte == CTRL_D)
            break;
        if (byte == '\r')
            outb(COM1, '\n');
        outb(COM1, byte);
    }
    print("\nbye\n");
    return 0;
}
