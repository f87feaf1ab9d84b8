# bootsect16: hello16 as a PC boot sector.
#
# A BIOS reads the first 512 bytes of a disk to 0x7c00, checks that the last two are 0x55 0xAA,
# and jumps there in real mode. Nothing else is certain: CS may be 0 or 0x7c0, DS anything, and
# the stack is somewhere. So a boot sector first puts its segments right.

.intel_syntax noprefix
.code16
.section .text
.globl _start
_start:
        cli                             # no interrupt may use the stack while SS:SP is half set
        xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7c00              # the stack grows down from below the sector
        ljmp    0, offset canonical     # CS = 0 from here on, whatever it was
canonical:
        cld
        mov     si, offset message
        mov     dx, 0x3f8               # COM1 transmit register
next:   lodsb
        test    al, al
        jz      done
        out     dx, al
        jmp     next

done:   cli
        hlt
        jmp     done

message:
        .asciz  "Hello from a boot sector\n"

        .org    510                     # the signature is the last word of the 512 bytes
        .byte   0x55, 0xaa
