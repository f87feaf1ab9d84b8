/* selfmod: code that rewrites itself, in ring 0 and in ring 3.

   Whoever caches or translates guest code (a TLB, a JIT, a shadow page table, a code breakpoint)
   must notice the write. x86 promises it: a jump after the store is enough. */
#include "runtime.h"

/* mov eax, imm32; ret: the four bytes after the first are the number that it returns. */
extern uint8_t patched[];
asm(".pushsection .text.patched, \"ax\"\n"
    ".globl patched\n"
    "patched: .byte 0xb8\n"
    "         .long 0\n"
    "         ret\n"
    ".popsection");

/* Returns how many of `rounds` calls gave the number that was just written into the code. */
static uint64_t patch_and_call(uint64_t rounds, uint64_t seed)
{
    uint64_t good = 0;
    for (uint64_t i = 0; i < rounds; i++) {
        uint32_t number = seed + i;
        *(volatile uint32_t *)(patched + 1) = number;
        good += ((uint32_t(*)(void))patched)() == number;
    }
    return good;
}

int main(void)
{
    uint64_t ring0 = patch_and_call(20, 100);
    print("ring 0: %s\n", ring0 == 20 ? "OK" : "STALE CODE");
    uint64_t ring3 = ring3_call(patch_and_call, 1000, 100000, 0);
    print("ring 3: %s\n", ring3 == 1000 ? "OK" : "STALE CODE");
    uint64_t again = patch_and_call(20, 7);
    print("ring 0 after ring 3: %s\n", again == 20 ? "OK" : "STALE CODE");
    return ring0 != 20 || ring3 != 1000 || again != 20;
}
