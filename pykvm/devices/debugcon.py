"""The debug console port 0xe9 of Bochs and QEMU: each byte written is printed."""

from __future__ import annotations

from pykvm.devices.base import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CHARACTERS = tuple(bytes((code,)) for code in range(256))


class DebugCon(Device):
    """Hands each byte written to `output`; reads give `readback`.

    A guest finds out by reading 0xe9 from port 0xe9 that the port exists.
    """

    name = "debugcon"
    LENGTH = 1

    def __init__(self, output: Callable[[bytes], object], readback: int = 0xE9) -> None:
        self._output = output
        self._readback = readback

    def read(self, offset: int, size: int) -> int:
        """The readback value, 0xe9."""
        return self._readback

    def write(self, offset: int, size: int, value: int) -> None:
        """Print the low byte of `value`."""
        self._output(_CHARACTERS[value & 0xFF])
