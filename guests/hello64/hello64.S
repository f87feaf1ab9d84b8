# hello64: an ELF64 executable in 64-bit long mode.
#
# The loader gives a 64-bit executable what long mode cannot do without: page tables that map
# memory one to one, a 64-bit code segment, and EFER.LMA = 1. The guest only has to print.
#
# The second entry, pvh_entry in lib/pvh.S, starts the same guest from 32-bit protected mode for
# VMMs that boot ELF64 files through a PVH note (QEMU's -kernel does).

.intel_syntax noprefix
.code64
.section .text
.globl _start
_start:
        cld
        lea     rsi, message[rip]       # RIP-relative: the 64-bit way to name data
        mov     edx, 0x3f8              # COM1 transmit register
next:   lodsb                           # al = [rsi], rsi = rsi + 1
        test    al, al
        jz      done
        out     dx, al                  # one VM exit a character
        jmp     next

done:   cli
        hlt
        jmp     done

.section .rodata
message:
        .asciz  "Hello from 64-bit long mode\n"
