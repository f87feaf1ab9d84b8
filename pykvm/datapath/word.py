"""`AtomicWord`: 32 bits that Python and native threads change at the same time."""

from __future__ import annotations

from pykvm._native import ffi, lib
from pykvm.typed import Any


class AtomicWord:
    """A word whose changes are atomic; `cdata` is its `uint32_t *`, for native code.

    A virtio transport keeps its interrupt status in one: engines set bits and write an eventfd,
    the driver's acknowledgement clears them.
    """

    __slots__ = ("cdata",)

    def __init__(self, value: int = 0) -> None:
        self.cdata: Any = ffi.new("uint32_t *", value)

    @property
    def value(self) -> int:
        """What it is now."""
        return int(self.cdata[0])

    def set_bits(self, bits: int) -> int:
        """Sets bits; returns the value before."""
        return int(lib.pykvm_word_or(self.cdata, bits))

    def clear_bits(self, bits: int) -> int:
        """Clears bits; returns the value before."""
        return int(lib.pykvm_word_and(self.cdata, ~bits & 0xFFFF_FFFF))

    def take(self) -> int:
        """Clears all; returns the value before."""
        return int(lib.pykvm_word_and(self.cdata, 0))
