/* The C runtime of the 64-bit guests: what a function here does is told beside its code. */
#pragma once
#include <stddef.h>
#include <stdint.h>

/* ports and registers ------------------------------------------------------------------------ */

static inline void outb(uint16_t port, uint8_t value)
{
    asm volatile("out dx, al" : : "d"(port), "a"(value));
}

static inline void outw(uint16_t port, uint16_t value)
{
    asm volatile("out dx, ax" : : "d"(port), "a"(value));
}

static inline void outl(uint16_t port, uint32_t value)
{
    asm volatile("out dx, eax" : : "d"(port), "a"(value) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    asm volatile("in al, dx" : "=a"(value) : "d"(port));
    return value;
}

static inline uint16_t inw(uint16_t port)
{
    uint16_t value;
    asm volatile("in ax, dx" : "=a"(value) : "d"(port));
    return value;
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t value;
    asm volatile("in eax, dx" : "=a"(value) : "d"(port) : "memory");
    return value;
}

static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (uint64_t)high << 32 | low;
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
    asm volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

static inline void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    asm volatile("cpuid"
                 : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
                 : "a"(leaf), "c"(subleaf));
}

static inline uint64_t rdtsc(void)
{
    uint32_t low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static inline uint64_t read_cr2(void)
{
    uint64_t value;
    asm volatile("mov %0, cr2" : "=r"(value));
    return value;
}

static inline void cli(void) { asm volatile("cli" : : : "memory"); }
static inline void pause(void) { asm volatile("pause" : : : "memory"); }

/* Sleep until an interrupt has been handled. STI opens the door only after the next instruction,
   so the interrupt cannot slip in between and leave HLT waiting for one that has already been. */
static inline void wait_for_interrupt(void) { asm volatile("sti; hlt; cli" : : : "memory"); }

void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t strlen(const char *s);

/* serial output (console.c) ------------------------------------------------------------------- */

void serial_write(const char *bytes, size_t n);
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* the end (exit.c) ---------------------------------------------------------------------------- */

void guest_exit(int status) __attribute__((noreturn));

/* exceptions and interrupts (interrupts.c, interrupts.S) -------------------------------------- */

struct frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8;
    uint64_t rbp, rdi, rsi, rdx, rcx, rbx, rax;
    uint64_t vector, error;
    uint64_t rip, cs, rflags, rsp, ss; /* pushed by the CPU */
};

typedef void (*handler)(struct frame *);

enum {
    VECTOR_DE = 0, VECTOR_BP = 3, VECTOR_UD = 6, VECTOR_GP = 13, VECTOR_PF = 14,
    VECTOR_PIC = 0x20,   /* IRQ 0..15 of the two PICs, after pic_init() */
    VECTOR_TIMER = 0x30, /* local APIC timer */
    VECTOR_VIRTIO = 0x31, /* and the next seven: virtio devices, see virtio_wait.c */
    VECTOR_SPURIOUS = 0x3f,
};

void set_handler(unsigned vector, handler function);
const char *vector_name(unsigned vector);

/* interrupt controllers (apic.c) -------------------------------------------------------------- */

enum {
    LAPIC_ID = 0x20, LAPIC_EOI = 0xb0, LAPIC_SPURIOUS = 0xf0, LAPIC_ICR_LOW = 0x300,
    LAPIC_ICR_HIGH = 0x310, LAPIC_LVT_TIMER = 0x320, LAPIC_LVT_LINT0 = 0x350,
    LAPIC_TIMER_INITIAL = 0x380, LAPIC_TIMER_CURRENT = 0x390, LAPIC_TIMER_DIVIDE = 0x3e0,
};

uint32_t lapic_read(unsigned reg);
void lapic_write(unsigned reg, uint32_t value);
void lapic_init(void);
void pic_init(void);
void pic_mask(uint16_t mask);
void pic_eoi(unsigned irq);
void pic_spurious(struct frame *frame);

enum { IOAPIC_EDGE = 0, IOAPIC_LEVEL = 1 << 15 };
void ioapic_route(unsigned gsi, unsigned vector, uint32_t trigger);

/* other privilege levels and CPUs ------------------------------------------------------------- */

uint64_t ring3_call(uint64_t (*function)(uint64_t, uint64_t), uint64_t a, uint64_t b, int cpu);
int start_cpu(void (*function)(void)); /* 1: it runs; 0: nobody answered (smp.c) */
