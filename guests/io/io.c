/* io: an interpreter for lists of port and MMIO accesses.

   With the list that it brings along it does every port width in both directions, REP INS and
   OUTS with 1, 3 and 4096 elements, and MMIO of 1, 2, 4 and 8 bytes, aligned and across the border
   of two pages. A host test gives it a list of its own (see io.h) and afterwards finds in `value`
   and in the buffers what the guest has read. */
#include "runtime.h"
#include "io.h"

enum { MAX_OPERATIONS = 1024, PORT = 0x300, MMIO = 0xd0000000 };

uint32_t quiet; /* 1: print nothing but the end */
struct operation program[MAX_OPERATIONS];
uint8_t data[131072] __attribute__((aligned(4096))); /* room for buffers */

/* One string instruction at each width; `direction` is cld or std, port or memory alike. */
#define STRING(instruction, size, di, si, n, dx, ax, flags)                                     \
    do {                                                                                        \
        if ((flags) & FLAG_BACKWARDS)                                                           \
            asm volatile("std; rep " instruction "; cld"                                        \
                         : "+D"(di), "+S"(si), "+c"(n) : "d"(dx), "a"(ax) : "memory");          \
        else                                                                                    \
            asm volatile("rep " instruction                                                     \
                         : "+D"(di), "+S"(si), "+c"(n) : "d"(dx), "a"(ax) : "memory");          \
    } while (0)

static void string_operation(struct operation *op, uint64_t di, uint64_t si)
{
    uint64_t n = op->count;
    uint16_t port = (uint16_t)op->address;
    uint64_t ax = op->value;
    switch (op->code << 8 | op->size) {
    case OP_INS << 8 | 1: STRING("insb", 1, di, si, n, port, ax, op->flags); break;
    case OP_INS << 8 | 2: STRING("insw", 2, di, si, n, port, ax, op->flags); break;
    case OP_INS << 8 | 4: STRING("insd", 4, di, si, n, port, ax, op->flags); break;
    case OP_OUTS << 8 | 1: STRING("outsb", 1, di, si, n, port, ax, op->flags); break;
    case OP_OUTS << 8 | 2: STRING("outsw", 2, di, si, n, port, ax, op->flags); break;
    case OP_OUTS << 8 | 4: STRING("outsd", 4, di, si, n, port, ax, op->flags); break;
    case OP_LOADS << 8 | 1:
    case OP_STORES << 8 | 1: STRING("movsb", 1, di, si, n, port, ax, op->flags); break;
    case OP_LOADS << 8 | 2:
    case OP_STORES << 8 | 2: STRING("movsw", 2, di, si, n, port, ax, op->flags); break;
    case OP_LOADS << 8 | 4:
    case OP_STORES << 8 | 4: STRING("movsd", 4, di, si, n, port, ax, op->flags); break;
    case OP_LOADS << 8 | 8:
    case OP_STORES << 8 | 8: STRING("movsq", 8, di, si, n, port, ax, op->flags); break;
    case OP_FILL << 8 | 1: STRING("stosb", 1, di, si, n, port, ax, op->flags); break;
    case OP_FILL << 8 | 2: STRING("stosw", 2, di, si, n, port, ax, op->flags); break;
    case OP_FILL << 8 | 4: STRING("stosd", 4, di, si, n, port, ax, op->flags); break;
    case OP_FILL << 8 | 8: STRING("stosq", 8, di, si, n, port, ax, op->flags); break;
    }
}

static void memory_operation(struct operation *op)
{
    switch (op->code << 8 | op->size) {
    case OP_LOAD << 8 | 1: op->value = *(volatile uint8_t *)op->address; break;
    case OP_LOAD << 8 | 2: op->value = *(volatile uint16_t *)op->address; break;
    case OP_LOAD << 8 | 4: op->value = *(volatile uint32_t *)op->address; break;
    case OP_LOAD << 8 | 8: op->value = *(volatile uint64_t *)op->address; break;
    case OP_STORE << 8 | 1: *(volatile uint8_t *)op->address = op->value; break;
    case OP_STORE << 8 | 2: *(volatile uint16_t *)op->address = op->value; break;
    case OP_STORE << 8 | 4: *(volatile uint32_t *)op->address = op->value; break;
    case OP_STORE << 8 | 8: *(volatile uint64_t *)op->address = op->value; break;
#define ADD(type)                                                                               \
    asm volatile("add %0, %1" : "+m"(*(type *)op->address) : "r"((type)op->value) : "memory")
    case OP_ADD << 8 | 1: ADD(uint8_t); break;
    case OP_ADD << 8 | 2: ADD(uint16_t); break;
    case OP_ADD << 8 | 4: ADD(uint32_t); break;
    case OP_ADD << 8 | 8: ADD(uint64_t); break;
    }
}

static uint64_t perform(uint64_t operation, uint64_t unused)
{
    struct operation *op = (void *)operation;
    (void)unused;
    switch (op->code) {
    case OP_IN:
        op->value = op->size == 1 ? inb(op->address) : op->size == 2 ? inw(op->address)
                                                                     : inl(op->address);
        break;
    case OP_OUT:
        if (op->size == 1)
            outb(op->address, op->value);
        else if (op->size == 2)
            outw(op->address, op->value);
        else
            outl(op->address, op->value);
        break;
    case OP_INS: string_operation(op, op->buffer, 0); break;
    case OP_OUTS: string_operation(op, 0, op->buffer); break;
    case OP_LOADS: string_operation(op, op->buffer, op->address); break;
    case OP_STORES: string_operation(op, op->address, op->buffer); break;
    case OP_FILL: string_operation(op, op->address, 0); break;
    default: memory_operation(op);
    }
    return 0;
}

static int valid(const struct operation *op)
{
    if (op->code >= OP_COUNT)
        return 0;
    if (op->code <= OP_OUTS && op->flags & FLAG_RING3)
        return 0;
    return op->size == 1 || op->size == 2 || op->size == 4 ||
           (op->size == 8 && op->code >= OP_LOAD);
}

static struct operation *add(struct operation *op, int code, int size, uint32_t count,
                             uint64_t address, uint64_t value)
{
    op->code = code;
    op->size = size;
    op->count = count;
    op->address = address;
    op->value = value;
    op->buffer = (uint64_t)data;
    return op + 1;
}

/* The list that the guest brings along. The data that OUTS sends is what INS has read before. */
static void default_program(void)
{
    static const uint32_t counts[] = {1, 3, 4096};
    struct operation *op = program;
    for (int size = 1; size <= 4; size *= 2) {
        op = add(op, OP_OUT, size, 1, PORT, 0x44332211);
        op = add(op, OP_IN, size, 1, PORT, 0);
    }
    for (int size = 1; size <= 4; size *= 2)
        for (int i = 0; i < 3; i++) {
            op = add(op, OP_INS, size, counts[i], PORT, 0);
            op = add(op, OP_OUTS, size, counts[i], PORT, 0);
        }
    for (int size = 1; size <= 8; size *= 2) {
        op = add(op, OP_STORE, size, 1, MMIO, 0x8877665544332211);
        op = add(op, OP_LOAD, size, 1, MMIO, 0);
    }
    for (int size = 2; size <= 8; size *= 2) { /* the first byte is the last of its page */
        op = add(op, OP_STORE, size, 1, MMIO + 0xfff, 0x8877665544332211);
        op = add(op, OP_LOAD, size, 1, MMIO + 0xfff, 0);
    }
    op = add(op, OP_LOADS, 4, 8, MMIO + 0xff0, 0);
    op = add(op, OP_STORES, 4, 8, MMIO + 0xff0, 0);
    add(op, OP_END, 0, 0, 0, 0);
}

static void report(const struct operation *op)
{
    static const char names[OP_COUNT][7] = {"", "in", "out", "ins", "outs", "load", "store",
                                            "loads", "stores", "fill", "add"};
    print("%s %u x %u at 0x%lx", names[op->code], op->count, op->size, op->address);
    if (op->code == OP_IN || op->code == OP_LOAD)
        print(": 0x%lx", op->value);
    else if (op->code == OP_INS || op->code == OP_LOADS)
        print(": first byte 0x%x, last 0x%x", *(uint8_t *)op->buffer,
              ((uint8_t *)op->buffer)[(uint64_t)op->count * op->size - 1]);
    print("\n");
}

int main(void)
{
    unsigned done = 0;
    if (program[0].code == OP_END)
        default_program();
    for (struct operation *op = program; op < program + MAX_OPERATIONS && op->code; op++, done++) {
        if (!valid(op)) {
            print("operation %u is not valid\n", done);
            return 1;
        }
        if (op->flags & FLAG_RING3)
            ring3_call(perform, (uint64_t)op, 0, 0);
        else
            perform((uint64_t)op, 0);
        if (!quiet && !(op->flags & FLAG_BACKWARDS))
            report(op);
    }
    print("io: %u operations\n", done);
    return 0;
}
