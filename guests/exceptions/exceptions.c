/* exceptions: faults on purpose, catches each through its own IDT, and goes on.

   The CPU pushes RIP of the faulting instruction (not of the next one), so a handler that just
   returned would fault again for ever. A handler can mend the cause and retry, or change RIP in
   the frame to go on elsewhere; both are shown. */
#include "runtime.h"

enum {
    READ_ONLY = 0x400000, /* a 2 MiB page that main() makes read-only */
    KERNEL_ONLY = 0x600000, /* one that it closes to ring 3 */
    HOLE = 0x40001000, /* an address without a page: 1-2 GiB is not mapped */
    DATA_PAGE_WRITABLE = 1 << 1, DATA_PAGE_USER = 1 << 2,
    CR0_WP = 1 << 16, /* ring 0 too obeys read-only pages */
};

extern uint64_t boot_pd[512];

static struct {
    uint64_t vector, error, rip, cr2, cs;
} seen;
static uint64_t fault_at, resume_at; /* set by FAULT, used by skip() */
static int wrong;

/* Note what came, and go on at the end of the FAULT block. */
static void skip(struct frame *frame)
{
    seen.vector = frame->vector;
    seen.error = frame->error;
    seen.rip = frame->rip;
    seen.cs = frame->cs;
    seen.cr2 = frame->vector == VECTOR_PF ? read_cr2() : 0;
    frame->rip = resume_at;
}

/* Runs one instruction that is expected to fault. The labels are local to the asm block. */
#define FAULT(instruction, ...)                    \
    do {                                           \
        seen.vector = ~0ul;                        \
        asm volatile("lea r8, 1f[rip]\n\t"         \
                     "mov %[at], r8\n\t"           \
                     "lea r8, 2f[rip]\n\t"         \
                     "mov %[to], r8\n"             \
                     "1:\t" instruction "\n"       \
                     "2:"                          \
                     : [at] "=m"(fault_at), [to] "=m"(resume_at) \
                     : __VA_ARGS__                 \
                     : "rax", "rdx", "r8", "memory"); \
    } while (0)

static void report(const char *what, uint64_t vector, uint64_t error, uint64_t cr2)
{
    int good = seen.vector == vector && seen.error == error && seen.cr2 == cr2 &&
               seen.rip == fault_at;
    if (seen.vector == ~0ul)
        print("%s: no exception", what);
    else
        print("%s: %s, error code 0x%lx", what, vector_name(seen.vector), seen.error);
    if (seen.vector == VECTOR_PF)
        print(", CR2 0x%lx", seen.cr2);
    print(good ? ", recovered\n" : ", WRONG\n");
    wrong += !good;
}

/* #DE is mended: the handler changes the divisor and lets the instruction run again. */
static void mend_divisor(struct frame *frame)
{
    frame->rcx = 6;
}

static uint64_t user_read_kernel_page(uint64_t address, uint64_t unused)
{
    (void)unused;
    FAULT("mov al, [%[a]]", [a] "D"(address));
    return 0;
}

static uint64_t user_halt(uint64_t a, uint64_t b)
{
    (void)a, (void)b;
    FAULT("hlt", "i"(0));
    return 0;
}

static uint64_t user_breakpoint(uint64_t a, uint64_t b)
{
    (void)a, (void)b;
    FAULT("int3", "i"(0));
    return 0;
}

int main(void)
{
    uint32_t quotient;
    set_handler(VECTOR_DE, mend_divisor);
    asm volatile("div ecx" : "=a"(quotient) : "a"(42), "d"(0), "c"(0));
    print("42 / 0: #DE, handler changed the divisor, 42 / 6 = %u\n", quotient);
    wrong += quotient != 7;

    set_handler(VECTOR_DE, skip);
    set_handler(VECTOR_BP, skip);
    set_handler(VECTOR_UD, skip);
    set_handler(VECTOR_GP, skip);
    set_handler(VECTOR_PF, skip);

    FAULT("div %[zero]", [zero] "c"(0));
    report("divide by zero", VECTOR_DE, 0, 0);
    FAULT("ud2", "i"(0));
    report("ud2", VECTOR_UD, 0, 0);
    FAULT("mov ds, %[selector]", [selector] "c"(0x1234));
    report("load selector 0x1234, beyond the GDT", VECTOR_GP, 0x1234, 0);
    FAULT("mov al, [%[a]]", [a] "D"(0x8000000000000000));
    report("read a non-canonical address", VECTOR_GP, 0, 0);

    /* Error code of #PF: bit 0 = the page is there, 1 = a write, 2 = from ring 3. */
    FAULT("mov al, [%[a]]", [a] "D"(HOLE));
    report("read an unmapped page", VECTOR_PF, 0, HOLE);
    FAULT("mov [%[a]], al", [a] "D"(HOLE + 8));
    report("write to an unmapped page", VECTOR_PF, 2, HOLE + 8);

    uint64_t cr0;
    asm volatile("mov %0, cr0" : "=r"(cr0));
    asm volatile("mov cr0, %0" : : "r"(cr0 | CR0_WP));
    boot_pd[READ_ONLY >> 21] &= ~DATA_PAGE_WRITABLE;
    boot_pd[KERNEL_ONLY >> 21] &= ~DATA_PAGE_USER;
    asm volatile("invlpg [%0]" : : "r"(READ_ONLY) : "memory");
    asm volatile("invlpg [%0]" : : "r"(KERNEL_ONLY) : "memory");
    FAULT("mov [%[a]], al", [a] "D"(READ_ONLY));
    report("write to a read-only page", VECTOR_PF, 3, READ_ONLY);

    ring3_call(user_read_kernel_page, KERNEL_ONLY, 0, 0);
    report("ring 3 reads a kernel page", VECTOR_PF, 5, KERNEL_ONLY);
    ring3_call(user_halt, 0, 0, 0);
    report("ring 3 executes hlt", VECTOR_GP, 0, 0);
    ring3_call(user_breakpoint, 0, 0, 0);
    fault_at++; /* #BP is a trap: RIP is behind the instruction */
    report("ring 3 executes int3", VECTOR_BP, 0, 0);
    print(wrong ? "%d wrong\n" : "all as expected\n", wrong);
    return wrong ? 1 : 0;
}
