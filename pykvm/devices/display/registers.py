"""The VGA's register file: what a guest reads and writes at ports 0x3b0 to 0x3df.

Names and bits are those of the IBM VGA as FreeVGA documents them. Nothing here draws or knows
memory; `Registers.changed` tells the owner that a register which decides a mode was written.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.state import StateReader

FIRST_PORT = 0x3B0
PORTS = 0x30
_ATTRIBUTE, _ATTRIBUTE_DATA = 0x10, 0x11  # offsets from 0x3b0
_MISC_WRITE, _SEQUENCER, _SEQUENCER_DATA = 0x12, 0x14, 0x15
_DAC_MASK, _DAC_READ, _DAC_WRITE, _DAC_DATA = 0x16, 0x17, 0x18, 0x19
_FEATURE, _MISC, _GRAPHICS, _GRAPHICS_DATA = 0x1A, 0x1C, 0x1E, 0x1F

# The bits that exist; the rest read back as 0.
_SEQUENCER_BITS = (0x03, 0x3D, 0x0F, 0x3F, 0x0E, 0x00, 0x00, 0xFF)
_GRAPHICS_BITS = (0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF)
_ATTRIBUTE_BITS = (*(0x3F,) * 16, 0xEF, 0xFF, 0x3F, 0x0F, 0x0F)
CRTC_COUNT, SEQUENCER_COUNT, GRAPHICS_COUNT, ATTRIBUTE_COUNT = 25, 8, 9, 21

# Mode 3, 80x25 text of 9x16 dots: what a PC's firmware leaves behind.
_TEXT_MISC = 0x67
_TEXT_SEQUENCER = bytes.fromhex("0300030002000000")
_TEXT_CRTC = bytes.fromhex("5f4f50825581bf1f004f0d0e000000009c8e8f281f96b9a3ff")
_TEXT_GRAPHICS = bytes.fromhex("0000000000100e00ff")
_TEXT_ATTRIBUTE = bytes.fromhex("000102030405140738393a3b3c3d3e3f0c000f0800")


def _ega_palette() -> bytes:
    """The 64 colours of the EGA (bits rgbRGB) as 6-bit DAC triples, then zeros."""
    palette = bytearray(768)
    for i in range(64):
        for channel in range(3):
            strong, weak = i >> (2 - channel) & 1, i >> (5 - channel) & 1
            palette[3 * i + channel] = 0x2A * strong + 0x15 * weak
    return bytes(palette)


class Registers:
    """All VGA registers. Reset is 80x25 text, as a machine without firmware needs it."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self.changed = changed
        self.palette_bits = 6  # 8 where the Bochs extension asked for it
        self.reset()

    def reset(self) -> None:
        """Text mode 3 with the standard palette."""
        self.misc = _TEXT_MISC
        self.feature = 0
        self.sequencer = bytearray(_TEXT_SEQUENCER)
        self.crtc = bytearray(_TEXT_CRTC)
        self.graphics = bytearray(_TEXT_GRAPHICS)
        self.attribute = bytearray(_TEXT_ATTRIBUTE)
        self.palette = bytearray(_ega_palette())
        self.sequencer_index = self.crtc_index = self.graphics_index = 0
        self.attribute_index = 0x20  # bit 5: the screen shows something
        self.attribute_data = False  # whether the next write to 0x3c0 is data
        self.status1 = 0
        self.dac_mask = 0xFF
        self.dac_reading = False
        self.dac_read = self.dac_write = self.dac_part = 0
        self.dac_latch = bytearray(3)
        self.palette_bits = 6
        self.changed()

    # -- ports ----------------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        """One byte at port 0x3b0 + `offset`."""
        if offset in (0x04, 0x05, 0x0A, 0x24, 0x25, 0x2A):
            return self._read_crtc(offset)
        if offset == _ATTRIBUTE:
            return self.attribute_index if not self.attribute_data else 0
        if offset == _ATTRIBUTE_DATA:
            index = self.attribute_index & 0x1F
            return self.attribute[index] if index < ATTRIBUTE_COUNT else 0
        if offset == _MISC_WRITE:
            return 0x00  # input status 0: no interrupt, switches open
        if offset == _SEQUENCER:
            return self.sequencer_index
        if offset == _SEQUENCER_DATA:
            return self.sequencer[self.sequencer_index]
        if offset == _DAC_MASK:
            return self.dac_mask
        if offset == _DAC_READ:
            return 3 if self.dac_reading else 0
        if offset == _DAC_WRITE:
            return self.dac_write
        if offset == _DAC_DATA:
            return self._read_dac()
        if offset == _FEATURE:
            return self.feature
        if offset == _MISC:
            return self.misc
        if offset == _GRAPHICS:
            return self.graphics_index
        if offset == _GRAPHICS_DATA:
            index = self.graphics_index
            return self.graphics[index] if index < GRAPHICS_COUNT else 0
        return 0xFF

    def write(self, offset: int, value: int) -> None:
        """One byte to port 0x3b0 + `offset`."""
        if offset in (0x04, 0x05, 0x0A, 0x24, 0x25, 0x2A):
            self._write_crtc(offset, value)
        elif offset == _ATTRIBUTE:
            self._write_attribute(value)
        elif offset == _MISC_WRITE:
            self.misc = value & 0xEF
            self.changed()
        elif offset == _SEQUENCER:
            self.sequencer_index = value & 7
        elif offset == _SEQUENCER_DATA:
            self.sequencer[self.sequencer_index] = value & _SEQUENCER_BITS[self.sequencer_index]
            self.changed()
        elif offset == _DAC_MASK:
            self.dac_mask = value
        elif offset == _DAC_READ:
            self.dac_read, self.dac_part, self.dac_reading = value, 0, True
        elif offset == _DAC_WRITE:
            self.dac_write, self.dac_part, self.dac_reading = value, 0, False
        elif offset == _DAC_DATA:
            self._write_dac(value)
        elif offset == _GRAPHICS:
            self.graphics_index = value & 0x0F
        elif offset == _GRAPHICS_DATA and self.graphics_index < GRAPHICS_COUNT:
            self.graphics[self.graphics_index] = value & _GRAPHICS_BITS[self.graphics_index]
            self.changed()

    def _decodes(self, offset: int) -> bool:
        """Misc bit 0 chooses between the CRTC at 0x3d4 and, for monochrome, at 0x3b4."""
        return bool(self.misc & 1) == (offset >= 0x20)

    def _read_crtc(self, offset: int) -> int:
        if not self._decodes(offset):
            return 0xFF
        low = offset & 0x0F
        if low == 4:
            return self.crtc_index
        if low == 5:
            return self.crtc[self.crtc_index] if self.crtc_index < CRTC_COUNT else 0
        # Input status 1. Drivers poll it until a retrace begins and ends: it is always just then.
        self.attribute_data = False
        self.status1 ^= 0x09
        return self.status1

    def _write_crtc(self, offset: int, value: int) -> None:
        if not self._decodes(offset):
            return
        low = offset & 0x0F
        if low == 4:
            self.crtc_index = value
        elif low == 0x0A:
            self.feature = value & 0x08
        elif self.crtc_index < CRTC_COUNT:
            index = self.crtc_index
            if index <= 7 and self.crtc[0x11] & 0x80:  # write-protected but for line compare
                if index == 7:
                    self.crtc[7] = self.crtc[7] & ~0x10 | value & 0x10
                return
            self.crtc[index] = value
            self.changed()

    def _write_attribute(self, value: int) -> None:
        self.attribute_data = not self.attribute_data
        if self.attribute_data:
            self.attribute_index = value & 0x3F
            return
        index = self.attribute_index & 0x1F
        if index < ATTRIBUTE_COUNT:
            self.attribute[index] = value & _ATTRIBUTE_BITS[index]

    def _read_dac(self) -> int:
        value = self.palette[3 * self.dac_read + self.dac_part]
        self.dac_part += 1
        if self.dac_part == 3:
            self.dac_part = 0
            self.dac_read = self.dac_read + 1 & 0xFF
        return value

    def _write_dac(self, value: int) -> None:
        self.dac_latch[self.dac_part] = value if self.palette_bits == 8 else value & 0x3F
        self.dac_part += 1
        if self.dac_part == 3:
            self.palette[3 * self.dac_write : 3 * self.dac_write + 3] = self.dac_latch
            self.dac_part = 0
            self.dac_write = self.dac_write + 1 & 0xFF

    # -- what the registers say -----------------------------------------------------------------

    @property
    def is_graphics(self) -> bool:
        """Whether dots rather than characters are shown."""
        return bool(self.graphics[6] & 1)

    @property
    def blanked(self) -> bool:
        """Whether the screen is off (sequencer clocking mode) or has no palette."""
        return bool(self.sequencer[1] & 0x20) or not self.attribute_index & 0x20

    @property
    def lines(self) -> int:
        """Scan lines shown: vertical display end, with its bits 8 and 9 from the overflow."""
        overflow = self.crtc[7]
        return (self.crtc[0x12] | (overflow & 2) << 7 | (overflow & 0x40) << 3) + 1

    @property
    def columns(self) -> int:
        """Characters shown in a row."""
        return self.crtc[1] + 1

    @property
    def start(self) -> int:
        """The CRTC's start address, in its own units."""
        return self.crtc[0x0C] << 8 | self.crtc[0x0D]

    @property
    def cursor(self) -> int:
        """The cursor's address, in characters."""
        return self.crtc[0x0E] << 8 | self.crtc[0x0F]

    def colour(self, index: int) -> tuple[int, int, int]:
        """DAC entry `index` as 8-bit red, green and blue."""
        red, green, blue = self.palette[3 * (index & self.dac_mask) :][:3]
        if self.palette_bits == 8:
            return red, green, blue
        return tuple((c << 2 | c >> 4) & 0xFF for c in (red, green, blue))  # type: ignore[return-value]

    def attribute_colour(self, value: int) -> tuple[int, int, int]:
        """A 4-bit colour through the attribute controller's palette and the DAC."""
        dac = self.attribute[value & 0x0F]
        if self.attribute[0x10] & 0x80:
            dac = dac & 0x0F | (self.attribute[0x14] & 0x03) << 4
        return self.colour((dac & 0x3F) | (self.attribute[0x14] & 0x0C) << 4)

    # -- state ----------------------------------------------------------------------------------

    _BYTES = ("misc", "feature", "crtc_index", "dac_mask", "dac_read", "dac_write")
    _FILES = (
        ("sequencer", SEQUENCER_COUNT), ("crtc", CRTC_COUNT), ("graphics", GRAPHICS_COUNT),
        ("attribute", ATTRIBUTE_COUNT), ("palette", 768), ("dac_latch", 3),
    )  # fmt: skip

    def save(self) -> dict[str, object]:
        """Every register as plain values."""
        state: dict[str, object] = {name: getattr(self, name) for name in self._BYTES}
        for name, _ in self._FILES:
            state[name] = list(getattr(self, name))
        state["sequencer_index"] = self.sequencer_index
        state["graphics_index"] = self.graphics_index
        state["attribute_index"] = self.attribute_index
        state["attribute_data"] = self.attribute_data
        state["status1"] = self.status1
        state["dac_reading"] = self.dac_reading
        state["dac_part"] = self.dac_part
        state["palette_bits"] = self.palette_bits
        return state

    def parse(self, reader: StateReader) -> Callable[[], None]:
        """Reads what `save` gave; the function returned puts it in force."""
        values: dict[str, object] = {name: reader.integer(name, 0xFF) for name in self._BYTES}
        for name, count in self._FILES:
            listed = reader.integers(name, count, 0xFF)
            values[name] = bytearray(listed + [0] * (count - len(listed)))
        values["sequencer_index"] = reader.integer("sequencer_index", 7)
        values["graphics_index"] = reader.integer("graphics_index", 15)
        values["attribute_index"] = reader.integer("attribute_index", 0x3F)
        values["attribute_data"] = reader.boolean("attribute_data")
        values["status1"] = reader.integer("status1", 9)
        values["dac_reading"] = reader.boolean("dac_reading")
        values["dac_part"] = reader.integer("dac_part", 2)
        values["palette_bits"] = reader.integer("palette_bits", 8, 6)

        def apply() -> None:
            self.__dict__.update(values)
            self.changed()

        return apply
