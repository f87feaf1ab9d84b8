# hello16: the smallest useful guest. 16-bit real mode, no stack, no tables.
#
# The image is flat: its bytes are copied to guest-physical address 0x1000 and the CPU starts at
# the first one, in real mode, with CS = DS = 0. Each character is one OUT to COM1 (port 0x3f8),
# so each character is one VM exit: `pykvm trace hello16` shows them.

.intel_syntax noprefix
.code16
.section .text
.globl _start
_start:
        xor     ax, ax
        mov     ds, ax                  # segment base 0: offsets are guest-physical addresses
        cld                             # LODSB counts upwards
        mov     si, offset message
        mov     dx, 0x3f8               # COM1 transmit register
next:   lodsb                           # al = [ds:si], si = si + 1
        test    al, al
        jz      done
        out     dx, al                  # KVM_EXIT_IO; a real UART would want a look at LSR first
        jmp     next

done:   cli                             # HLT with interrupts off: nothing can wake this CPU,
        hlt                             # the VMM calls it a clean end (exit status 0)
        jmp     done

message:
        .asciz  "Hello from 16-bit real mode\n"
