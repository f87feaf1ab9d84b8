"""What every device model is made of: `Device`, its interrupt line, its clock.

A device sees (offset, size, value) and nothing of the machine around it: no KVM, no absolute
addresses. Its interrupt is an `IrqLine` that it was given, its time a `Clock` that it was given, so
that a test drives it without a CPU and owns its clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from pykvm.devices.clock import Clock, ManualClock, MonotonicClock, Timer
from pykvm.devices.state import DeviceStateError, StateReader

# `typing` alone takes as long to import as the whole UART; type checkers read this as true.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.typed import Protocol
else:
    Protocol = object

__all__ = [
    "Clock",
    "Device",
    "DeviceStateError",
    "IrqLine",
    "ManualClock",
    "MonotonicClock",
    "NullIrqLine",
    "RecordingIrqLine",
    "StateReader",
    "Timer",
]


class IrqLine(Protocol):
    """One interrupt line, as the device at its near end sees it.

    Called from vCPU threads, back-end threads and timers, with the device's lock held: an
    implementation must not call back into the device.
    """

    def set(self, level: bool) -> None:
        """Drive the line high (`True`) or low. Devices call it on changes only."""

    def pulse(self) -> None:
        """One edge: high, then low again."""


class NullIrqLine:
    """A line that is connected to nothing."""

    __slots__ = ()

    def set(self, level: bool) -> None:
        """Ignore the level."""

    def pulse(self) -> None:
        """Ignore the edge."""


class RecordingIrqLine:
    """A line for tests: keeps the level, the history of `set` calls and the rising edges."""

    def __init__(self) -> None:
        self.level = False
        self.edges = 0
        self.history: list[bool] = []

    def set(self, level: bool) -> None:
        """Record the level; a change from low to high counts as an edge."""
        if level and not self.level:
            self.edges += 1
        self.level = level
        self.history.append(level)

    def pulse(self) -> None:
        """Record high, then low."""
        self.set(True)
        self.set(False)

    def take_edge(self) -> bool:
        """True once per rising edge seen so far, as an edge-triggered PIC input latches it."""
        if self.edges:
            self.edges -= 1
            return True
        return False


class Device(ABC):
    """A device model behind a range of I/O ports or of guest-physical memory.

    `read` and `write` get an offset from the start of that range. The bus splits an access that
    is wider than `max_access` bytes, and never calls with a size that is not in `access_sizes`.
    Both may be called from several vCPU threads at once.
    """

    #: What messages and statistics call the device.
    name: str = "device"
    #: Access widths in bytes that the registers take.
    access_sizes: tuple[int, ...] = (1,)
    #: The widest register access in bytes.
    max_access: int = 1

    @abstractmethod
    def read(self, offset: int, size: int) -> int:
        """The value of `size` bytes at `offset`, little-endian."""

    @abstractmethod
    def write(self, offset: int, size: int, value: int) -> None:
        """Store the low `size` bytes of `value` at `offset`."""

    def reset(self) -> None:  # noqa: B027 - a device without state has nothing to reset
        """Go back to the state after power-on; what is attached outside (lines, back end) stays."""

    def save(self) -> dict[str, object]:
        """The guest-visible state as plain values (int, bool, str, None, lists of them)."""
        return {}

    def load(self, state: dict[str, object]) -> None:
        """Take over a state that `save` gave.

        Raises `DeviceStateError`, and changes nothing, where the state is not one of this device.
        """
        StateReader(self.name, state).finish()

    def close(self) -> None:  # noqa: B027 - most devices hold no resources
        """Give back threads, timers and files. May be called twice."""
