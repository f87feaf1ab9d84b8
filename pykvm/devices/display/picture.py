"""`Picture`: pixels in one of the formats of a frame buffer, and how they become a PNG file.

Pillow is imported when a file is written or a fallback font is drawn, never before.
"""

from __future__ import annotations

import os

from pykvm.devices.display.textframe import CP437, TextFrame
from pykvm.errors import PykvmError
from pykvm.typed import Any

Colour = tuple[int, int, int]
# Pillow's raw decoders for what a PC calls 15, 16, 24 and 32 bits a pixel: blue comes first.
_DECODERS = {15: "BGR;15", 16: "BGR;16", 24: "BGR", 32: "BGRX"}


class PictureError(PykvmError):
    """A picture that cannot be made."""


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise PictureError(
            "pictures need Pillow, which is not installed; run: pip install pillow"
        ) from None
    return Image


class Picture:
    """`width` x `height` pixels: rows without padding, 15, 16, 24 or 32 bits each, blue lowest."""

    def __init__(self, width: int, height: int, data: bytes, bpp: int) -> None:
        if bpp not in _DECODERS:
            raise PictureError(f"{bpp} bits per pixel are not a format; use 15, 16, 24 or 32")
        need = width * height * ((bpp + 7) // 8)
        if len(data) != need:
            raise PictureError(f"{width}x{height} at {bpp} bits need {need} bytes, not {len(data)}")
        self.width = width
        self.height = height
        self.data = data
        self.bpp = bpp

    def image(self) -> Any:
        """A Pillow image, RGB. Raises `PictureError` without Pillow."""
        module = _pillow()
        size = (self.width, self.height)
        return module.frombytes("RGB", size, self.data, "raw", _DECODERS[self.bpp])

    def save_png(self, path: str | os.PathLike[str]) -> None:
        """Writes a PNG file. Raises `PictureError` without Pillow, `OSError` of the file."""
        self.image().save(os.fspath(path), "PNG")


def palette_picture(rows: list[bytes], width: int, colours: list[Colour]) -> Picture:
    """A byte per pixel through 256 colours."""
    pixels = [bytes((blue, green, red)) for red, green, blue in colours]
    data = b"".join([b"".join([pixels[index] for index in row]) for row in rows])
    return Picture(width, len(rows), data, 24)


def dots_picture(rows: list[bytes], width: int, colours: list[Colour]) -> Picture:
    """Planar rows: four bytes (planes 0 to 3) for each eight dots, the leftmost in bit 7."""
    pixels = [bytes((blue, green, red)) for red, green, blue in colours]
    out = []
    for row in rows:
        for at in range(0, len(row), 4):
            one, two, four, eight = row[at : at + 4]
            for bit in range(7, -1, -1):
                index = (
                    one >> bit & 1 | (two >> bit & 1) << 1
                    | (four >> bit & 1) << 2 | (eight >> bit & 1) << 3
                )  # fmt: skip
                out.append(pixels[index])
    return Picture(width, len(rows), b"".join(out), 24)


def text_picture(
    frame: TextFrame, font: list[bytes] | None, colours: list[Colour], height: int, *,
    wide: bool = True, blink: bool = True,
) -> Picture:  # fmt: skip
    """A text screen drawn with an 8-dot font (a byte for each line of a glyph), cursor and all.

    `wide` makes cells nine dots, as text modes have them: the ninth repeats the eighth for the
    line-drawing characters 0xc0 to 0xdf. With `blink` the background has eight colours.
    """
    if font is None:
        font = fallback_font(height)
    width = 9 if wide else 8
    pixels = [bytes((blue, green, red)) for red, green, blue in colours]
    cells: dict[tuple[int, int], list[bytes]] = {}
    rows: list[bytes] = []
    for row in range(frame.rows):
        drawn = []
        for column in range(frame.columns):
            at = row * frame.columns + column
            key = frame.codes[at], frame.attributes[at]
            cell = cells.get(key)
            if cell is None:
                cell = cells[key] = _cell(font[key[0]], *key, pixels, height, width, blink)
            if frame.cursor == (row, column):
                front = pixels[key[1] & 0x0F] * width
                cell = cell[: height - 2] + [front] * min(2, height)
            drawn.append(cell)
        rows.extend(b"".join([cell[line] for cell in drawn]) for line in range(height))
    return Picture(frame.columns * width, frame.rows * height, b"".join(rows), 24)


def _cell(
    glyph: bytes, code: int, attribute: int, pixels: list[bytes], height: int, width: int,
    blink: bool,
) -> list[bytes]:  # fmt: skip
    front = pixels[attribute & 0x0F]
    back = pixels[attribute >> 4 & (7 if blink else 15)]
    lines = []
    for line in range(height):
        bits = glyph[line] if line < len(glyph) else 0
        dots = [front if bits >> bit & 1 else back for bit in range(7, -1, -1)]
        if width == 9:
            dots.append(dots[7] if 0xC0 <= code <= 0xDF else back)
        lines.append(b"".join(dots))
    return lines


# Line-drawing characters as the arms they have, light (1) or double (2): left, right, up, down.
_ARMS = {
    "│": "0011", "┤": "1011", "╡": "2011", "╢": "1022", "╖": "1002", "╕": "2001", "╣": "2022",
    "║": "0022", "╗": "2002", "╝": "2020", "╜": "1020", "╛": "2010", "┐": "1001", "└": "0110",
    "┴": "1110", "┬": "1101", "├": "0111", "─": "1100", "┼": "1111", "╞": "0211", "╟": "0122",
    "╚": "0220", "╔": "0202", "╩": "2220", "╦": "2202", "╠": "0222", "═": "2200", "╬": "2222",
    "╧": "2210", "╨": "1120", "╤": "2201", "╥": "1102", "╙": "0120", "╘": "0210", "╒": "0201",
    "╓": "0102", "╫": "1122", "╪": "2211", "┘": "1010", "┌": "0101",
}  # fmt: skip
_SHADES = {"░": (0x88, 0x22), "▒": (0xAA, 0x55), "▓": (0x77, 0xDD), "█": (0xFF, 0xFF)}


def fallback_font(height: int) -> list[bytes]:
    """256 glyphs of 8 x `height` dots for a guest that loaded no font: Pillow's own, and lines."""
    _pillow()
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.load_default_imagefont()
    glyphs = []
    for char in CP437:
        if char in _ARMS:
            glyphs.append(_lines(_ARMS[char], height))
        elif char in _SHADES:
            glyphs.append(bytes(_SHADES[char][line & 1] for line in range(height)))
        else:
            image = Image.new("1", (8, height))
            shown = char if ord(char) < 0x100 else "?"
            ImageDraw.Draw(image).text((1, max(0, (height - 11) // 2)), shown, 1, face)
            glyphs.append(image.tobytes())
    return glyphs


def _lines(arms: str, height: int) -> bytes:
    left, right, up, down = (int(arm) for arm in arms)
    rows = [0] * height
    middle = height // 2
    for arm, bits in ((left, 0xF8), (right, 0x1F)):
        for row in {0: (), 1: (middle,), 2: (middle - 1, middle + 1)}[arm]:
            rows[min(max(row, 0), height - 1)] |= bits
    for arm, span in ((up, range(middle + 1)), (down, range(middle, height))):
        for row in span:
            rows[row] |= {0: 0, 1: 0x10, 2: 0x28}[arm]
    return bytes(rows)
