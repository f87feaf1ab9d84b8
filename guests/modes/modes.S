# modes: the whole climb of an x86 CPU, one line printed on each step.
#
#   16-bit real mode  →  32-bit protected mode  →  long mode, still in 32-bit code
#   →  64-bit code  →  64-bit ring 3  →  INT  →  ring 0 again
#
# Read it next to Intel SDM vol. 3, chapters "Protected-Mode Memory Management" and "Initializing
# IA-32e Mode". Flat image, loaded at 0x1000, started in real mode.

.intel_syntax noprefix
        .set    COM1, 0x3f8
        .set    CODE16, 0x08            # selectors: offsets into the GDT below
        .set    CODE32, 0x10
        .set    CODE64, 0x18
        .set    DATA, 0x20
        .set    USER_DATA, 0x28 + 3     # + 3: asked for by ring 3
        .set    USER_CODE, 0x30 + 3
        .set    TSS, 0x38
        .set    PRINT_VECTOR, 3         # what ring 3 asks for with INT. On VMX and SVM any number
        .set    LEAVE_VECTOR, 4         # would do; KVM without them lets ring 3 have only 3 and 4

# REP OUTSB works in every mode: DS:(R|E)SI is the text, (R|E)CX its length, DX the port.
.macro  say     text
        .pushsection .rodata
text_\@:
        .ascii  "\text\n"
        .set    length_\@, . - text_\@
        .popsection
        mov     esi, offset text_\@
        mov     ecx, offset length_\@
        mov     edx, COM1
        rep outsb
.endm

# ---- real mode: segment * 16 + offset, 1 MiB, no protection -------------------------------------
.section .text
.globl _start, protected, long_mode, ring3, back
.code16
_start:
        cli
        cld
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x1000              # below the image
        say     "1. 16-bit real mode"

        # CR0.PE turns protection on. The descriptor caches still hold the real-mode segments, until
        # a far jump loads CS with a selector from the GDT.
        lgdt    gdt_pointer
        mov     eax, cr0
        or      al, 1                   # PE
        mov     cr0, eax
        ljmp    CODE32, offset protected

# ---- protected mode: selectors name descriptors, 4 GiB, four rings ------------------------------
.code32
protected:
        mov     eax, DATA
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        mov     esp, 0x1000
        say     "2. 32-bit protected mode"

        # Long mode needs page tables of four levels (PAE's entries, one level more), EFER.LME, and
        # then paging. It is active as soon as CR0.PG is set, but CS is still a 32-bit segment.
        mov     eax, cr4
        or      eax, 1 << 5             # PAE
        mov     cr4, eax
        mov     eax, offset pml4
        mov     cr3, eax
        mov     ecx, 0xc0000080         # EFER
        rdmsr
        or      eax, 1 << 8             # LME
        wrmsr
        mov     eax, cr0
        or      eax, 1 << 31            # PG with LME: EFER.LMA becomes 1
        mov     cr0, eax
        say     "3. long mode, 32-bit compatibility code"
        ljmp    CODE64, offset long_mode # CS.L = 1: 64-bit code

# ---- long mode: 64-bit registers, paging for good, segments all but gone ------------------------
.code64
long_mode:
        xor     eax, eax
        mov     ds, eax                 # null selectors are fine for data in 64-bit mode
        mov     es, eax
        mov     ss, eax
        mov     esp, 0x1000
        say     "4. 64-bit long mode, ring 0"

        # To come back from ring 3 the CPU needs a gate (where to go) and a TSS (with which stack).
        mov     eax, offset tss
        mov     gdt_tss[rip + 2], ax    # base address 15:0 of the descriptor; the rest is 0
        mov     eax, TSS
        ltr     ax
        mov     eax, offset on_print
        mov     idt[rip + PRINT_VECTOR * 16], ax    # offset 15:0 of the gate
        mov     eax, offset on_leave
        mov     idt[rip + LEAVE_VECTOR * 16], ax
        lidt    idt_pointer[rip]

        # IRETQ to a code segment with DPL 3 is the way down: it pops SS, RSP, RFLAGS, CS, RIP.
        push    USER_DATA
        push    offset user_stack_end
        push    2                       # RFLAGS: interrupts off
        push    USER_CODE
        push    offset ring3
        iretq

# ---- ring 3: no port I/O, no CR0, no HLT: it has to ask -----------------------------------------
ring3:
        mov     eax, cs                 # the low two bits of CS are the ring
        and     eax, 3
        add     eax, '0'
        lea     rdi, ring_digit[rip]
        mov     [rdi], al
        lea     rsi, ring_text[rip]
        mov     ecx, offset ring_text_length
        int     PRINT_VECTOR
        int     LEAVE_VECTOR
        ud2                             # never: on_leave does not return

# The service that ring 3 may call: print rcx bytes at rsi.
on_print:
        mov     edx, COM1
        rep outsb
        iretq                           # back to ring 3

# The other: stay in ring 0. The frame with the way back is simply forgotten.
on_leave:
        mov     esp, 0x1000
back:   say     "6. ring 0 again, by INT"
stop:   cli
        hlt
        jmp     stop

# ---- tables --------------------------------------------------------------------------------------
.section .data
        .balign 8
gdt:    .quad   0
        .quad   0x00009b000000ffff      # CODE16
        .quad   0x00cf9b000000ffff      # CODE32: D = 1
        .quad   0x00af9b000000ffff      # CODE64: L = 1
        .quad   0x00cf93000000ffff      # DATA
        .quad   0x00cff3000000ffff      # USER_DATA: DPL 3
        .quad   0x00affb000000ffff      # USER_CODE: L = 1, DPL 3
gdt_tss:
        .quad   0x0000890000000067, 0   # TSS: base is filled in, limit 103
gdt_pointer:
        .word   . - gdt - 1
        .quad   gdt                     # LGDT reads 4 bytes of it in 32-bit code, 8 in 64-bit code

        .balign 16
idt:    .rept   5                       # vectors 0 to 4
        .word   0, CODE64               # offset 15:0, selector
        .byte   0, 0xee                 # IST 0; present, DPL 3, 64-bit interrupt gate
        .word   0
        .quad   0
        .endr
idt_pointer:
        .word   . - idt - 1
        .quad   idt

        .balign 16
tss:    .long   0
        .quad   kernel_stack_end        # RSP0: the stack for interrupts out of ring 3
        .fill   90, 1, 0
        .word   104                     # no I/O permission bitmap

ring_text:
        .ascii  "5. 64-bit ring "
ring_digit:
        .ascii  "?\n"
        .set    ring_text_length, . - ring_text

# Identity mapping of the first 2 MiB with one large page; 7 = present, writable, user.
        .balign 4096
pml4:   .quad   pdpt + 7
        .fill   511, 8, 0
pdpt:   .quad   page_directory + 7
        .fill   511, 8, 0
page_directory:
        .quad   0x87                    # 0x80: a 2 MiB page
        .fill   511, 8, 0

        .skip   256
kernel_stack_end:
        .skip   256
user_stack_end:
