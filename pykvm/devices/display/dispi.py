"""The Bochs VBE extensions ("DISPI"): 16-bit registers that set a linear graphics mode.

Index and data are at ports 0x1ce and 0x1cf (0x1d0 for drivers that want it aligned), and as
16-bit words at 0x500 of the MMIO BAR. Source: Bochs' and QEMU's description of the interface
(`docs/specs/standard-vga`). Impossible sizes are cut to what the video memory holds.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.state import StateReader

PORT, PORTS = 0x1CE, 3
ID, XRES, YRES, BPP, ENABLE, BANK, VIRT_WIDTH, VIRT_HEIGHT, X_OFFSET, Y_OFFSET, VRAM_64K = range(11)
COUNT = 11
ID5 = 0xB0C5
MAX_XRES, MAX_YRES, MAX_BPP = 16000, 12000, 32
ENABLED, GETCAPS, DAC_8BIT, LFB, NO_CLEAR = 0x01, 0x02, 0x20, 0x40, 0x80
_DEPTHS = (4, 8, 15, 16, 24, 32)


class Dispi:
    """The registers. `on_enable(clear)` is called when a mode starts or ends."""

    def __init__(
        self, vram_size: int, on_enable: Callable[[bool], None] = lambda clear: None
    ) -> None:
        self.vram_size = vram_size
        self._on_enable = on_enable
        self.registers = [0] * COUNT
        self.index = 0
        self.reset()

    def reset(self) -> None:
        """No mode is set."""
        self.registers[:] = [0] * COUNT
        self.registers[ID] = ID5
        self.index = 0

    @property
    def enabled(self) -> bool:
        """Whether the linear mode is what the screen shows."""
        return bool(self.registers[ENABLE] & ENABLED)

    @property
    def stride(self) -> int:
        """Bytes from one line to the next."""
        bpp = self.registers[BPP]
        width = self.registers[VIRT_WIDTH]
        return width // 2 if bpp == 4 else width * ((bpp + 7) // 8)

    @property
    def start(self) -> int:
        """The offset in bytes of the first shown pixel in video memory."""
        r = self.registers
        along = r[X_OFFSET] // 2 if r[BPP] == 4 else r[X_OFFSET] * ((r[BPP] + 7) // 8)
        return r[Y_OFFSET] * self.stride + along

    def read(self, index: int) -> int:
        """Register `index`; with GETCAPS set, sizes are the largest possible ones."""
        if index >= COUNT:
            return 0
        if index == VRAM_64K:
            return self.vram_size >> 16
        if self.registers[ENABLE] & GETCAPS:
            if index == XRES:
                return MAX_XRES
            if index == YRES:
                return MAX_YRES
            if index == BPP:
                return MAX_BPP
        return self.registers[index]

    def write(self, index: int, value: int) -> None:
        """16 bits to register `index`; sizes that cannot be are ignored."""
        r = self.registers
        if index == ID:
            if value & 0xFFF0 == 0xB0C0:
                r[ID] = value
        elif index == XRES:
            if value <= MAX_XRES and value % 8 == 0:
                r[XRES] = value
        elif index == YRES:
            if value <= MAX_YRES:
                r[YRES] = value
        elif index == BPP:
            if value in (0, *_DEPTHS):
                r[BPP] = value or 8
        elif index == BANK:
            r[BANK] = min(value & 0x1FF, (self.vram_size >> 16) - 1)
        elif index == ENABLE:
            self._enable(value)
        elif index in (VIRT_WIDTH, X_OFFSET, Y_OFFSET):
            r[index] = value
            self._fit()

    def _enable(self, value: int) -> None:
        r = self.registers
        before = r[ENABLE]
        r[ENABLE] = value & 0xFF
        if value & ENABLED and not before & ENABLED:
            r[VIRT_WIDTH] = r[XRES]
            r[X_OFFSET] = r[Y_OFFSET] = r[BANK] = 0
            self._fit()
            self._on_enable(not value & NO_CLEAR)
        elif (before ^ value) & (ENABLED | DAC_8BIT):
            if not value & ENABLED:
                r[BANK] = 0
            self._on_enable(False)

    def _fit(self) -> None:
        """What is shown must lie in video memory."""
        r = self.registers
        r[BPP] = r[BPP] or 8
        bits = {4: 4, 15: 16}.get(r[BPP], r[BPP])
        r[XRES] = r[XRES] or 8
        r[VIRT_WIDTH] = max(r[VIRT_WIDTH], r[XRES]) // 8 * 8
        line = r[VIRT_WIDTH] * bits // 8
        lines = self.vram_size // line
        r[YRES] = max(1, min(r[YRES], lines))
        r[VIRT_HEIGHT] = min(lines, 0xFFFF)
        r[X_OFFSET] = min(r[X_OFFSET], r[VIRT_WIDTH] - r[XRES])
        r[Y_OFFSET] = min(r[Y_OFFSET], r[VIRT_HEIGHT] - r[YRES])

    def save(self) -> dict[str, object]:
        """Index and registers."""
        return {"vbe_index": self.index, "vbe": list(self.registers)}

    def parse(self, reader: StateReader) -> Callable[[], None]:
        """Reads what `save` gave; the function returned puts it in force."""
        index = reader.integer("vbe_index", 0xFFFF)
        registers = reader.integers("vbe", COUNT, 0xFFFF)
        registers += [0] * (COUNT - len(registers))

        def apply() -> None:
            self.index = index
            self.registers[:] = registers
            if self.registers[BPP] not in _DEPTHS:
                self.registers[BPP] = 8 if self.enabled else 0
            self.registers[XRES] = min(self.registers[XRES], MAX_XRES) // 8 * 8
            self.registers[BANK] = min(self.registers[BANK], (self.vram_size >> 16) - 1)
            if self.enabled:
                self._fit()

        return apply

    # -- ports ----------------------------------------------------------------------------------

    def read_port(self, offset: int, size: int) -> int:
        """Ports 0x1ce (index) and 0x1cf or 0x1d0 (data), 16 bits wide; a byte is the low half."""
        value = self.index if offset == 0 else self.read(self.index)
        return value & ((1 << 8 * size) - 1)

    def write_port(self, offset: int, size: int, value: int) -> None:
        """The index, or data of the indexed register."""
        if offset == 0:
            self.index = value & 0xFFFF
        else:
            self.write(self.index, value & 0xFFFF)
