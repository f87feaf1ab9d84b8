"""`SimpleFramebuffer`: linear video memory without registers, for kernels started directly.

Multiboot 1 and 2, Linux's `screen_info` and simple-framebuffer drivers are told where it is and
what shape it has; there is nothing to program.
"""

from __future__ import annotations

import os

from pykvm.devices.display.picture import Picture, PictureError
from pykvm.devices.pci.bar import RamBlock

_PAGE = 4096
MAX_BYTES = 256 << 20


class SimpleFramebuffer:
    """`width` x `height` pixels of `bpp` bits at guest-physical `gpa`, as memory.

    `ram` is what the machine maps there. 16 bits are 5:6:5, 24 and 32 bits 8:8:8, blue lowest.
    Raises `PictureError` for a shape that cannot be.
    """

    name = "framebuffer"

    def __init__(self, gpa: int, width: int = 1024, height: int = 768, bpp: int = 32) -> None:
        if bpp not in (15, 16, 24, 32):
            raise PictureError(f"{bpp} bits per pixel are not a format; use 15, 16, 24 or 32")
        if width < 1 or height < 1 or width * height * 4 > MAX_BYTES:
            raise PictureError(f"a frame buffer of {width}x{height} pixels is not possible")
        if gpa < 0 or gpa % _PAGE:
            raise PictureError(f"a frame buffer at {gpa:#x} is not page-aligned")
        #: Where the first pixel is, guest-physical.
        self.gpa = gpa
        self.width = width
        self.height = height
        self.bpp = bpp
        self.stride = width * ((bpp + 7) // 8)
        size = (self.stride * height + _PAGE - 1) // _PAGE * _PAGE
        self.ram = RamBlock(size, "pykvm-framebuffer")

    @property
    def channels(self) -> dict[str, tuple[int, int]]:
        """Lowest bit and width in bits of red, green and blue."""
        if self.bpp == 15:
            return {"red": (10, 5), "green": (5, 5), "blue": (0, 5)}
        if self.bpp == 16:
            return {"red": (11, 5), "green": (5, 6), "blue": (0, 5)}
        return {"red": (16, 8), "green": (8, 8), "blue": (0, 8)}

    def picture(self) -> Picture:
        """The pixels at this moment."""
        data = bytes(self.ram.view[: self.stride * self.height])
        return Picture(self.width, self.height, data, self.bpp)

    def save_png(self, path: str | os.PathLike[str]) -> None:
        """Writes what is shown as a PNG file. Raises `PictureError` without Pillow."""
        self.picture().save_png(path)

    def close(self) -> None:
        """Gives the memory back. Twice is harmless."""
        self.ram.close()
