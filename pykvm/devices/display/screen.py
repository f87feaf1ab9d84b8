"""`Screen`: what a VGA shows at this moment, as text, ANSI colours, pixels or a PNG file."""

from __future__ import annotations

import os

from pykvm.devices.display import dispi as vbe
from pykvm.devices.display.picture import Picture, dots_picture, palette_picture, text_picture
from pykvm.devices.display.textframe import TextFrame
from pykvm.devices.display.vga import Vga

MAX_CELLS = 256 * 100  # a text screen's size comes from guest registers
MAX_LINES = 1200


class Screen:
    """Looks at a `Vga`; safe to use while the guest runs (a frame may then be half drawn)."""

    def __init__(self, vga: Vga) -> None:
        self.vga = vga

    @property
    def mode(self) -> str:
        """ "text", "planar" (16 colours), "linear" (256 colours, VGA) or "vbe"."""
        vga = self.vga
        if vga.dispi.enabled:
            return "vbe"
        if not vga.registers.is_graphics:
            return "text"
        return "linear" if vga.registers.graphics[5] & 0x40 else "planar"

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of a text screen, pixels of any other."""
        vga, registers = self.vga, self.vga.registers
        if vga.dispi.enabled:
            return vga.dispi.registers[vbe.XRES], vga.dispi.registers[vbe.YRES]
        if not registers.is_graphics:
            frame = self.frame()
            return frame.columns, frame.rows
        width = registers.columns * (4 if registers.graphics[5] & 0x40 else 8)
        return width, max(1, self._lines() // self._scan())

    def _lines(self) -> int:
        return min(self.vga.registers.lines, MAX_LINES)

    def _scan(self) -> int:
        """Scan lines for each row of dots (double scan, maximum scan line)."""
        crtc = self.vga.registers.crtc
        return ((crtc[9] & 0x1F) + 1) * (2 if crtc[9] & 0x80 else 1)

    def frame(self) -> TextFrame:
        """The text cells as the CRTC shows them, whatever mode is set."""
        vga, registers = self.vga, self.vga.registers
        columns = registers.columns
        rows = max(1, min(self._lines() // self._scan(), MAX_CELLS // columns))
        pitch = registers.crtc[0x13] * 2 or columns
        start = registers.start
        words = vga.vram_size // 4
        codes, attributes = bytearray(), bytearray()
        for row in range(rows):
            at = (start + row * pitch) % (words - columns) * 4
            line = bytes(vga.vram[at : at + 4 * columns])
            codes += line[0::4]
            attributes += line[1::4]
        cursor = None
        where = registers.cursor - start
        if not registers.crtc[0x0A] & 0x20 and where >= 0:
            row, column = divmod(where, pitch)
            if row < rows and column < columns:
                cursor = row, column
        return TextFrame(columns, rows, bytes(codes), bytes(attributes), cursor)

    def lines(self) -> list[str]:
        """The rows of a text screen; none in a graphics mode."""
        return self.frame().lines() if self.mode == "text" else []

    def text(self) -> str:
        """The text screen as characters; empty in a graphics mode."""
        return "\n".join(self.lines()).rstrip("\n")

    def ansi(self) -> str:
        """The text screen with colours for a terminal; one line of words in a graphics mode."""
        if self.mode != "text":
            width, height = self.size
            return f"[graphics mode {width}x{height}]"
        return self.frame().ansi()

    # -- pixels ---------------------------------------------------------------------------------

    def picture(self) -> Picture:
        """The pixels, with the guest's palette, and its font where one is loaded."""
        mode = self.mode
        if mode == "vbe":
            return self._vbe()
        if mode == "text":
            return self._text()
        width, height = self.size
        registers = self.vga.registers
        pitch = (registers.crtc[0x13] * 2 or width // 8) * 4
        start = registers.start * 4
        if mode == "linear":
            pitch *= 2 if pitch < width else 1
            rows = self._rows(start, pitch, width, height)
            return palette_picture(rows, width, [registers.colour(i) for i in range(256)])
        rows = self._rows(start, pitch, width // 2, height)
        return dots_picture(rows, width, [registers.attribute_colour(i) for i in range(16)])

    def _rows(self, start: int, pitch: int, length: int, height: int) -> list[bytes]:
        vram, size = self.vga.vram, self.vga.vram_size
        rows = []
        for y in range(height):
            at = (start + y * pitch) % size
            row = bytes(vram[at : at + length])
            rows.append(row + bytes(length - len(row)))
        return rows

    def _vbe(self) -> Picture:
        dispi, registers = self.vga.dispi, self.vga.registers
        width, height, bpp = (dispi.registers[i] for i in (vbe.XRES, vbe.YRES, vbe.BPP))
        length = width // 2 if bpp == 4 else width * ((bpp + 7) // 8)
        rows = self._rows(dispi.start, dispi.stride, length, height)
        if bpp == 4:
            return dots_picture(rows, width, [registers.attribute_colour(i) for i in range(16)])
        if bpp == 8:
            return palette_picture(rows, width, [registers.colour(i) for i in range(256)])
        return Picture(width, height, b"".join(rows), bpp)

    def _text(self) -> Picture:
        registers = self.vga.registers
        height = max(1, min(self._scan(), 32))
        # Character map A (sequencer register 3): 8 KiB blocks of plane 2, in this order.
        select = registers.sequencer[3]
        block = (0, 2, 4, 6, 1, 3, 5, 7)[select & 3 | select >> 2 & 4]
        base = block * 0x2000 * 4
        plane = bytes(self.vga.vram[base + 2 : base + 0x2000 * 4 : 4])
        font = [plane[32 * code : 32 * code + height] for code in range(256)]
        colours = [registers.attribute_colour(i) for i in range(16)]
        wide = not registers.sequencer[1] & 1
        blink = bool(registers.attribute[0x10] & 8)
        return text_picture(
            self.frame(), font if any(plane) else None, colours, height, wide=wide, blink=blink
        )

    def save_png(self, path: str | os.PathLike[str]) -> None:
        """Writes what is shown as a PNG file. Raises `PictureError` without Pillow."""
        self.picture().save_png(path)
