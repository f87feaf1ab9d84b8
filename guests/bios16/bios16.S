# bios16: the BIOS services that the real-mode part of a Linux kernel calls.
#
# A boot loader on a PC enters Linux in real mode and leaves the BIOS in place, because the kernel's
# setup code asks it for memory, video modes, disks and the keyboard. Where there is no firmware,
# this page of code answers instead. The loader (pykvm/boot/linux16.py) copies it to a free place
# below 1 MiB, points the interrupt vectors at the handlers, fills in the parameters at the end,
# and starts the CPU at `boot`.
#
# It runs at any multiple of 16: the code segment is where it was copied to, and everything is
# addressed relative to that, so all offsets are written `name - _start`.
#
# Started alone, as a guest, it says so through its own int 10h and halts.

.intel_syntax noprefix
.code16

.set COM1, 0x3f8
.set LSR, COM1 + 5                      # line status: bit 0 byte received, bit 5 ready to send
.set SMAP, 0x534d4150

.macro object name, size
.globl \name
.type \name, @object
.size \name, \size
.balign 2
\name:
.endm

.macro handler name
.globl \name
\name:
.endm

.section .text
.globl _start
_start:
        xor     ax, ax                  # as a guest: int 10h only, nothing else is needed
        mov     ds, ax
        mov     word ptr [0x10 * 4], offset int10 - _start
        mov     [0x10 * 4 + 2], cs
        push    cs
        pop     ds
        mov     si, offset banner - _start
1:      lodsb
        test    al, al
        jz      halt
        mov     ah, 0x0e
        int     0x10
        jmp     1b
banner: .asciz  "pykvm BIOS services: int 10h, 11h, 12h, 13h, 15h, 16h, 1Ah\n"

# Nothing left to boot (int 18h, int 19h), or an exception nobody expected.
handler halt
        cli
        hlt
        jmp     halt

# Where the CPU starts: the interrupt controllers and the timer as a BIOS leaves them, then the
# program's segments, stack and entry.
handler boot
        cli
        cld
        mov     al, 0x11                # ICW1: edge, cascade, ICW4 follows
        out     0x20, al
        out     0xa0, al
        mov     al, 0x08                # ICW2: vectors 8-15 and 0x70-0x77
        out     0x21, al
        mov     al, 0x70
        out     0xa1, al
        mov     al, 0x04                # ICW3: the slave is on line 2
        out     0x21, al
        mov     al, 0x02
        out     0xa1, al
        mov     al, 0x01                # ICW4: 8086 mode
        out     0x21, al
        out     0xa1, al
        mov     al, 0xfe                # only the timer's line is open
        out     0x21, al
        mov     al, 0xff
        out     0xa1, al
        mov     al, 0x34                # PIT channel 0: rate generator, 65536 clocks: 18.2 Hz
        out     0x43, al
        xor     al, al
        out     0x40, al
        out     0x40, al
        mov     bx, cs:[bios_segment - _start]
        mov     sp, cs:[bios_stack - _start]
        mov     ss, bx
        mov     ds, bx
        mov     es, bx
        mov     fs, bx
        mov     gs, bx
        add     bx, 0x20
        push    bx                      # far return: CS = segment + 0x20, IP = 0
        xor     ax, ax
        push    ax
        xor     ebx, ebx
        xor     ecx, ecx
        xor     edx, edx
        xor     esi, esi
        xor     edi, edi
        xor     ebp, ebp
        retf

# --- ends of handlers: the caller's carry flag lies in the FLAGS that INT pushed ---------------

clear_carry:
        push    bp
        mov     bp, sp
        and     byte ptr [bp + 6], 0xfe
        pop     bp
handler ignore
        iret

unsupported:                            # AH = 86h and carry: no such function
        mov     ah, 0x86
set_carry:
        push    bp
        mov     bp, sp
        or      byte ptr [bp + 6], 1
        pop     bp
        iret

# --- hardware interrupts --------------------------------------------------------------------------

handler irq0                            # timer: count, and let int 1Ch know
        push    ds
        push    ax
        xor     ax, ax
        mov     ds, ax
        inc     dword ptr [0x46c]
        int     0x1c
        jmp     end_of_irq
handler irq_low                         # any other of the first controller
        push    ds
        push    ax
end_of_irq:
        mov     al, 0x20
        out     0x20, al
        pop     ax
        pop     ds
        iret
handler irq_high                        # any of the second controller
        push    ax
        mov     al, 0x20
        out     0xa0, al
        out     0x20, al
        pop     ax
        iret

# --- int 10h: video -------------------------------------------------------------------------------

handler int10
        cmp     ah, 0x0e
        je      teletype
        cmp     ah, 0x0f
        je      get_mode
        cmp     ah, 0x03
        je      get_cursor
        cmp     ah, 0x12
        je      get_ega
        cmp     ah, 0x1a
        je      get_display
        cmp     ah, 0x13
        je      write_string
        cmp     ah, 0x09
        je      teletype
        cmp     ah, 0x0a
        je      teletype
        cmp     ah, 0x4f
        jne     1f
        mov     ax, 0x0100              # VESA functions: not supported
1:      iret                            # setting modes and cursors: nothing to do
teletype:
        call    put
        iret
get_mode:
        mov     ax, 0x5003              # 80 columns, mode 3
        xor     bh, bh
        iret
get_cursor:
        mov     cx, 0x0607
        xor     dx, dx
        iret
get_ega:
        cmp     bl, 0x10
        jne     1f
        cmp     byte ptr cs:[bios_vga - _start], 0
        je      1f
        mov     bx, 0x0003              # colour, 256 KiB
        xor     cx, cx
1:      iret
get_display:
        cmp     byte ptr cs:[bios_vga - _start], 0
        je      1f
        mov     ax, 0x1a1a
        mov     bx, 0x0008              # VGA with a colour monitor
1:      iret
write_string:                           # ES:BP, CX characters, attributes between if AL bit 1
        push    ax
        push    bx
        push    cx
        push    bp
        mov     bl, al
        jcxz    2f
1:      mov     al, es:[bp]
        call    put
        inc     bp
        test    bl, 2
        jz      3f
        inc     bp
3:      loop    1b
2:      pop     bp
        pop     cx
        pop     bx
        pop     ax
        iret

put:                                    # AL to COM1; a port that is not there is always ready
        push    ax
        push    dx
        push    cx
        mov     ah, al
        mov     cx, 1000
        mov     dx, LSR
1:      in      al, dx
        test    al, 0x20
        jnz     2f
        loop    1b
2:      mov     dx, COM1
        mov     al, ah
        out     dx, al
        pop     cx
        pop     dx
        pop     ax
        ret

# --- int 11h, 12h: equipment, KiB of conventional memory ------------------------------------------

handler int11
        push    ds
        xor     ax, ax
        mov     ds, ax
        mov     ax, [0x410]
        pop     ds
        iret

handler int12
        push    ds
        xor     ax, ax
        mov     ds, ax
        mov     ax, [0x413]
        pop     ds
        iret

# --- int 13h: disks, of which there are none --------------------------------------------------------

handler int13
        cmp     ah, 0x15
        jne     1f
        xor     ah, ah                  # type of drive: none
        jmp     clear_carry
1:      cmp     ah, 0x08
        jne     2f
        xor     dl, dl                  # number of drives
2:      mov     ah, 0x01                # invalid function or parameter
        jmp     set_carry

# --- int 14h, 17h: serial and parallel ports: time-out ----------------------------------------------

handler int14
        mov     ah, 0x80
        iret
handler int17
        mov     ah, 0x01
        iret

# --- int 15h: system services -----------------------------------------------------------------------

handler int15
        cmp     ax, 0xe820
        je      e820
        cmp     ax, 0xe801
        je      e801
        cmp     ax, 0xec00              # the kernel says which modes it will run in
        je      ok
        cmp     ah, 0x24
        je      a20
        cmp     ah, 0x88
        je      extended
        cmp     ah, 0x86
        je      delay
        cmp     ah, 0xc0
        je      configuration
        cmp     ah, 0xc1
        je      ebda
        jmp     unsupported
ok:     xor     ah, ah
        jmp     clear_carry

e820:   cmp     edx, SMAP
        jne     unsupported
        cmp     ecx, 20
        jb      unsupported
        push    eax
        movzx   eax, word ptr cs:[bios_e820_count - _start]
        cmp     ebx, eax
        pop     eax
        jae     unsupported
        push    si
        push    di
        push    ds
        imul    si, bx, 20
        add     si, offset bios_e820 - _start
        mov     cx, 10
        push    cs
        pop     ds
        cld
        rep movsw
        pop     ds
        pop     di
        pop     si
        inc     bx
        cmp     bx, cs:[bios_e820_count - _start]
        jb      1f
        xor     ebx, ebx                # that was the last
1:      mov     eax, SMAP
        mov     ecx, 20
        jmp     clear_carry

e801:   mov     ax, cs:[bios_middle - _start]
        mov     cx, ax
        mov     bx, cs:[bios_high - _start]
        mov     dx, bx
        jmp     clear_carry

extended:
        mov     ax, cs:[bios_extended - _start]
        jmp     clear_carry

a20:    cmp     al, 3
        ja      unsupported
        jne     1f
        mov     bx, 3                   # by the keyboard controller and by port 92h
        jmp     ok
1:      cmp     al, 2
        jne     ok                      # 0, 1: A20 is always on
        mov     al, 1
        jmp     ok

delay:  push    cx                      # CX:DX microseconds; a port access takes about one
        push    dx
        push    ax
1:      in      al, 0x61
        sub     dx, 1
        sbb     cx, 0
        jnc     1b
        pop     ax
        pop     dx
        pop     cx
        jmp     ok

configuration:
        push    cs
        pop     es
        mov     bx, offset config_table - _start
        jmp     ok

ebda:   push    ds
        xor     ax, ax
        mov     ds, ax
        mov     es, [0x40e]
        pop     ds
        jmp     ok

# --- int 16h: keyboard, which is the serial port -----------------------------------------------------

handler int16
        and     ah, 0xef                # 10h-12h: the same for enhanced keyboards
        jz      read_key
        cmp     ah, 1
        je      peek_key
        cmp     ah, 2
        jne     1f
        xor     al, al                  # no shift key is down
1:      iret
read_key:
        call    poll_key
        jz      read_key
        mov     ax, cs:[key - _start]
        mov     word ptr cs:[key - _start], 0
        iret
peek_key:
        call    poll_key
        push    bp
        mov     bp, sp
        jz      1f
        and     byte ptr [bp + 6], 0xbf # ZF clear: there is one, in AX
        mov     ax, cs:[key - _start]
        pop     bp
        iret
1:      or      byte ptr [bp + 6], 0x40
        pop     bp
        iret

poll_key:                               # ZF clear if a key waits in `key`
        cmp     word ptr cs:[key - _start], 0
        jne     1f
        push    ax
        push    dx
        mov     dx, LSR
        in      al, dx
        cmp     al, 0xff                # no such port
        je      2f
        test    al, 1
        jz      2f
        mov     dx, COM1
        in      al, dx
        xor     ah, ah
        cmp     al, 13
        jne     3f
        mov     ah, 0x1c                # scan code of Enter
3:      mov     cs:[key - _start], ax
2:      pop     dx
        pop     ax
        cmp     word ptr cs:[key - _start], 0
1:      ret

# --- int 1Ah: clock, PCI BIOS --------------------------------------------------------------------------

handler int1a
        test    ah, ah
        jz      ticks
        cmp     ah, 0x02
        je      time
        cmp     ah, 0x04
        je      date
        mov     ah, 0x81                # 0xb1: PCI BIOS: not supported
        jmp     set_carry
ticks:  push    ds
        xor     ax, ax
        mov     ds, ax
        mov     dx, [0x46c]
        mov     cx, [0x46e]
        pop     ds
        jmp     clear_carry
time:   push    ax                      # CH:CL:DH in BCD
        mov     al, 4
        call    cmos
        mov     ch, al
        mov     al, 2
        call    cmos
        mov     cl, al
        mov     al, 0
        call    cmos
        mov     dh, al
        xor     dl, dl
        jmp     1f
date:   push    ax                      # CH, CL: century, year; DH, DL: month, day
        mov     ch, 0x20
        mov     al, 9
        call    cmos
        mov     cl, al
        mov     al, 8
        call    cmos
        mov     dh, al
        mov     al, 7
        call    cmos
        mov     dl, al
1:      pop     ax
        cmp     cl, 0xff                # no clock there
        je      set_carry
        jmp     ok
cmos:   out     0x70, al
        in      al, 0x71
        ret

# --- data ------------------------------------------------------------------------------------------------

        .balign 2
key:    .word   0
config_table:                           # int 15h AH=C0h
        .word   8                       # bytes that follow
        .byte   0xfc, 0, 1              # model: AT
        .byte   0x74                    # second PIC, RTC, EBDA, wait service
        .byte   0, 0, 0, 0              # no MicroChannel
object bios_segment, 2
        .word   0
object bios_stack, 2
        .word   0
object bios_vga, 2
        .word   0
object bios_extended, 2
        .word   0
object bios_middle, 2
        .word   0
object bios_high, 2
        .word   0
object bios_e820_count, 2
        .word   0
object bios_e820, 2560
        .fill   128 * 20, 1, 0
        .globl  bios_end
bios_end:
