"""Multiboot kernels that ask for a frame buffer find it on the pc board, and can paint on it."""

from __future__ import annotations

import struct

import pytest
from boot_images import multiboot_header
from kernel_images import M, multiboot2_elf, tag2

from pykvm import Machine, StopReason

# Red at the start of the frame buffer (eax), green in its second line (ecx is the pitch).
PAINT = b"\xc7\x00" + struct.pack("<I", 0xFF0000) + b"\xc7\x44\x08\x04" + struct.pack("<I", 0xFF00)
HALT = b"\xfa\xf4"


def multiboot1_kernel() -> bytes:
    # mov eax, [ebx + 88]; mov ecx, [ebx + 96]
    code = b"\x8b\x43\x58\x8b\x4b\x60" + PAINT + HALT
    header = multiboot_header(1 << 16 | 4, M, M, 0, 0, M + 48)
    return header + struct.pack("<4I", 0, 640, 480, 32) + code


def multiboot2_kernel() -> bytes:
    find = (
        b"\x8d\x73\x08"  # lea esi, [ebx + 8]
        b"\x83\x3e\x08"  # next: cmp dword [esi], 8
        b"\x74\x0b"  # je found
        b"\x8b\x46\x04\x83\xc0\x07\x83\xe0\xf8"  # mov eax, [esi + 4]; add eax, 7; and eax, -8
        b"\x01\xc6\xeb\xee"  # add esi, eax; jmp next
    )
    find = find.replace(b"\x74\x0b", b"\x74\x0d")
    found = b"\x8b\x46\x08\x8b\x4e\x10"  # found: mov eax, [esi + 8]; mov ecx, [esi + 16]
    want = tag2(5, struct.pack("<3I", 640, 480, 32))
    return multiboot2_elf(want, code=find + found + PAINT + HALT)


@pytest.mark.parametrize("kernel", [multiboot1_kernel(), multiboot2_kernel()])
def test_a_kernel_paints(kernel: bytes) -> None:
    with Machine("64M", board="pc") as m:
        image = m.load(kernel)
        assert image.framebuffer is not None
        assert image.framebuffer[1:5] == (640, 480, 2560, 32)
        for _ in range(2):
            result = m.run(timeout=10)
            assert result.reason is StopReason.HALTED
            picture = m.screen.picture()
            assert (picture.width, picture.height) == (640, 480)
            pixels = picture.image().convert("RGB")
            assert pixels.getpixel((0, 0)) == (255, 0, 0)
            assert pixels.getpixel((1, 1)) == (0, 255, 0)
            assert pixels.getpixel((2, 2)) == (0, 0, 0)
            m.reset()  # the mode is set again


def test_without_a_display_it_is_refused() -> None:
    from pykvm.boot import ImageError

    with Machine("64M", board="microvm") as m, pytest.raises(ImageError, match="display"):
        m.load(multiboot1_kernel())


def test_modes_that_cannot_be() -> None:
    """The nearest one is what the kernel is told of."""
    header = multiboot_header(1 << 16 | 4, M, M, 0, 0, M + 48)
    with Machine("64M", board="pc") as m:
        kernel = header + struct.pack("<4I", 0, 0xFFFF, 0xFFFFFFFF, 7) + HALT
        screen = m.load(kernel).framebuffer
        assert screen is not None
        assert screen.bpp == 32
        assert screen.size <= m.board.vga.vram_size  # type: ignore[attr-defined]
        m.run(timeout=10)
        picture = m.screen.picture()
        assert (picture.width, picture.height) == (screen.width, screen.height)
