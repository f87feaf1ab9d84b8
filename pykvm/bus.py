"""Address → device: the port bus (a flat 64 Ki table) and the MMIO bus (sorted ranges).

A device sees (offset, size, value), never an address. An access that reaches past the end of its
range, or is wider than the device's registers, is split the way a PC bus splits it: little-endian
pieces of 1, 2, 4 or 8 bytes, each to whoever owns it. What nobody owns follows the
unclaimed-access policy.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise

from pykvm.errors import PykvmError
from pykvm.typed import Any, NamedTuple, Protocol

Read = Callable[[int, int], int]
Write = Callable[[int, int, int], None]
# (bus kind "pio"/"mmio", address, size in bytes, value written or None) -> value read
Unclaimed = Callable[[str, int, int, int | None], int]

PORTS = 0x10000
ADDRESS_LIMIT = 1 << 52  # guest-physical addresses have at most 52 bits (SDM vol. 3, 4.1.4)


class BusError(PykvmError):
    """A range that cannot be put on a bus: what is wrong with it."""


class BusDevice(Protocol):
    """What the bus needs of a device; `pykvm.devices.Device` is one."""

    name: str
    max_access: int

    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, size: int, value: int) -> None: ...


class Claim(NamedTuple):
    """What one port or page resolves to: the hot path unpacks it by position.

    `limit` is the widest access in bytes that goes to the owner in one piece from here.
    """

    read: Read
    write: Write
    limit: int
    offset: int


class Span(NamedTuple):
    """A piece of the MMIO space with one owner: [first, end), as guest-physical addresses.

    `start` is where the owner's offsets count from; accesses of `sizes` bytes go to it whole.
    """

    first: int
    end: int
    start: int
    read: Read
    write: Write
    sizes: frozenset[int]


def _nobody(*access: int) -> Any:
    raise AssertionError("an empty span was asked")


NO_SPAN = Span(1, 0, 0, _nobody, _nobody, frozenset())


class Range:
    """A claimed range; `remove()` gives it back."""

    def __init__(
        self, bus: Bus, name: str, start: int, length: int, read: Read, write: Write,
        max_access: int | None, layer: int, device: Any, any_width: bool,
    ) -> None:  # fmt: skip
        self._bus = bus
        self.name = name
        self.start = start
        self.length = length
        self.end = start + length
        self.read = read
        self.write = write
        self.max_access = max_access
        widths = range(1, 9) if max_access is None else (1, 2, 4, 8)
        self.sizes = frozenset(n for n in widths if n <= (max_access or 8))
        self.layer = layer
        self.device = device
        self.any_width = any_width

    def remove(self) -> None:
        """Takes the range off its bus; what it covered shows through again."""
        self._bus._remove(self)

    def __repr__(self) -> str:
        return f"<Range {self.name} {self.start:#x}..{self.end - 1:#x}>"


def locked(read: Read, write: Write, lock: AbstractContextManager[Any]) -> tuple[Read, Write]:
    """The two callables, one vCPU at a time."""

    def locked_read(offset: int, size: int) -> int:
        with lock:
            return read(offset, size)

    def locked_write(offset: int, size: int, value: int) -> None:
        with lock:
            write(offset, size, value)

    return locked_read, locked_write


class _NoLock:
    """Nobody else is there."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


class Bus:
    """What the two buses share: claims in layers (hooks above devices), and splitting."""

    kind = ""
    limit = 0

    def __init__(
        self, unclaimed: Unclaimed, lock: AbstractContextManager[Any] | None = None
    ) -> None:
        self.unclaimed = unclaimed
        self._lock = lock
        #: For whoever calls a device past the bus; does nothing on a machine with one vCPU.
        self.lock: AbstractContextManager[Any] = _NoLock() if lock is None else lock
        self.ranges: list[Range] = []

    def add_device(self, device: BusDevice, start: int, length: int) -> Range:
        """Puts a device at `start`, `length` ports or bytes long. Raises `BusError`."""
        return self.add(
            device.name, start, length, device.read, device.write,
            max_access=device.max_access, device=device,
        )  # fmt: skip

    def add(
        self, name: str, start: int, length: int, read: Read, write: Write, *,
        max_access: int | None = None, layer: int = 0, device: Any = None,
        any_width: bool = False,
    ) -> Range:  # fmt: skip
        """Claims a range. Ranges of one layer must not overlap; a higher layer covers a lower.

        `any_width`: accesses that start at `start` are never split, however wide they are.
        """
        if length <= 0 or start < 0 or start + length > self.limit:
            raise BusError(
                f"{self.kind} range {start:#x} + {length:#x} of {name} is empty or reaches past "
                f"{self.limit:#x}; choose a range inside the bus"
            )
        for other in self.ranges:
            if other.layer == layer and start < other.end and other.start < start + length:
                raise BusError(
                    f"{self.kind} range {start:#x}..{start + length - 1:#x} of {name} overlaps "
                    f"{other.name} at {other.start:#x}..{other.end - 1:#x}; remove that one first"
                )
        if self._lock is not None:
            read, write = locked(read, write, self._lock)
        claimed = Range(
            self, name, start, length, read, write, max_access, layer, device, any_width
        )
        self.ranges.append(claimed)
        self._changed(start, start + length)
        return claimed

    def _remove(self, claimed: Range) -> None:
        if claimed in self.ranges:
            self.ranges.remove(claimed)
            self._changed(claimed.start, claimed.end)

    def _changed(self, start: int, end: int) -> None:
        raise NotImplementedError

    def find(self, address: int) -> tuple[Range, int] | None:
        """The range that owns an address, and up to where (exclusive) it does without a break."""
        owner: Range | None = None
        for r in self.ranges:
            if r.start <= address < r.end and (owner is None or r.layer > owner.layer):
                owner = r
        if owner is None:
            return None
        end = owner.end
        for r in self.ranges:
            if r.layer > owner.layer and address < r.start < end:
                end = r.start
        return owner, end

    def _pieces(self, address: int, size: int) -> list[tuple[Range | None, int, int]]:
        """An access as (owner, address, size) parts in address order."""
        parts: list[tuple[Range | None, int, int]] = []
        while size:
            found = self.find(address % self.limit)
            if found is None:
                take = 1
                while take < size and self.find((address + take) % self.limit) is None:
                    take += 1
                owner = None
            else:
                owner, end = found
                take = min(size, end - address % self.limit)
                if owner.any_width and address == owner.start:
                    take = size
                elif owner.max_access is not None:
                    widest = min(take, owner.max_access)
                    take = 1 << (widest.bit_length() - 1)
            parts.append((owner, address % self.limit, take))
            address += take
            size -= take
        return parts

    def read(self, address: int, size: int) -> int:
        """A read of any size at any address, split as needed. Little-endian."""
        value = shift = 0
        for owner, at, n in self._pieces(address, size):
            if owner is None:
                part = self.unclaimed(self.kind, at, n, None)
            else:
                part = owner.read(at - owner.start, n)
            value |= (part & ((1 << 8 * n) - 1)) << shift
            shift += 8 * n
        return value

    def write(self, address: int, size: int, value: int) -> None:
        """A write of any size at any address, split as needed. Little-endian."""
        for owner, at, n in self._pieces(address, size):
            part = value & ((1 << 8 * n) - 1)
            if owner is None:
                self.unclaimed(self.kind, at, n, part)
            else:
                owner.write(at - owner.start, n, part)
            value >>= 8 * n


class PioBus(Bus):
    """The 64 Ki I/O ports. `table[port]` is the port's `Claim`, or None."""

    kind = "pio"
    limit = PORTS

    def __init__(
        self, unclaimed: Unclaimed, lock: AbstractContextManager[Any] | None = None
    ) -> None:
        super().__init__(unclaimed, lock)
        self.table: list[Claim | None] = [None] * PORTS

    def _changed(self, start: int, end: int) -> None:
        # A claim just below the change may now reach further, or less far.
        for port in range(max(0, start - 8), end):
            found = self.find(port)
            if found is None:
                self.table[port] = None
                continue
            owner, last = found
            limit = min(last - port, owner.max_access or 8)
            if owner.any_width and port == owner.start:
                limit = 8
            self.table[port] = Claim(owner.read, owner.write, limit, port - owner.start)


class MmioBus(Bus):
    """Guest-physical ranges that no memory backs; found by binary search."""

    kind = "mmio"
    limit = ADDRESS_LIMIT

    def __init__(
        self, unclaimed: Unclaimed, lock: AbstractContextManager[Any] | None = None
    ) -> None:
        super().__init__(unclaimed, lock)
        # Starts, and (end, owner) of the disjoint sorted spans: replaced as one object, so that
        # a vCPU thread never sees half a change, and notices that there was one.
        self.index: tuple[list[int], list[tuple[int, Range]]] = ([], [])

    def _changed(self, start: int, end: int) -> None:
        edges = sorted({r.start for r in self.ranges} | {r.end for r in self.ranges})
        starts: list[int] = []
        spans: list[tuple[int, Range]] = []
        for at, upto in pairwise(edges):
            found = self.find(at)
            if found is None:
                continue
            owner = found[0]
            if spans and spans[-1] == (at, owner):
                spans[-1] = (upto, owner)
            else:
                starts.append(at)
                spans.append((upto, owner))
        self.index = starts, spans

    def span(self, gpa: int) -> Span:
        """The part of a range around `gpa` that one owner has to itself; `NO_SPAN` if nobody."""
        starts, spans = self.index
        i = bisect_right(starts, gpa) - 1
        if i < 0 or gpa >= spans[i][0]:
            return NO_SPAN
        end, owner = spans[i]
        return Span(starts[i], end, owner.start, owner.read, owner.write, owner.sizes)
