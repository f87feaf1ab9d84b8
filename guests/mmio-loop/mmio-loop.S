# mmio-loop: `count` 4-byte accesses to one MMIO address. For measuring what one MMIO exit costs.
#
# Flat, in 32-bit protected mode without paging, so that the address may be anywhere below 4 GiB.
# Parameters at fixed addresses, as in pio-loop:
#
#       0x1004  u32 count       accesses to make
#       0x1008  u32 address     where (guest-physical)
#       0x100c  u32 direction   0 = write, 1 = read
#
# Ends with a write of 0 to the debug-exit port (exit status 1).

.intel_syntax noprefix
.code32
.section .text
.globl _start, count, address, direction
_start:
        jmp     begin
        .org    4
count:          .long   10000
address:        .long   0xd0000000
direction:      .long   0
        .size   count, 4
        .size   address, 4
        .size   direction, 4

begin:  mov     edi, address
        mov     ecx, count
        mov     ebx, ecx
        shr     ecx, 4                  # ecx = whole rounds of 16
        and     ebx, 15                 # ebx = what is left
        cmp     dword ptr direction, 0
        jne     loads

stores: test    ebx, ebx
        jz      2f
1:      mov     [edi], eax
        dec     ebx
        jnz     1b
2:      test    ecx, ecx
        jz      done
3:      .rept   16
        mov     [edi], eax
        .endr
        dec     ecx
        jnz     3b
        jmp     done

loads:  test    ebx, ebx
        jz      2f
1:      mov     eax, [edi]
        dec     ebx
        jnz     1b
2:      test    ecx, ecx
        jz      done
3:      .rept   16
        mov     eax, [edi]
        .endr
        dec     ecx
        jnz     3b

done:   xor     al, al
        out     0xf4, al
stop:   cli
        hlt
        jmp     stop
