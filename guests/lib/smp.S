# smp.S: the second CPU's climb from real mode to ap_start.
#
# After INIT the second CPU waits for a start-up IPI (SIPI). Its vector v names a page below 1 MiB:
# the CPU starts in real mode at CS:IP = v00:0000. start_cpu() in smp.c copies this code to
# AP_PAGE, so labels are used relative to `trampoline`.

.intel_syntax noprefix
.include "lib/layout.inc"

        .set    AP_PAGE, 0x8000

.section .text.trampoline, "ax"
.globl trampoline, trampoline_end
.code16
trampoline:
        cli
        xor     ax, ax
        mov     ds, ax
        data32 lgdt [AP_PAGE + (pointer - trampoline)]  # data32: all 32 bits of the base
        mov     eax, 1                  # PE
        mov     cr0, eax
        .byte   0x66, 0xea              # ljmp CODE32:protected, spelled out because the target
        .long   AP_PAGE + (protected - trampoline) # is where the code will be, not where it is
        .word   CODE32

.code32
protected:
        mov     eax, KERNEL_DATA
        mov     ds, eax
        mov     ss, eax
        mov     eax, 1 << 5             # CR4.PAE
        mov     cr4, eax
        mov     eax, offset boot_pml4
        mov     cr3, eax
        mov     ecx, 0xc0000080         # EFER
        rdmsr
        or      eax, 1 << 8             # LME
        wrmsr
        mov     eax, 0x80000001         # PG, PE: long mode
        mov     cr0, eax
        ljmp    KERNEL_CODE, offset ap_start

        .balign 4
pointer:                                # LGDT in real mode reads 6 bytes
        .word   0x2f                    # up to and with USER_CODE
        .long   gdt
trampoline_end:
