# triplefault: crashes on purpose.
#
# UD2 raises #UD. The CPU looks for its handler in the IDT, which is empty (limit 0): that is a
# #GP, whose handler cannot be found either: a double fault, and for the same reason a triple
# fault. The CPU shuts down; KVM reports KVM_EXIT_SHUTDOWN.

.intel_syntax noprefix
.code32
.section .text
.globl _start
.globl crash
_start:
        mov     eax, 0x11111111         # values to find again in the crash report
        mov     ebx, 0x22222222
        mov     ecx, 0x33333333
        lidt    [empty_idt]
crash:  ud2

empty_idt:
        .word   0                       # limit
        .long   0                       # base
