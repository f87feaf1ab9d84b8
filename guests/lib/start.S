# start.S: where a C guest begins, and the tables that every 64-bit kernel must own.
#
# An ELF64 loader leaves the CPU in long mode with page tables, descriptor tables and a stack of
# its choice. A kernel that wants to take interrupts, change privilege or reach devices cannot
# live on borrowed tables, so the first thing it does is to bring its own:
#
#   page tables   one to one, 2 MiB pages: 0-1 GiB (RAM) and 3-4 GiB (devices, the local APIC).
#                 All of it is open to ring 3; teaching guests have nothing to hide.
#   GDT           code and data for ring 0 and ring 3, and one TSS for each CPU
#   IDT           filled by interrupts_init() in interrupts.c
#
# Then it calls main(). Its return value is the guest's end: 0 = `cli; hlt`, others go to the
# debug-exit port.

.intel_syntax noprefix
.include "lib/layout.inc"

.section .text.start, "ax"
.code64
.globl _start
_start:
        cli
        cld
        mov     eax, offset boot_pml4
        mov     cr3, rax
        mov     esp, offset boot_stack_end
        xor     ebx, ebx                # CPU number
        call    load_tables
        call    interrupts_init
        call    main
        mov     edi, eax
        call    guest_exit

# The second CPU comes here from lib/smp.S, in long mode, on boot_pml4, with no stack yet.
.globl ap_start
ap_start:
        mov     esp, offset ap_stack_end
        mov     ebx, 1
        call    load_tables
        call    interrupts_load
        call    [ap_function]
1:      cli                             # it is not the one who ends the guest
        hlt
        jmp     1b

# Loads GDT, segments and TSS of CPU number ebx. A 64-bit TSS descriptor is 16 bytes with the
# base address scattered over it, which the linker cannot write, so it is done here.
load_tables:
        lgdt    gdt_pointer[rip]
        mov     eax, KERNEL_DATA
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        xor     eax, eax
        mov     fs, eax
        mov     gs, eax
        pop     rax                     # far return to our caller: reloads CS
        push    KERNEL_CODE
        push    rax
        mov     edx, ebx
        imul    edx, edx, TSS_SIZE
        add     edx, offset cpu_tss     # edx = this CPU's TSS (below 4 GiB)
        mov     ecx, ebx
        shl     ecx, 4
        add     ecx, offset gdt_tss     # ecx = its descriptor
        mov     word ptr [rcx], TSS_SIZE - 1
        mov     [rcx + 2], dx           # base 15:0
        mov     eax, edx
        shr     eax, 16
        mov     [rcx + 4], al           # base 23:16
        mov     byte ptr [rcx + 5], 0x89 # present, available 64-bit TSS
        mov     [rcx + 7], ah           # base 31:24
        mov     word ptr [rdx + 102], TSS_SIZE  # no I/O bitmap: ring 3 may not touch ports
        mov     eax, ebx
        shl     eax, 4
        add     eax, TSS_SELECTOR
        ltr     ax
        retfq

.section .data.gdt, "aw"
        .balign 16
gdt:    .quad   0
        .quad   0x00af9b000000ffff      # KERNEL_CODE: 64-bit, ring 0
        .quad   0x00cf93000000ffff      # KERNEL_DATA
        .quad   0x00cf9b000000ffff      # CODE32: on the way up from real mode
        .quad   0x00cff3000000ffff      # USER_DATA
        .quad   0x00affb000000ffff      # USER_CODE: 64-bit, ring 3
gdt_tss:
        .quad   0, 0                    # one TSS descriptor for each CPU
        .quad   0, 0
gdt_end:
.globl gdt
gdt_pointer:
        .word   gdt_end - gdt - 1
        .quad   gdt

.section .data.tables, "aw"
        .balign 4096
.globl boot_pml4, boot_pdpt, boot_pd
boot_pml4:
        .quad   boot_pdpt + 7           # 7 = present, writable, user
        .fill   511, 8, 0
boot_pdpt:
        .quad   boot_pd + 7             # 0-1 GiB
        .quad   0                       # 1-2 GiB: a hole, good for page faults
        .quad   0                       # 2-3 GiB
        .quad   device_pd + 7           # 3-4 GiB
        .fill   508, 8, 0
boot_pd:
        .set    address, 0
        .rept   512
        .quad   address + 0x87          # 0x80 = 2 MiB page
        .set    address, address + 0x200000
        .endr
device_pd:
        .set    address, 0xc0000000
        .rept   512
        .quad   address + 0x9f          # 0x18 = PCD, PWT: do not cache devices
        .set    address, address + 0x200000
        .endr

.section .bss.start, "aw", @nobits
        .balign 16
.globl cpu_tss, user_stack_end
cpu_tss:
        .skip   TSS_SIZE * 2
        .balign 16
boot_stack:
        .skip   16384
boot_stack_end:
        .skip   8192
ap_stack_end:
        .skip   8192                    # ring-3 stacks, one for each CPU
user_stack_end:
        .skip   8192
