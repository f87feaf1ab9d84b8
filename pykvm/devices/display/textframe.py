"""A text screen at one moment: characters, attributes and cursor, as text or as ANSI colours."""

from __future__ import annotations

from pykvm.typed import NamedTuple

# Code page 437 as a VGA font shows it: the control codes have glyphs too.
_CONTROL = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"
CP437 = (
    _CONTROL + bytes(range(0x20, 0x7F)).decode() + "⌂" + bytes(range(0x80, 0x100)).decode("cp437")
)
# CP437 has no-break space at 0xff; a terminal shows it as a space.
_GLYPHS = CP437[:0xFF] + " "
# VGA colours are IRGB with blue lowest; ANSI has red lowest.
_ANSI = (0, 4, 2, 6, 1, 5, 3, 7)


class TextFrame(NamedTuple):
    """`codes` and `attributes` have one byte per cell, row by row.

    `cursor` is (row, column), or None where it is hidden or off the screen.
    """

    columns: int
    rows: int
    codes: bytes
    attributes: bytes
    cursor: tuple[int, int] | None = None

    def row(self, index: int) -> str:
        """Row `index` as characters, full width."""
        at = index * self.columns
        return "".join([_GLYPHS[code] for code in self.codes[at : at + self.columns]])

    def lines(self) -> list[str]:
        """All rows, without the blanks at their ends."""
        return [self.row(i).rstrip() for i in range(self.rows)]

    def text(self) -> str:
        """The rows joined by newlines, without the empty ones at the end."""
        return "\n".join(self.lines()).rstrip("\n")

    def ansi_row(self, index: int) -> str:
        """Row `index` with SGR colour sequences, ending in a reset."""
        at = index * self.columns
        parts = []
        last = -1
        for i in range(at, at + self.columns):
            attribute = self.attributes[i]
            if attribute != last:
                parts.append(sgr(attribute))
                last = attribute
            parts.append(_GLYPHS[self.codes[i]])
        parts.append("\x1b[0m")
        return "".join(parts)

    def ansi(self) -> str:
        """The whole frame for a terminal, a line per row."""
        return "\n".join(self.ansi_row(i) for i in range(self.rows))


def sgr(attribute: int) -> str:
    """The escape sequence of a VGA attribute: foreground 0-3, background 4-6, bit 7 blinks."""
    foreground = _ANSI[attribute & 7] + (90 if attribute & 8 else 30)
    background = _ANSI[attribute >> 4 & 7] + 40
    blink = ";5" if attribute & 0x80 else ""
    return f"\x1b[0;{foreground};{background}{blink}m"
