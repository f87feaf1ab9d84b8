"""The pvpanic port: a guest that panics says so.

Source: QEMU, docs/specs/pvpanic.rst. A read of port 0x505 gives the events that the machine knows,
a write reports some of them.
"""

from __future__ import annotations

from pykvm.devices.base import Device
from pykvm.devices.pc.window import PortRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PANICKED = 1  # the guest has panicked
CRASH_LOADED = 2  # it has, and a crash kernel takes over
EVENTS = PANICKED | CRASH_LOADED


class PvPanic(Device):
    """Calls `on_event(bits)` with the known bits of each write; unknown bits mean nothing."""

    name = "pvpanic"
    ADDRESS = 0x505
    LENGTH = 1

    def __init__(self, on_event: Callable[[int], object] | None = None) -> None:
        self._on_event = on_event

    def ranges(self) -> list[PortRange]:
        """Port 0x505."""
        return [PortRange("pio", self.ADDRESS, self.LENGTH, self)]

    def read(self, offset: int, size: int) -> int:
        """The events that are understood."""
        return EVENTS

    def write(self, offset: int, size: int, value: int) -> None:
        """Report events."""
        if value & EVENTS and self._on_event is not None:
            self._on_event(value & EVENTS)
