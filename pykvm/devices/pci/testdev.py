"""`PciTestDev`: 1b36:0005, the test device of kernel test suites (QEMU's docs/specs/pci-testdev).

BAR 0 (memory) and BAR 1 (ports) each start with a header: software writes a test number, reads
where and how wide to write what, writes there, and reads how many writes were counted.
"""

from __future__ import annotations

from pykvm.devices.pci.bar import Bar, Registers
from pykvm.devices.pci.device import Commit, PciDevice
from pykvm.devices.state import StateReader
from pykvm.typed import NamedTuple

_HEADER = 16  # test, width, padding, offset, data, count; then the name
_OFFSET = 0x80  # where the tests' registers are, one byte each
_COUNT_LIMIT = 0xFFFF_FFFF


class _Test(NamedTuple):
    name: str
    match: bool


_TESTS = (
    _Test("no-eventfd", True),
    _Test("wildcard-eventfd", False),
    _Test("datamatch-eventfd", True),
)
_DATA = 0xFA


class _Area:
    """One BAR's tests."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.current: int | None = None
        self.count = 0

    def read(self, offset: int, size: int) -> int:
        """The header of the running test; zeros without one."""
        if self.current is None:
            return 0
        name = f"{self.kind}-{_TESTS[self.current].name}\0".encode()
        header = bytes([self.current, 1, 0, 0])
        for word in (_OFFSET + self.current, _DATA, self.count):
            header += word.to_bytes(4, "little")
        return int.from_bytes((header + name)[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Start a test, or be counted by it."""
        if offset == 0:
            number = value & 0xFF
            self.current = number if number < len(_TESTS) else None
            self.count = 0
        elif self.current is not None and offset == _OFFSET + self.current:
            fits = size == 1 and value == _DATA
            if fits or not _TESTS[self.current].match:
                self.count = self.count + 1 & _COUNT_LIMIT


class PciTestDev(PciDevice):
    """pci-testdev. `membar`: the size of a 64-bit BAR 2 with nothing behind it, 0 for none."""

    def __init__(self, membar: int = 0) -> None:
        self._areas = [_Area("mmio"), _Area("portio")]
        memory, ports = self._areas
        bars: list[Bar | None] = [
            Bar("mem32", 4096, Registers("pci-testdev-mmio", memory.read, memory.write)),
            Bar("io", 256, Registers("pci-testdev-io", ports.read, ports.write)),
        ]
        if membar:
            nothing = Registers("pci-testdev-membar", lambda at, n: (1 << 8 * n) - 1, _ignore, 8)
            bars.append(Bar("mem64", membar, nothing, prefetch=True))
        super().__init__(
            0x1B36, 5, 0xFF0000, subsystem=(0x1AF4, 0x1100), bars=bars, name="pci-testdev"
        )

    def reset(self) -> None:
        """No test runs."""
        for area in self._areas:
            area.current, area.count = None, 0
        super().reset()

    def save(self) -> dict[str, object]:
        """The running tests and their counts."""
        state = super().save()
        state["tests"] = [len(_TESTS) if a.current is None else a.current for a in self._areas]
        state["counts"] = [a.count for a in self._areas]
        return state

    def take_state(self, take: StateReader) -> Commit:
        """Reads them back."""
        base = super().take_state(take)
        tests = take.integers("tests", 2, len(_TESTS))
        counts = take.integers("counts", 2, _COUNT_LIMIT)

        def commit() -> None:
            base()
            for area, test, count in zip(self._areas, tests, counts, strict=False):
                area.current = None if test == len(_TESTS) else test
                area.count = count

        return commit


def _ignore(offset: int, size: int, value: int) -> None:
    pass
