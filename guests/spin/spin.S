# spin: an endless loop that never exits to the VMM. For time-outs, kicks and pauses: only a
# signal gets a vCPU out of here.

.intel_syntax noprefix
.code16
.section .text
.globl _start
_start:
        jmp     _start
