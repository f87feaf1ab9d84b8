"""The VGA under its own firmware: boot sectors set modes through int 10h, and the picture is read.

Each is a few hundred bytes in real mode, so a boot takes seconds.
"""

from __future__ import annotations

import pathlib
import subprocess

import pytest
from firmware_images import seabios
from PIL import Image

from pykvm import Machine

pytestmark = [pytest.mark.kvm, pytest.mark.boot, pytest.mark.timeout(600)]

SOURCE = """
.intel_syntax noprefix
.code16
.globl _start
_start: cli
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, 0x7000
        sti
{body}
stop:   cli
        hlt
        jmp     stop
"""


def boot(folder: pathlib.Path, body: str) -> Machine:
    """A machine whose guest has run `body` from a boot sector at 0x7c00, and halted."""
    (folder / "sector.S").write_text(SOURCE.format(body=body))
    command = "gcc -m32 -nostdlib -Wl,-Ttext=0x7c00,--oformat=binary,--build-id=none -o"
    subprocess.run([*command.split(), "sector.bin", "sector.S"], cwd=folder, check=True)
    code = (folder / "sector.bin").read_bytes()
    assert len(code) <= 510
    machine = Machine("32M", board="pc")
    try:
        machine.add_disk(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 16), interface="ide")
        machine.load(seabios(), format="firmware")
        result = machine.run(timeout=500)
        assert result.reason == "halted", result.report or result.reason
    except BaseException:
        machine.close()
        raise
    return machine


def picture(machine: Machine, folder: pathlib.Path) -> Image.Image:
    machine.screen.save_png(folder / "screen.png")
    return Image.open(folder / "screen.png")


def test_text(tmp_path: pathlib.Path) -> None:
    body = """
        mov     ax, 0x0003
        int     0x10
        mov     dx, 0x0205          # row 2, column 5
        mov     bx, 0
        mov     ah, 2
        int     0x10
        mov     ax, 0x0941          # five times "A", yellow on blue
        mov     bx, 0x001e
        mov     cx, 5
        int     0x10
    """
    with boot(tmp_path, body) as machine:
        screen = machine.screen
        assert screen.mode == "text"
        assert screen.text() == "\n\n     AAAAA"
        assert screen.frame().cursor == (2, 5)
        assert screen.frame().attributes[165] == 0x1E
        image = picture(machine, tmp_path)
        assert image.size == (720, 400)
        # The top row of the firmware's "A" has two yellow dots at most; its background is blue.
        cell = [image.getpixel((5 * 9 + x, 2 * 16 + y)) for x in range(8) for y in range(13)]
        assert set(cell) == {(0, 0, 170), (255, 255, 85)}


@pytest.mark.parametrize(
    ("mode", "size", "kind"), [(0x13, (320, 200), "linear"), (0x12, (640, 480), "planar")]
)
def test_vga_graphics(tmp_path: pathlib.Path, mode: int, size: tuple[int, int], kind: str) -> None:
    body = f"""
        mov     ax, {mode}
        int     0x10
        mov     ax, 0x0c0a          # dots of colour 10 and 12 by the firmware's own function
        xor     bx, bx
        mov     cx, 100
        mov     dx, 50
        int     0x10
        mov     ax, 0x0c0c
        mov     cx, 101
        int     0x10
    """
    with boot(tmp_path, body) as machine:
        assert machine.screen.mode == kind
        image = picture(machine, tmp_path)
        assert image.size == size
        assert image.getpixel((100, 50)) == (85, 255, 85)
        assert image.getpixel((101, 50)) == (255, 85, 85)
        assert image.getpixel((102, 50)) == (0, 0, 0)


def test_vesa(tmp_path: pathlib.Path) -> None:
    """Mode 0x115, 800x600 with 24 or 32 bits, drawn to through the 64 KiB bank window."""
    body = """
        mov     ax, 0x4f01
        mov     cx, 0x115
        mov     di, 0x8000
        int     0x10
        mov     ax, 0x4f02
        mov     bx, 0x0115
        int     0x10
        mov     ax, 0xa000
        mov     es, ax
        mov     dword ptr es:[0], 0x00112233
        mov     ax, 0x4f05          # second bank
        xor     bx, bx
        mov     dx, 1
        int     0x10
        mov     byte ptr es:[0], 0xff
    """
    with boot(tmp_path, body) as machine:
        assert machine.screen.mode == "vbe"
        assert machine.screen.size == (800, 600)
        info = machine.memory.read(0x8000, 256)
        bits, base = info[25], int.from_bytes(info[40:44], "little")
        assert bits in (24, 32)
        assert base == machine.board.pci.get(2).bars[0].address  # type: ignore[attr-defined]
        image = picture(machine, tmp_path)
        assert image.getpixel((0, 0)) == (0x11, 0x22, 0x33)
        y, x = divmod(0x10000, 800 * bits // 8)
        assert image.getpixel((x * 8 // bits, y)) != (0, 0, 0)
