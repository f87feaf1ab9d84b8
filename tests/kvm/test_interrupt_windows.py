"""Real-mode code that opens its interrupt window for two instructions still gets its interrupts."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from pykvm import Machine

pytestmark = pytest.mark.kvm

# The timer interrupts 100 times a second; the guest listens once in some thousand instructions,
# and ends when it has heard of five (or more: KVM makes up for ticks that were missed).
SOURCE = """
.intel_syntax noprefix
.code16
.globl _start
_start: cli
        xor     ax, ax
        mov     ds, ax
        mov     ss, ax
        mov     sp, 0x7000
        mov     word ptr [8 * 4], offset tick
        mov     word ptr [8 * 4 + 2], ax
        mov     al, 0x11            # PICs: ICW1 to ICW4, vectors 8 and 0x70
        out     0x20, al
        out     0xa0, al
        mov     al, 8
        out     0x21, al
        mov     al, 0x70
        out     0xa1, al
        mov     al, 4
        out     0x21, al
        mov     al, 2
        out     0xa1, al
        mov     al, 1
        out     0x21, al
        out     0xa1, al
        mov     al, 0xff
        out     0xa1, al
        mov     al, 0xfe            # only the timer
        out     0x21, al
        mov     al, 0x34
        out     0x43, al
        mov     al, 0x9c            # 11932: 100 Hz
        out     0x40, al
        mov     al, 0x2e
        out     0x40, al
        xor     bl, bl
poll:   mov     cx, 3000
wait:   dec     cx
        jnz     wait
        sti
        nop
        cli
        cmp     bl, 5
        jb      poll
        mov     al, bl
        out     0xf4, al
        hlt
tick:   inc     bl
        push    ax
        mov     al, 0x20
        out     0x20, al
        pop     ax
        iret
"""


def test_a_window_of_two_instructions(tmp_path: pathlib.Path) -> None:
    (tmp_path / "guest.S").write_text(SOURCE)
    command = "gcc -m32 -nostdlib -Wl,-Ttext=0x1000,--oformat=binary,--build-id=none -o"
    subprocess.run([*command.split(), "guest.bin", "guest.S"], cwd=tmp_path, check=True)
    with Machine("16M") as machine:
        machine.load(tmp_path / "guest.bin", load=0x1000, entry=0x1000, mode="real")
        machine.interrupt_windows = True
        result = machine.run(timeout=60)
        assert result.reason == "debug-exit", result.report or result.reason
        assert result.value is not None
        assert result.value >= 5
        assert machine.vcpus[0].guest_debug.control == 0
        assert 4 not in machine.exit_handlers
