"""Interrupt lines, by GSI, into whichever interrupt controllers the machine has."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from pykvm.typed import Protocol

Drive = Callable[[int, bool], object]


class Line(Protocol):
    """What devices get: see `pykvm.devices.IrqLine`."""

    gsi: int
    level: bool

    def set(self, level: bool) -> None: ...
    def pulse(self) -> None: ...


class _Input:
    """One GSI. Several lines may lead to it: it is high while any of them is (wired OR)."""

    __slots__ = ("drive", "gsi", "high", "lock")

    def __init__(self, gsi: int, drive: Drive) -> None:
        self.gsi = gsi
        self.drive = drive
        self.high = 0
        self.lock = Lock()


class GsiLine:
    """One device's line to a GSI (KVM API 4.25 KVM_IRQ_LINE)."""

    __slots__ = ("_input", "gsi", "level")

    def __init__(self, shared: _Input) -> None:
        self._input = shared
        self.gsi = shared.gsi
        self.level = False

    def set(self, level: bool) -> None:
        """Drives the line; unchanged levels cost nothing."""
        if level == self.level:
            return
        shared = self._input
        with shared.lock:
            if level == self.level:
                return
            self.level = level
            shared.high += 1 if level else -1
            if shared.high == (1 if level else 0):
                shared.drive(self.gsi, level)

    def pulse(self) -> None:
        """An edge: up, then down."""
        shared = self._input
        with shared.lock:
            if self.level:
                self.level = False
                shared.high -= 1
            if shared.high:
                return  # a line that another device holds high shows no edge
            shared.drive(self.gsi, True)
            shared.drive(self.gsi, False)


class UnconnectedLine:
    """A line on a machine without an interrupt controller; remembers its level for polling."""

    __slots__ = ("gsi", "level")

    def __init__(self, gsi: int) -> None:
        self.gsi = gsi
        self.level = False

    def set(self, level: bool) -> None:
        """Remembers the level."""
        self.level = level

    def pulse(self) -> None:
        """Nothing is there to see an edge."""


class Wiring:
    """The machine's interrupt inputs; `drive(gsi, level)` reaches the controllers."""

    def __init__(self, drive: Drive | None) -> None:
        self._drive = drive
        self._inputs: dict[int, _Input] = {}

    def line(self, gsi: int) -> Line:
        """A new line to GSI `gsi`; it leads nowhere where the machine has no controller."""
        if self._drive is None:
            return UnconnectedLine(gsi)
        shared = self._inputs.get(gsi)
        if shared is None:
            shared = self._inputs[gsi] = _Input(gsi, self._drive)
        return GsiLine(shared)

    @property
    def levels(self) -> dict[int, bool]:
        """The level of every GSI that has a line."""
        return {gsi: bool(shared.high) for gsi, shared in self._inputs.items()}
