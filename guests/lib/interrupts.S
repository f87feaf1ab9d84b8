# interrupts.S: from a vector to a C function, and the way into ring 3 and back.

.intel_syntax noprefix
.include "lib/layout.inc"
.code64

# One stub a vector, each exactly 16 bytes long so that the IDT can be filled by a loop. Some
# exceptions push an error code, the others and all interrupts do not: those push a 0 instead,
# and `struct frame` in runtime.h always looks the same.
.section .text.vectors, "ax"
        .balign 16
.globl vector_stubs
vector_stubs:
        .set    vector, 0
        .rept   VECTORS
        .if     (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21)
        .else
        push    0
        .endif
        push    vector
        jmp     interrupt_common
        .balign 16
        .set    vector, vector + 1
        .endr

.section .text.interrupts, "ax"
interrupt_common:
        push    rax
        push    rbx
        push    rcx
        push    rdx
        push    rsi
        push    rdi
        push    rbp
        push    r8
        push    r9
        push    r10
        push    r11
        push    r12
        push    r13
        push    r14
        push    r15
        cld
        mov     rdi, rsp                # struct frame *
        mov     rbx, rsp                # keep it over the call
        and     rsp, -16                # the C ABI wants an aligned stack
        call    interrupt_dispatch
        mov     rsp, rbx
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     r11
        pop     r10
        pop     r9
        pop     r8
        pop     rbp
        pop     rdi
        pop     rsi
        pop     rdx
        pop     rcx
        pop     rbx
        pop     rax
        add     rsp, 16                 # vector, error code
        iretq

# uint64_t ring3_call(uint64_t (*function)(uint64_t, uint64_t), uint64_t a, uint64_t b, int cpu)
#
# Runs function(a, b) in ring 3 and returns what it returns. Ring 3 is entered with IRETQ, which
# pops SS, RSP, RFLAGS, CS and RIP. The way back is a software interrupt: the CPU loads RSP from
# the TSS, and the TSS was told the stack of this very call, so the gate finds the caller's saved
# registers right above its frame.
#
# The interrupt is INT 4. Kernels have preferred INT 0x80 and the like, and on VMX and SVM any
# number would do; but where KVM runs ring 3 on the CPU itself with the host's IDT behind it, INT 3
# and INT 4 (the breakpoint and overflow vectors) are the only ones that ring 3 may use.
.section .text.ring3, "ax"
.globl ring3_call
ring3_call:
        push    rbx
        push    rbp
        push    r12
        push    r13
        push    r14
        push    r15
        sub     rsp, 8                  # the CPU aligns the new RSP to 16 before it pushes
        imul    eax, ecx, TSS_SIZE
        mov     cpu_tss[rax + 4], rsp   # TSS.RSP0
        mov     r8d, ecx
        shl     r8d, 13                 # 8 KiB of stack for each CPU
        add     r8d, offset user_stack_end
        mov     rax, rdi
        mov     rdi, rsi
        mov     rsi, rdx
        push    USER_DATA               # SS
        push    r8                      # RSP
        push    2                       # RFLAGS: interrupts off
        push    USER_CODE               # CS
        push    offset ring3_start      # RIP
        iretq

ring3_start:
        call    rax                     # ring 3
        int     RING3_EXIT_VECTOR        # rax = result

.globl ring3_exit
ring3_exit:                             # ring 0 again, through the gate
        add     rsp, 40 + 8             # drop RIP, CS, RFLAGS, RSP, SS
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     rbp
        pop     rbx
        ret
