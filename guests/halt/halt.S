# halt: the shortest clean end. With interrupts off (IF = 0) nothing wakes a halted CPU, so the
# VMM takes HLT for "the guest is done".

.intel_syntax noprefix
.code16
.section .text
.globl _start
_start:
        cli
        hlt
        jmp     _start                  # only an NMI gets here
