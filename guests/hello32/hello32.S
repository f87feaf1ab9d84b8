# hello32: an ELF32 executable in 32-bit protected mode, paging off.
#
# The loader copies the PT_LOAD segments to their physical addresses and starts the CPU at
# e_entry with flat segments: base 0, limit 4 GiB, so an offset is a guest-physical address.
# Interrupts are off and there is no stack; this guest needs none.

.intel_syntax noprefix
.code32
.section .text
.globl _start
_start:
        cld
        mov     esi, offset message
        mov     dx, 0x3f8               # COM1 transmit register
next:   lodsb                           # al = [esi], esi = esi + 1
        test    al, al
        jz      done
        out     dx, al                  # one VM exit a character
        jmp     next

done:   cli
        hlt
        jmp     done

.section .rodata
message:
        .asciz  "Hello from 32-bit protected mode\n"
