# boot.S: the multiboot 1 header, and the way to C.
#
# A multiboot loader looks for the header's magic number in the first 8 KiB of the file, on a
# 4-byte boundary. It starts the kernel in 32-bit protected mode with EAX = 0x2badb002 and EBX =
# the physical address of the boot information; there is no stack.
# (Multiboot Specification 0.6.96, chapters 3.1 to 3.3)

.intel_syntax noprefix
        .set    MAGIC, 0x1badb002
        .set    FLAGS, 1 << 0 | 1 << 1  # modules on page boundaries; tell me about memory

.section .multiboot, "a"
        .balign 4
        .long   MAGIC
        .long   FLAGS
        .long   -(MAGIC + FLAGS)        # the three add up to 0

.section .text
.code32
.globl _start
_start:
        mov     esp, offset stack_end
        push    ebx
        push    eax
        call    main
        test    eax, eax
        jz      stop
        out     0xf4, al                # a status other than 0 goes to the debug-exit port
stop:   cli
        hlt
        jmp     stop

.section .bss, "aw", @nobits
        .balign 16
        .skip   4096
stack_end:
