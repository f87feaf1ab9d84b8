# pio-loop: `count` port accesses, nothing else. For measuring what one PIO exit costs.
#
# The image is flat and its parameters stand at fixed addresses behind the first jump, so a VMM
# of a few lines of C can set them too. The loop is unrolled 16 times: of what is measured, as
# little as possible is the guest's own counting.
#
#       0x1004  u32 count       accesses to make
#       0x1008  u16 port        where
#       0x100a  u16 direction   0 = OUT, 1 = IN
#
# Ends with a write of 0 to the debug-exit port (exit status 1).

.intel_syntax noprefix
.code16
.section .text
.globl _start, count, port, direction
_start:
        jmp     begin
        .org    4
count:          .long   10000
port:           .word   0x10
direction:      .word   0
        .size   count, 4
        .size   port, 2
        .size   direction, 2

begin:  xor     ax, ax
        mov     ds, ax
        mov     dx, port
        mov     ecx, count
        mov     ebx, ecx
        shr     ecx, 4                  # ecx = whole rounds of 16
        and     ebx, 15                 # ebx = what is left
        cmp     word ptr direction, 0
        jne     inputs

outputs:
        test    ebx, ebx
        jz      2f
1:      out     dx, al
        dec     ebx
        jnz     1b
2:      test    ecx, ecx
        jz      done
3:      .rept   16
        out     dx, al
        .endr
        dec     ecx
        jnz     3b
        jmp     done

inputs:
        test    ebx, ebx
        jz      2f
1:      in      al, dx
        dec     ebx
        jnz     1b
2:      test    ecx, ecx
        jz      done
3:      .rept   16
        in      al, dx
        .endr
        dec     ecx
        jnz     3b

done:   xor     al, al
        out     0xf4, al
stop:   cli
        hlt
        jmp     stop
