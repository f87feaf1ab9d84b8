"""`Vga`: the standard VGA with the Bochs VBE extensions, over its video memory.

The device's own range are the ports 0x3b0 to 0x3df. The others are `window` (0xa0000 to 0xbffff),
`dispi_ports` (0x1ce to 0x1d0), `mmio` (the 4 KiB register BAR) and `ram` (video memory, the
frame buffer BAR). A text page of the window is what Linux's vgacon, GRUB and firmware write.
"""

from __future__ import annotations

import threading

from pykvm.devices.base import Device
from pykvm.devices.display import dispi as vbe
from pykvm.devices.display.dispi import Dispi
from pykvm.devices.display.planes import Planes
from pykvm.devices.display.registers import FIRST_PORT, PORTS, Registers
from pykvm.devices.display.vram import pack_memory, unpack_memory
from pykvm.devices.pci.bar import RamBlock
from pykvm.devices.pci.bar import Registers as Window
from pykvm.devices.state import StateReader

VRAM_SIZE = 16 << 20
WINDOW, WINDOW_SIZE = 0xA0000, 0x20000
MMIO_SIZE = 0x1000
# Memory map select (graphics register 6, bits 2 and 3): offset from 0xa0000, length.
_MAPS = ((0, 0x20000), (0, 0x10000), (0x10000, 0x8000), (0x18000, 0x8000))
_LINEAR, _CHAIN4, _ODD_EVEN, _PLANAR, _OFF = range(5)
_MMIO_PORTS, _MMIO_PORTS_END = 0x400, 0x420
_MMIO_VBE, _MMIO_VBE_END = 0x500, 0x500 + 2 * vbe.COUNT
_MMIO_SIZE_REGISTER, _MMIO_ENDIAN = 0x600, 0x604
_LITTLE_ENDIAN = 0x1E1E_1E1E


class Vga(Device):
    """A VGA adapter. `ram` is its video memory; `close()` gives that back.

    `generation` counts writes that came as exits, so that a viewer can see at a glance whether
    a text screen may have changed (writes to the linear frame buffer do not exit).
    """

    name = "vga"
    access_sizes = (1, 2)
    max_access = 2
    port, ports = FIRST_PORT, PORTS

    def __init__(self, vram_size: int = VRAM_SIZE) -> None:
        self.ram = RamBlock(vram_size, "pykvm-vga")
        self.vram_size = vram_size
        self.vram = self.ram.view
        self.generation = 0
        self._lock = threading.RLock()
        self._mode = _ODD_EVEN
        self._first, self._length = _MAPS[3]
        self.registers = Registers()
        self.dispi = Dispi(self.vram_size, self._vbe_changed)
        self.planes = Planes(self.registers, self.vram.cast("I"))
        self.registers.changed = self._changed
        self.window = Window("vga memory", self.read_window, self.write_window, 8)
        self.dispi_ports = Window("vga dispi", self.dispi.read_port, self._write_dispi, 2)
        self.mmio = Window("vga mmio", self.read_mmio, self.write_mmio, 4)
        self._changed()

    # -- ports ----------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """Ports 0x3b0 + `offset`: registers are bytes, a word is two neighbours."""
        with self._lock:
            value = self.registers.read(offset)
            if size == 2 and offset + 1 < PORTS:
                value |= self.registers.read(offset + 1) << 8
            return value

    def write(self, offset: int, size: int, value: int) -> None:
        """A word to an index port writes the index, then the data register behind it."""
        with self._lock:
            self.generation += 1
            self.registers.write(offset, value & 0xFF)
            if size == 2 and offset + 1 < PORTS:
                self.registers.write(offset + 1, value >> 8 & 0xFF)

    def _write_dispi(self, offset: int, size: int, value: int) -> None:
        with self._lock:
            self.generation += 1
            self.dispi.write_port(offset, size, value)

    def _vbe_changed(self, clear: bool) -> None:
        if clear:
            shown = self.dispi.stride * self.dispi.registers[vbe.YRES]
            shown = min(self.vram_size, shown)
            self.vram[:shown] = bytes(shown)
        eight = self.dispi.registers[vbe.ENABLE] & vbe.DAC_8BIT
        self.registers.palette_bits = 8 if eight else 6
        self._changed()

    def _changed(self) -> None:
        """Works out how the memory window is decoded now."""
        registers = self.registers
        self._first, self._length = _MAPS[registers.graphics[6] >> 2 & 3]
        if self.dispi.enabled and self.dispi.registers[vbe.BPP] != 4:
            self._mode, self._first, self._length = _LINEAR, 0, 0x10000
        elif not registers.misc & 2:
            self._mode = _OFF
        elif registers.sequencer[4] & 8:
            self._mode = _CHAIN4
        elif registers.graphics[5] & 0x10:
            self._mode = _ODD_EVEN
        else:
            self._mode = _PLANAR

    # -- memory window --------------------------------------------------------------------------

    def read_window(self, offset: int, size: int) -> int:
        """Bytes at guest-physical 0xa0000 + `offset`; what is not decoded reads as ones."""
        with self._lock:
            value = 0
            for i in range(size):
                value |= self._read_byte(offset + i - self._first) << 8 * i
            return value

    def _read_byte(self, at: int) -> int:
        if not 0 <= at < self._length:
            return 0xFF
        mode = self._mode
        if mode == _ODD_EVEN:
            plane = self.registers.graphics[4] & 2 | at & 1
            return self.vram[(at & ~1) << 1 | plane]
        if mode == _PLANAR:
            return self.planes.read(at)
        if mode == _CHAIN4:
            return self.vram[at]
        if mode == _LINEAR:
            return self.vram[(self.dispi.registers[vbe.BANK] << 16) + at]
        return 0xFF

    def write_window(self, offset: int, size: int, value: int) -> None:
        """Bytes to guest-physical 0xa0000 + `offset`; what is not decoded goes nowhere."""
        with self._lock:
            self.generation += 1
            at = offset - self._first
            text = self._mode == _ODD_EVEN and self.registers.sequencer[2] & 0x0F == 3
            if text and size in (2, 4, 8) and not at & 1 and 0 <= at <= self._length - size:
                # Characters with their attributes, one to four at once.
                vram = self.vram
                for i in range(at << 1, at + size << 1, 4):
                    vram[i] = value & 0xFF
                    vram[i + 1] = value >> 8 & 0xFF
                    value >>= 16
                return
            for i in range(size):
                self._write_byte(at + i, value >> 8 * i & 0xFF)

    def _write_byte(self, at: int, value: int) -> None:
        if not 0 <= at < self._length:
            return
        mode = self._mode
        if mode == _ODD_EVEN:
            plane = at & 1
            for target in (plane, plane | 2):
                if self.registers.sequencer[2] >> target & 1:
                    self.vram[(at & ~1) << 1 | target] = value
        elif mode == _PLANAR:
            self.planes.write(at, value)
        elif mode == _CHAIN4:
            if self.registers.sequencer[2] >> (at & 3) & 1:
                self.vram[at] = value
        elif mode == _LINEAR:
            self.vram[(self.dispi.registers[vbe.BANK] << 16) + at] = value

    # -- register BAR ---------------------------------------------------------------------------

    def read_mmio(self, offset: int, size: int) -> int:
        """The 4 KiB BAR: VGA ports at 0x400, VBE registers at 0x500, no EDID at 0."""
        with self._lock:
            if _MMIO_PORTS <= offset < _MMIO_PORTS_END:
                first = offset - _MMIO_PORTS + 0x10
                return sum(self.registers.read(first + i) << 8 * i for i in range(size))
            if _MMIO_VBE <= offset < _MMIO_VBE_END:
                index, odd = divmod(offset - _MMIO_VBE, 2)
                value = self.dispi.read(index) | self.dispi.read(index + 1) << 16
                return value >> 8 * odd & ((1 << 8 * size) - 1)
            if offset == _MMIO_SIZE_REGISTER:
                return 8 & ((1 << 8 * size) - 1)
            if offset == _MMIO_ENDIAN:
                return _LITTLE_ENDIAN & ((1 << 8 * size) - 1)
            return 0

    def write_mmio(self, offset: int, size: int, value: int) -> None:
        """Big-endian video memory does not exist here: the endian register keeps its value."""
        with self._lock:
            self.generation += 1
            if _MMIO_PORTS <= offset < _MMIO_PORTS_END:
                for i in range(min(size, _MMIO_PORTS_END - offset)):
                    self.registers.write(offset - _MMIO_PORTS + 0x10 + i, value >> 8 * i & 0xFF)
            elif _MMIO_VBE <= offset < _MMIO_VBE_END and size >= 2 and not offset & 1:
                index = (offset - _MMIO_VBE) // 2
                for i in range(size // 2):
                    self.dispi.write(index + i, value >> 16 * i & 0xFFFF)

    # -- life -----------------------------------------------------------------------------------

    def reset(self) -> None:
        """80x25 text, nothing on it, as firmware would leave it."""
        with self._lock:
            self.generation += 1
            self.dispi.reset()
            self.planes.latch = 0
            self.ram.clear()
            self.registers.reset()

    def save(self) -> dict[str, object]:
        """Registers, and the video memory that is not zero (deflated, base64)."""
        with self._lock:
            state = {"version": 1, "latch": self.planes.latch}
            return {
                **state, **self.registers.save(), **self.dispi.save(),
                "vram": pack_memory(self.ram),
            }  # fmt: skip

    def load(self, state: dict[str, object]) -> None:
        """As `Device.load`."""
        vram = state.get("vram") if isinstance(state, dict) else None
        rest = {k: v for k, v in state.items() if k != "vram"} if isinstance(state, dict) else state
        reader = StateReader(self.name, rest, version=1)
        latch = reader.integer("latch", 0xFFFF_FFFF)
        steps = [self.registers.parse(reader), self.dispi.parse(reader)]
        reader.finish()
        pieces = unpack_memory(self.name, vram, self.vram_size)
        with self._lock:
            self.generation += 1
            self.ram.clear()
            for offset, data in pieces:
                self.vram[offset : offset + len(data)] = data
            self.planes.latch = latch
            for apply in steps:
                apply()

    def close(self) -> None:
        """Gives the video memory back."""
        self.planes.words.release()
        self.ram.close()
