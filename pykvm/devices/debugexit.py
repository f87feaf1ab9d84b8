"""The debug-exit port: a guest that writes `v` ends the machine with exit status `(v << 1) | 1`.

It behaves as QEMU's `isa-debug-exit` does (there too by default at port 0xf4).
"""

from __future__ import annotations

from pykvm.devices.base import Device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class DebugExit(Device):
    """Calls `on_exit(v)` for each write, on the vCPU's thread; reads give 0.

    `v` is the value as written, 8, 16 or 32 bits wide. Making an exit status of it is the
    machine's part.
    """

    name = "debug-exit"
    access_sizes = (1, 2, 4)
    max_access = 4
    LENGTH = 4

    def __init__(self, on_exit: Callable[[int], object]) -> None:
        self._on_exit = on_exit

    def read(self, offset: int, size: int) -> int:
        """0: nothing is there to read."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End the machine."""
        self._on_exit(value & (1 << 8 * size) - 1)
