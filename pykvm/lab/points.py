"""Breakpoints and watchpoints: what they are, and how the host is made to stop at them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pykvm.kvm.vcpu_debug import HardwareBreakpoint
from pykvm.lab import cpu
from pykvm.lab.conditions import Condition
from pykvm.lab.events import LabError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.lab.session import Lab

INT3 = b"\xcc"
REGISTERS = 4  # debug registers of a CPU
KINDS = ("auto", "hardware", "software", "step")
LENGTHS = (1, 2, 4, 8)


@dataclass(eq=False, slots=True)
class Point:
    """What both have in common. `note` says what this host makes of it."""

    lab: Lab = field(repr=False)
    number: int
    address: int
    kind: str
    condition: Condition | None
    temporary: bool
    ignore: int
    enabled: bool = True
    hits: int = 0
    note: str = ""

    def delete(self) -> None:
        """Removes it; twice is harmless."""
        self.lab.points.remove(self)

    def met(self) -> bool:
        """The guest is there: counts, and says whether it stops."""
        if self.condition is not None and not self.condition(self.lab):
            return False
        self.hits += 1
        if self.hits <= self.ignore:
            return False
        if self.temporary:
            self.delete()
        return True


class Breakpoint(Point):
    """Stops before the instruction at `address` (linear).

    `kind`: "hardware", "software" or "step".
    """

    __slots__ = ()


@dataclass(eq=False, slots=True)
class Watchpoint(Point):
    """Stops after an access to `length` bytes at `address`, "write" or "access" (read or write).

    `physical`: the address is guest-physical. By debug registers it is a "hardware" one; otherwise
    ("step") the guest is stepped and the bytes compared, which sees changes, and no reads.
    """

    length: int = 1
    access: str = "write"
    physical: bool = False
    last: bytes = b""

    def look(self) -> bytes:
        """What is there now; empty if nothing is mapped there."""
        return self.lab.peek(self.address, self.length, physical=self.physical)


class Points:
    """All of a session's, and their place in the four debug registers."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.all: list[Breakpoint | Watchpoint] = []
        self._next = 1
        self._inserted: dict[int, bytes] = {}  # guest-physical address: what was there

    def number(self) -> int:
        """For a new one."""
        self._next += 1
        return self._next - 1

    def add(self, point: Breakpoint | Watchpoint) -> None:
        """From now on it counts."""
        self.all.append(point)

    def remove(self, point: Point) -> None:
        """It counts no more."""
        self.all = [one for one in self.all if one is not point]

    def enabled(self) -> list[Breakpoint | Watchpoint]:
        """Those that count."""
        return [point for point in self.all if point.enabled]

    def registers(self, *, watch_only: bool = False) -> list[Breakpoint | Watchpoint]:
        """Who is in DR0 to DR3, in their order."""
        found = [p for p in self.enabled() if p.kind == "hardware"]
        if watch_only:
            found = [p for p in found if isinstance(p, Watchpoint)]
        return found[:REGISTERS]

    def room(self) -> bool:
        """Whether a debug register is free."""
        taken = sum(1 for p in self.enabled() if p.kind == "hardware")
        return taken < REGISTERS - cpu.reserved_registers(self._lab.machine)

    def at(self, address: int) -> Breakpoint | None:
        """The enabled breakpoint at a linear address."""
        for point in self.enabled():
            if isinstance(point, Breakpoint) and point.address == address:
                return point
        return None

    def stepped(self) -> list[Breakpoint | Watchpoint]:
        """Those that need the guest to be stepped."""
        return [p for p in self.enabled() if p.kind == "step"]

    def software(self) -> list[Breakpoint]:
        """Those that are an INT3 in memory while the guest runs."""
        return [p for p in self.enabled() if isinstance(p, Breakpoint) and p.kind == "software"]

    def insert(self) -> None:
        """Puts INT3 where software breakpoints are mapped now."""
        for point in self.software():
            gpa = self._lab.gpa(point.address)
            point.note = "" if gpa is not None else "not mapped now: it cannot be met"
            if gpa is None or gpa in self._inserted:
                continue
            self._inserted[gpa] = self._lab.machine.memory.read(gpa, 1)
            self._lab.machine.memory.write(gpa, INT3)

    def take_out(self) -> None:
        """Memory is as the guest has it; what the guest wrote over an INT3 stays."""
        memory = self._lab.machine.memory
        for gpa, original in self._inserted.items():
            if memory.read(gpa, 1) == INT3:
                memory.write(gpa, original)
        self._inserted.clear()

    def hide(self, gpa: int, data: bytes) -> bytes:
        """`data` of guest memory without our INT3s."""
        if not self._inserted:
            return data
        shown = bytearray(data)
        for at, original in self._inserted.items():
            if gpa <= at < gpa + len(data) and shown[at - gpa : at - gpa + 1] == INT3:
                shown[at - gpa : at - gpa + 1] = original
        return bytes(shown)


def hardware(points: Iterable[Breakpoint | Watchpoint]) -> list[HardwareBreakpoint]:
    """What KVM_SET_GUEST_DEBUG gets."""
    return [
        HardwareBreakpoint(p.address, p.access, p.length)
        if isinstance(p, Watchpoint)
        else HardwareBreakpoint(p.address)
        for p in points
    ]


def check_watch(address: int, length: int, access: str) -> None:
    """Raises `LabError` for what cannot be watched."""
    if access not in ("write", "access"):
        raise LabError(f'access={access!r} is not possible; use "write" or "access"')
    if not 1 <= length <= 4096:
        raise LabError(f"{length} bytes cannot be watched; use 1 to 4096")
    if address < 0:
        raise LabError(f"the address {address} is negative")
