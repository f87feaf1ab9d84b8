/* exit.c: how a guest ends.

   0 is `cli; hlt`: with interrupts off nothing wakes the CPU, the VMM sees a guest that halted for
   good (exit status 0). Any other status goes to the debug-exit port, the VMM makes
   (status << 1) | 1 of it. */
#include "runtime.h"

enum { DEBUG_EXIT = 0xf4 };

void guest_exit(int status)
{
    if (status)
        outb(DEBUG_EXIT, (uint8_t)status);
    for (;;)
        asm volatile("cli; hlt");
}
