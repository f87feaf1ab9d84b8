"""`struct boot_params`, the page that Linux is told everything with
(Documentation/arch/x86/zero-page.rst, arch/x86/include/uapi/asm/bootparam.h)."""

from __future__ import annotations

import struct

from pykvm.arch.e820 import RAM
from pykvm.boot.environment import FramebufferInfo
from pykvm.boot.layout import Layout
from pykvm.boot.linux_header import HEADER_START, LOADED_HIGH
from pykvm.boot.memmap import MemoryMap

SIZE = 4096
E820_ENTRIES = 128
"""Memory map entries that fit into the page; more travel as `setup_data`."""
SETUP_E820_EXT = 1

TYPE_OF_LOADER = 0xFF
"""A boot loader without a number of its own."""
VIDEO_MODE_NORMAL = 0xFFFF

_E820 = 0x2D0
_VIDEO_VGA = 1  # what the real-mode part says of a VGA text screen
_VIDEO_VLFB = 0x23
_1M = 1 << 20

# A kernel without a setup header (a bare vmlinux) still expects one: protocol 2.12, what a loader
# of 64-bit kernels would have copied.
_BARE_VERSION = 0x20C
_BARE_ALIGNMENT = 0x200000


class BootParams:
    """A `struct boot_params` under construction."""

    def __init__(self, header: bytes | None = None) -> None:
        """`header` are the bytes of a bzImage's setup header from offset 0x1f1; None for a
        vmlinux."""
        self.data = bytearray(SIZE)
        if header is not None:
            self.data[HEADER_START : HEADER_START + len(header)] = header
        else:
            self._put("H", 0x1FE, 0xAA55)
            self.data[0x202:0x206] = b"HdrS"
            self._put("H", 0x206, _BARE_VERSION)
            self._put("B", 0x211, LOADED_HIGH)
            self._put("I", 0x230, _BARE_ALIGNMENT)
        self._put("H", 0x1FA, VIDEO_MODE_NORMAL)
        self._put("B", 0x210, TYPE_OF_LOADER)
        for offset in (0x218, 0x21C, 0x226, 0x228):  # ramdisk, ext_loader_*, cmd_line_ptr
            self._put("I" if offset != 0x226 else "H", offset, 0)

    def _put(self, layout: str, offset: int, *values: int) -> None:
        struct.pack_into("<" + layout, self.data, offset, *values)

    def set_kernel(self, address: int) -> None:
        """Where the protected-mode part is: `code32_start`."""
        self._put("I", 0x214, address)

    def set_cmdline(self, gpa: int, size: int) -> None:
        """Where the zero-terminated command line is; `size` is the kernel's longest."""
        self._put("I", 0x228, gpa & 0xFFFFFFFF)
        self._put("I", 0x0C8, gpa >> 32)
        self._put("I", 0x238, size)

    def set_initrd(self, gpa: int, size: int) -> None:
        """Where the initrd is; above 4 GiB the `ext_` fields hold the upper halves."""
        self._put("I", 0x218, gpa & 0xFFFFFFFF)
        self._put("I", 0x21C, size & 0xFFFFFFFF)
        self._put("I", 0x0C0, gpa >> 32)
        self._put("I", 0x0C4, size >> 32)

    def set_rsdp(self, gpa: int | None) -> None:
        """Where the ACPI RSDP is."""
        self._put("Q", 0x070, gpa or 0)

    def set_setup_data(self, gpa: int) -> None:
        """The first node of the list of `setup_data`."""
        self._put("Q", 0x250, gpa)

    def set_memory(self, entries: MemoryMap) -> None:
        """The first entries of the memory map, and the sizes of extended memory of older days."""
        self._put("B", 0x1E8, min(len(entries), E820_ENTRIES))
        for number, entry in enumerate(entries[:E820_ENTRIES]):
            self._put("QQI", _E820 + 20 * number, *entry)
        above = (b + n - _1M for b, n, kind in entries if kind == RAM and b <= _1M < b + n)
        extended = next(above, 0)
        self._put("I", 0x1E0, min(extended >> 10, 0xFFFFFFFF))
        self._put("H", 0x002, min(extended >> 10, 0xFC00))

    def set_screen(self, screen: FramebufferInfo | None) -> None:
        """`struct screen_info`: without a screen there is none that Linux would touch."""
        if screen is None:
            return
        if screen.kind == "text":
            self.data[0x06:0x08] = bytes((3, screen.width & 255))  # mode 3, columns
            self.data[0x0E:0x10] = bytes((screen.height & 255, _VIDEO_VGA))
            self._put("H", 0x10, 16)  # lines of a character
            return
        self.data[0x0F] = _VIDEO_VLFB
        self._put("HHH", 0x12, screen.width, screen.height, screen.bpp)
        self._put("I", 0x18, screen.address & 0xFFFFFFFF)
        self._put("I", 0x1C, -(-screen.size >> 16))  # in units of 64 KiB
        self._put("H", 0x24, screen.pitch)
        used = screen.red[1] + screen.green[1] + screen.blue[1]
        spare = (used, screen.bpp - used) if used < screen.bpp else (0, 0)
        colours = (screen.red, screen.green, screen.blue, spare)
        self.data[0x26:0x2E] = bytes(part for low, bits in colours for part in (bits, low))
        self._put("I", 0x36, 2 if screen.address >> 32 else 0)  # the base has 64 bits
        self._put("I", 0x3A, screen.address >> 32)

    def to_bytes(self) -> bytes:
        """The page."""
        return bytes(self.data)


def e820_extension(layout: Layout, entries: MemoryMap) -> tuple[int, bytes] | None:
    """The memory map entries that do not fit into the page, as a `setup_data` node: its
    guest-physical address and bytes."""
    rest = entries[E820_ENTRIES:]
    if not rest:
        return None
    body = b"".join(struct.pack("<QQI", *entry) for entry in rest)
    node = struct.pack("<QII", 0, SETUP_E820_EXT, len(body)) + body
    return layout.add(len(node), "the rest of the memory map", align=16), node
