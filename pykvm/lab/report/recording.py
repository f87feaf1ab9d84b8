"""`Recording`: the exits of a run as compact records in a temporary file."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from pykvm.errors import PykvmError
from pykvm.typed import Any, NamedTuple, Self

_RECORD = struct.Struct("<qQQQQIIH")
_BLOCK = 16384  # records read at once
_SERIAL_LIMIT = 16 << 20
_FLUSH = 1 << 16  # bytes gathered before they are written


class ReportError(PykvmError):
    """A report cannot be made."""


class Row(NamedTuple):
    """One exit. Times in ns since the start; `serial`: bytes printed on COM1 when it was over.

    `site` is the index of its `Site`; `value` the first element moved (0 where the site says that
    there is none), `count` the elements.
    """

    time_ns: int
    run_ns: int
    handle_ns: int
    value: int
    serial: int
    site: int
    count: int  # type: ignore[assignment]  # shadows tuple.count
    vcpu: int


@dataclass(frozen=True, slots=True)
class Site:
    """What all exits of one kind from one instruction have in common.

    `access`: "out 0x3f8", "mmio read 0xd0000000" or what happened in words; `address` is a port, a
    guest-physical address or an MSR; `rip` the instruction's linear address; `explanation` an index
    into the recording's explanations.
    """

    reason: str
    access: str
    place: str
    address: int
    is_write: bool
    size: int
    has_value: bool
    rip: int | None
    symbol: str
    instruction: str
    native: bool
    explanation: int

    @property
    def name(self) -> str:
        """The reason without its prefix, small: "io", "mmio", "hlt"."""
        return self.reason.removeprefix("KVM_EXIT_").lower()


@dataclass(slots=True)
class Recording:
    """All exits of a run, oldest first for each vCPU. `close()` gives the file back.

    `serial` is what the guest printed on COM1, up to 16 MiB; `serial_lost` counts the bytes after
    that. `vcpus`, `title` facts for the reports.
    """

    vcpus: int = 1
    sites: list[Site] = field(default_factory=list)
    explanations: list[dict[str, Any]] = field(default_factory=list)
    count: int = 0
    serial_size: int = 0
    serial_lost: int = 0
    _file: Any = None
    _serial: Any = None
    _pending: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="pykvm-trace-")  # noqa: SIM115  # closed by close()
        self._serial = tempfile.TemporaryFile(prefix="pykvm-serial-")  # noqa: SIM115

    def add(self, row: Row) -> None:
        """Appends one exit."""
        self._pending += _RECORD.pack(*row)
        self.count += 1
        if len(self._pending) >= _FLUSH:
            self._flush()

    def add_serial(self, data: bytes) -> None:
        """Appends what the guest printed."""
        kept = data[: max(0, _SERIAL_LIMIT - self.serial_size)]
        self._serial.seek(0, 2)
        self._serial.write(kept)
        self.serial_size += len(kept)
        self.serial_lost += len(data) - len(kept)

    def _flush(self) -> None:
        if self._file is None:
            raise ReportError("the recording is closed; write the reports before close()")
        self._file.seek(0, 2)
        self._file.write(self._pending)
        self._pending.clear()

    def blocks(self) -> Iterator[list[tuple[int, ...]]]:
        """The exits in lists of up to 16,384, each exit a tuple in the order of `Row`'s fields."""
        self._flush()
        at = 0
        while True:
            self._file.seek(at)
            data = self._file.read(_BLOCK * _RECORD.size)
            if not data:
                return
            at += len(data)
            yield list(_RECORD.iter_unpack(data))

    def rows(self) -> Iterator[Row]:
        """The exits one by one."""
        for block in self.blocks():
            for fields in block:
                yield Row._make(fields)

    def serial(self) -> bytes:
        """What the guest printed (up to 16 MiB)."""
        self._serial.seek(0)
        return bytes(self._serial.read())

    def close(self) -> None:
        """Gives the temporary files back."""
        for file in (self._file, self._serial):
            if file is not None:
                file.close()
        self._file = self._serial = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
