"""Binary statistics that KVM keeps per VM and per vCPU (KVM API, KVM_GET_STATS_FD).

The descriptor describes itself: a header, descriptors with names and units, and a block of 64-bit
values. Only the values are read again each time.
"""

from __future__ import annotations

import os

from pykvm._native import ffi
from pykvm.errors import PykvmError
from pykvm.kvm.fd import FdOwner
from pykvm.kvm.record import Record
from pykvm.typed import Any

_TYPES = ("cumulative", "instant", "peak", "linear histogram", "log histogram")
_UNITS = ("", "bytes", "seconds", "cycles", "boolean")


class StatsError(PykvmError):
    """A statistics descriptor whose contents do not fit together."""


class StatDescriptor(Record):
    """What a statistic is.

    `type`: "cumulative", "instant", "peak", "linear histogram" or "log histogram". `unit`: "",
    "bytes", "seconds", "cycles" or "boolean"; a value counts in `base ** exponent` of it. `size`:
    64-bit values, more than one for histograms, whose linear buckets are `bucket_size` wide.
    """

    name: str
    type: str
    unit: str
    base: int
    exponent: int
    size: int
    offset: int
    bucket_size: int


class StatsFd(FdOwner):
    """A statistics descriptor. It keeps its VM alive in the kernel until it is closed."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "this statistics descriptor")
        header: Any = ffi.new("struct kvm_stats_header *")
        raw = self._read(0, ffi.sizeof("struct kvm_stats_header"))
        ffi.memmove(header, raw, len(raw))
        self.id = self._read(header.id_offset, header.name_size).split(b"\0")[0].decode()
        self._data_offset = header.data_offset
        self.descriptors = self._descriptors(header)
        self._data_size = max((d.offset + d.size * 8 for d in self.descriptors), default=0)

    def _descriptors(self, header: Any) -> list[StatDescriptor]:
        fixed = ffi.sizeof("struct kvm_stats_desc")
        stride = fixed + header.name_size
        table = self._read(header.desc_offset, stride * header.num_desc)
        found = []
        for i in range(header.num_desc):
            piece = table[i * stride : (i + 1) * stride]
            desc: Any = ffi.from_buffer("struct kvm_stats_desc *", piece)
            found.append(
                StatDescriptor(
                    name=piece[fixed:].split(b"\0")[0].decode(),
                    type=_named(_TYPES, desc.flags & 0xF),
                    unit=_named(_UNITS, desc.flags >> 4 & 0xF),
                    base=2 if desc.flags >> 8 & 0xF else 10,
                    exponent=desc.exponent,
                    size=desc.size,
                    offset=desc.offset,
                    bucket_size=desc.bucket_size,
                )
            )
        return found

    def read(self) -> dict[str, int | list[int]]:
        """The statistics now, by name: a number, or the buckets of a histogram."""
        values = memoryview(self._read(self._data_offset, self._data_size)).cast("Q")
        found: dict[str, int | list[int]] = {}
        for desc in self.descriptors:
            first = desc.offset // 8
            if desc.size == 1:
                found[desc.name] = values[first]
            else:
                found[desc.name] = values[first : first + desc.size].tolist()
        return found

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self.fd, size, offset)
        if len(data) != size:
            raise StatsError(
                f"KVM statistics end after {len(data)} of {size} bytes at offset {offset}"
            )
        return data


class StatsOwner(FdOwner):
    """A VM or a vCPU, which KVM keeps statistics of."""

    _stats_fd: StatsFd | None = None

    @property
    def stats_fd(self) -> StatsFd:
        """The descriptor of KVM's own statistics; closed with this object."""
        if self._stats_fd is None or self._stats_fd.closed:
            self._stats_fd = StatsFd(self.ioctl("KVM_GET_STATS_FD"))
        return self._stats_fd

    def kernel_stats(self) -> dict[str, int | list[int]]:
        """KVM's own statistics by name; histograms are lists. See `stats_fd.descriptors`."""
        return self.stats_fd.read()

    def _close_stats(self) -> None:
        if self._stats_fd is not None:
            self._stats_fd.close()


def _named(names: tuple[str, ...], number: int) -> str:
    return names[number] if number < len(names) else f"type {number}"
