# idle: sleeps in HLT with interrupts on, for ever. With the in-kernel interrupt chips HLT does
# not exit: the vCPU's thread sleeps in the kernel and must cost no CPU time. Every device that
# could wake it is quiet: both PICs are masked.

.intel_syntax noprefix
.code16
.section .text
.globl _start
_start:
        cli
        mov     al, 0xff
        out     0x21, al                # mask every line of the first PIC
        out     0xa1, al                # and of the second
        sti
sleep:  hlt
        jmp     sleep
