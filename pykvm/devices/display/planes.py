"""How the VGA's memory window writes and reads the four planes (planar modes).

Video memory is kept the way it is shown: byte `p` of 32-bit word `a` is plane `p` at address `a`,
so that one word operation works on all four planes. Source: FreeVGA, "VGA graphics controller".
"""

from __future__ import annotations

from pykvm.devices.display.registers import Registers

#: For a mask of planes (bit p = plane p): 0xff in the byte of each.
SPREAD = tuple(
    sum(0xFF << 8 * plane for plane in range(4) if mask >> plane & 1) for mask in range(16)
)
_ALL = 0xFFFF_FFFF
_BYTES = 0x0101_0101


class Planes:
    """The graphics controller's data path over video memory as 32-bit `words`."""

    __slots__ = ("latch", "registers", "words")

    def __init__(self, registers: Registers, words: memoryview) -> None:
        self.registers = registers
        self.words = words
        self.latch = 0

    def read(self, address: int) -> int:
        """One byte at `address` of the planes; the latches take all four."""
        latch = self.latch = self.words[address]
        graphics = self.registers.graphics
        if graphics[5] & 8:  # read mode 1: which dots have the colour asked for
            differ = (latch ^ SPREAD[graphics[2]]) & SPREAD[graphics[7]]
            differ |= differ >> 16
            differ |= differ >> 8
            return ~differ & 0xFF
        return latch >> 8 * (graphics[4] & 3) & 0xFF

    def write(self, address: int, value: int) -> None:
        """One byte to `address`, through write mode, logic function, bit mask and map mask."""
        graphics = self.registers.graphics
        mode = graphics[5] & 3
        latch = self.latch
        if mode == 1:
            result = latch
        else:
            bits = graphics[8]
            turn = graphics[3] & 7
            if mode == 2:
                result = SPREAD[value & 0x0F]
            else:
                value = (value >> turn | value << 8 - turn) & 0xFF
                if mode == 3:
                    bits &= value
                    result = SPREAD[graphics[0]]
                else:
                    fixed = SPREAD[graphics[1]]
                    result = value * _BYTES & ~fixed | SPREAD[graphics[0]] & fixed
            function = graphics[3] >> 3
            if mode != 3 or function:
                if function == 1:
                    result &= latch
                elif function == 2:
                    result |= latch
                elif function == 3:
                    result ^= latch
            mask = bits * _BYTES
            result = result & mask | latch & ~mask
        enabled = SPREAD[self.registers.sequencer[2]]
        self.words[address] = (self.words[address] & ~enabled | result & enabled) & _ALL
