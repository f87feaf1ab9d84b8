# pvh.S: a second entry for 64-bit guests, from 32-bit protected mode.
#
# VMMs that know the PVH boot ABI look in an ELF file for a note of type 18 (PHYS32_ENTRY) named
# "Xen" and start the guest at the address in it: protected mode, flat segments, paging off,
# interrupts off, EBX = start info. (QEMU: `-kernel FILE`.) This code climbs to long mode the
# short way and continues at _start, which then finds what an ELF64 loader would have left.
#
# Long mode needs, in this order (Intel SDM vol. 3, "Initializing IA-32e Mode"): CR4.PAE, a PML4 in
# CR3, EFER.LME, CR0.PG, and last a jump to a code segment whose L bit is set.

.intel_syntax noprefix

.section .note.Xen, "a", @note
        .balign 4
        .long   4                       # size of the name
        .long   4                       # size of the descriptor
        .long   18                      # XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   pvh_entry

.section .text.pvh, "ax"
.code32
.globl pvh_entry
pvh_entry:
        cli
        mov     pvh_start_info, ebx
        mov     dword ptr pvh_pml4, offset pvh_pdpt + 3         # present, writable
        mov     dword ptr pvh_pdpt, offset pvh_pd + 3
        mov     eax, 0x83                                       # present, writable, 2 MiB page
        mov     edi, offset pvh_pd
1:      mov     [edi], eax                                      # 8 pages: the first 16 MiB
        add     edi, 8
        add     eax, 0x200000
        cmp     eax, 0x1000000
        jb      1b

        mov     eax, cr4
        or      eax, 1 << 5             # PAE
        mov     cr4, eax
        mov     eax, offset pvh_pml4
        mov     cr3, eax
        mov     ecx, 0xc0000080         # EFER
        rdmsr
        or      eax, 1 << 8             # LME
        wrmsr
        mov     eax, cr0
        or      eax, 1 << 31            # PG: long mode is active, in its 32-bit sub-mode
        mov     cr0, eax
        lgdt    pvh_gdt_pointer
        ljmp    8, offset pvh_long      # CS.L = 1: 64-bit code from here

.code64
pvh_long:
        mov     eax, 16
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        lea     rsp, pvh_stack_end[rip]
        jmp     _start

.section .rodata.pvh, "a"
        .balign 8
pvh_gdt:
        .quad   0
        .quad   0x00af9b000000ffff      # 64-bit code
        .quad   0x00cf93000000ffff      # data
pvh_gdt_pointer:
        .word   . - pvh_gdt - 1
        .long   pvh_gdt

.section .bss.pvh, "aw", @nobits
.globl pvh_start_info
pvh_start_info: .skip 4                 # options.c finds the command line through it
        .balign 4096
pvh_pml4: .skip 4096
pvh_pdpt: .skip 4096
pvh_pd:   .skip 4096
pvh_stack:
        .skip   256
pvh_stack_end:
