# The guest of the comparison with QEMU: one ELF64 file that every VMM here can boot, and the same work in each.
#
#   pykvm and cvmm enter at e_entry (start64) in 64-bit mode, with the first 4 GiB mapped one to one.
#   QEMU's -kernel takes an ELF64 only with a PVH note: it enters at start32 in 32-bit protected mode without paging
#   (Xen's PVH boot protocol), and the guest climbs to 64-bit mode itself, with page tables that lie ready in the image:
#   about 20 instructions more than the others execute.
#
# Then: writes a greeting to COM1, waiting for the transmitter before each byte, and ends by writing 0 to the debug-exit
# port 0xf4 (exit status 1 in all three). Only plain integer instructions: it also runs where KVM emulates.

        .set    COM1, 0x3f8
        .set    COM1_LSR, COM1 + 5
        .set    DEBUG_EXIT, 0xf4

        .section .note.pvh, "a", @note
        .balign 4
        .long   4, 4, 18                # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
        .asciz  "Xen"
        .long   start32

        .text
        .code32
start32:
        lgdt    gdt_pointer
        movl    $pml4, %eax
        movl    %eax, %cr3
        movl    %cr4, %eax
        orl     $1 << 5, %eax           # PAE
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx       # EFER
        rdmsr
        orl     $1 << 8, %eax           # LME
        wrmsr
        movl    %cr0, %eax
        orl     $1 << 31, %eax          # PG
        movl    %eax, %cr0
        ljmp    $8, $start64

        .code64
        .globl  start64
start64:
        leaq    greeting(%rip), %rsi
next:
        lodsb
        testb   %al, %al
        jz      done
        movb    %al, %bl
        movl    $COM1_LSR, %edx
wait:
        inb     %dx, %al
        testb   $0x20, %al              # transmitter holding register empty
        jz      wait
        movb    %bl, %al
        movl    $COM1, %edx
        outb    %al, %dx
        jmp     next
done:
        xorl    %eax, %eax
        outb    %al, $DEBUG_EXIT
stop:
        hlt
        jmp     stop

greeting:
        .asciz  "Hello from one ELF64 guest in every VMM.\n"

        .data
        .balign 4096
pml4:
        .quad   pdpt + 3                # present, writable
        .fill   511, 8, 0
pdpt:
        .quad   directory + 3
        .fill   511, 8, 0
directory:
        .quad   0x83                    # the first 2 MiB, one page: all that this guest touches
        .fill   511, 8, 0
gdt:
        .quad   0, 0x00af9b000000ffff   # 64-bit code
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
