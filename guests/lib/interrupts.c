/* interrupts.c: the IDT, handlers by vector, and a report for exceptions that nobody expected. */
#include "runtime.h"

enum { VECTORS = 64, RING3_EXIT_VECTOR = 4, KERNEL_CODE = 8 };

struct gate {
    uint16_t offset_low, selector;
    uint8_t ist, type;
    uint16_t offset_middle;
    uint32_t offset_high, reserved;
};

extern const uint8_t vector_stubs[VECTORS][16];
extern const uint8_t ring3_exit[];

static struct gate idt[VECTORS];
static handler handlers[VECTORS];

static void set_gate(unsigned vector, const void *code, unsigned dpl)
{
    uint32_t address = (uint32_t)(uintptr_t)code; /* the image lies below 4 GiB */
    idt[vector].offset_low = (uint16_t)address;
    idt[vector].selector = KERNEL_CODE;
    idt[vector].type = 0x8e | dpl << 5; /* present, 64-bit interrupt gate */
    idt[vector].offset_middle = address >> 16;
}

void interrupts_load(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, (uintptr_t)idt};
    asm volatile("lidt %0" : : "m"(pointer));
}

void interrupts_init(void)
{
    for (unsigned vector = 0; vector < VECTORS; vector++)
        set_gate(vector, vector_stubs[vector], vector == 3 ? 3 : 0); /* ring 3 may use INT3 */
    set_gate(RING3_EXIT_VECTOR, ring3_exit, 3); /* DPL 3: ring 3 may use INT on it */
    interrupts_load();
}

void set_handler(unsigned vector, handler function)
{
    handlers[vector] = function;
}

const char *vector_name(unsigned vector)
{
    static const char names[22][4] = {"#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM",
                                      "#DF", "?",   "#TS", "#NP", "#SS", "#GP", "#PF", "?",
                                      "#MF", "#AC", "#MC", "#XM", "#VE", "#CP"};
    return vector < 22 ? names[vector] : "interrupt";
}

/* Called by interrupt_common in interrupts.S. */
void interrupt_dispatch(struct frame *frame)
{
    if (handlers[frame->vector]) {
        handlers[frame->vector](frame);
        return;
    }
    print("unexpected %s (vector %lu), error code 0x%lx, at 0x%lx\n", vector_name(frame->vector),
          frame->vector, frame->error, frame->rip);
    print("  rax=%016lx rbx=%016lx rcx=%016lx rdx=%016lx\n", frame->rax, frame->rbx, frame->rcx,
          frame->rdx);
    print("  rsi=%016lx rdi=%016lx rbp=%016lx rsp=%016lx\n", frame->rsi, frame->rdi, frame->rbp,
          frame->rsp);
    print("  cs=%lx ss=%lx rflags=%lx cr2=%lx\n", frame->cs, frame->ss, frame->rflags, read_cr2());
    guest_exit(0x40 | frame->vector);
}
