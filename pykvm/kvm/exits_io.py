"""Port and memory-mapped I/O exits (KVM API, 5 "KVM_EXIT_IO" and "KVM_EXIT_MMIO")."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pykvm._native import ffi, lib
from pykvm.kvm.exit_base import Exit, ExitError, Where
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm.exit_site import Site
    from pykvm.kvm.vcpu import Vcpu

_OUT: int = lib.KVM_EXIT_IO_OUT
_MMIO_DATA = ffi.offsetof("struct kvm_run", "padding") + 8


class IoExit(Exit, kvm="KVM_EXIT_IO"):
    """The guest accessed a port: OUT, IN, OUTS or INS.

    A string instruction with REP is one exit with `count` elements of `size` bytes (KVM may split a
    long one into several exits). A read is answered by `value`, `elements` or `data` before the
    next `run()`, which completes the instruction.
    """

    __slots__ = ("_answered", "_copy")
    _fields = ("direction", "port", "size", "count")

    def __init__(self, vcpu: Vcpu) -> None:
        super().__init__(vcpu)
        self._answered = False
        self._copy: memoryview | None = None

    @property
    def is_write(self) -> bool:
        """Whether the guest wrote (OUT, OUTS)."""
        return bool(self._run.io.direction == _OUT)

    @property
    def direction(self) -> str:
        """ "in" or "out", as the guest sees it."""
        return "out" if self.is_write else "in"

    @property
    def port(self) -> int:
        """The port, 0 to 0xffff."""
        return int(self._run.io.port)

    @property
    def size(self) -> int:
        """Bytes in an element: 1, 2 or 4."""
        return int(self._run.io.size)

    @property
    def count(self) -> int:
        """Elements; more than one only for REP INS and REP OUTS."""
        return int(self._run.io.count)

    @property
    def data(self) -> memoryview:
        """All elements, `size * count` bytes: of a write what the guest wrote, of a read the place
        for the answer. Not a copy: do not use it after the next `run()`."""
        self._answered = True  # whoever asks for the bytes of a read may be about to set them
        return self._bytes()

    def _bytes(self) -> memoryview:
        if self._copy is not None:
            return self._copy
        io = self._run.io
        at = io.data_offset
        return memoryview(self.vcpu._mapping)[at : at + io.size * io.count]

    @property
    def value(self) -> int:
        """The first element. Set it to answer a read (all elements become it)."""
        return int.from_bytes(self._bytes()[: self.size], "little")

    @value.setter
    def value(self, value: int) -> None:
        self._may_answer()
        self._answer(_packed(value, self.size) * self.count)

    @property
    def elements(self) -> list[int]:
        """All elements. Set it, with as many numbers as `count`, to answer a read."""
        data, size = self._bytes(), self.size
        if size == 1:
            return list(data)
        return list(data.cast("H" if size == 2 else "I"))

    @elements.setter
    def elements(self, values: Sequence[int]) -> None:
        self._may_answer()
        if len(values) != self.count:
            raise ExitError(
                f"the guest reads {self.count} elements from port {self.port:#x}, the answer has "
                f"{len(values)}; give as many"
            )
        size = self.size
        self._answer(b"".join([_packed(value, size) for value in values]))

    def _may_answer(self) -> None:
        if self.is_write:
            raise ExitError(f"the guest writes to port {self.port:#x}: there is nothing to answer")
        self._answerable(f"an answer for port {self.port:#x}")

    def _answer(self, data: bytes) -> None:
        self.data[:] = data
        self._answered = True

    def _detach(self) -> None:
        if not self._detached:
            io = self._run.io
            at = io.data_offset
            self._copy = memoryview(bytes(self.vcpu._mapping[at : at + io.size * io.count]))
            Exit._detach(self)

    def _locate(self, site: Site) -> Where:
        from pykvm.kvm.exit_locate import locate_port

        return locate_port(site, self._regs(), self.is_write, self.port, self.size, self.count)

    def _what(self) -> str:
        size, count = self.size, self.count
        known = self.is_write or self._answered or self._detached
        arrow = "←" if self.is_write else "→"
        if count > 1:
            start = f"{self.direction}s {self.port:#x}"
            amount = f"{count} × {_bytes(size)}"
            return f"{start} {arrow} {amount}" if known else f"{start}, {amount}"
        start = f"{self.direction} {self.port:#x}"
        if not known:
            return f"{start} ({_bytes(size)})"
        return f"{start} {arrow} {_shown(self.value, size)} ({_bytes(size)})"


class MmioExit(Exit, kvm="KVM_EXIT_MMIO"):
    """The guest accessed a guest-physical address that is no memory (or wrote to read-only memory).

    An access that crosses a page arrives as two exits, one wider than 8 bytes as several. A read is
    answered by `value` or `data` before the next `run()`, which completes the instruction.
    """

    __slots__ = ("_answered",)
    _fields = ("is_write", "gpa", "size")

    def __init__(self, vcpu: Vcpu) -> None:
        super().__init__(vcpu)
        self._answered = False

    @property
    def is_write(self) -> bool:
        """Whether the guest wrote."""
        return bool(self._run.mmio.is_write)

    @property
    def gpa(self) -> int:
        """The guest-physical address."""
        return int(self._run.mmio.phys_addr)

    @property
    def size(self) -> int:
        """Bytes, 1 to 8; odd sizes come from accesses that cross a page."""
        return min(int(self._run.mmio.len), 8)

    @property
    def data(self) -> memoryview:
        """The `size` bytes: what was written, or the place for the answer.

        Not a copy: do not use it after the next `run()`.
        """
        self._answered = True  # whoever asks for the bytes of a read may be about to set them
        if self._detached:
            return memoryview(bytes(ffi.buffer(self._run.mmio.data, self.size)))
        return memoryview(self.vcpu._mapping)[_MMIO_DATA : _MMIO_DATA + self.size]

    @property
    def value(self) -> int:
        """The bytes as a little-endian number. Set it to answer a read."""
        mmio = self._run.mmio
        return int.from_bytes(ffi.buffer(mmio.data, min(mmio.len, 8)), "little")

    @value.setter
    def value(self, value: int) -> None:
        if self.is_write:
            raise ExitError(f"the guest writes to {self.gpa:#x}: there is nothing to answer")
        self._answerable(f"an answer for {self.gpa:#x}")
        size = self.size
        self._run.mmio.data[0:size] = _packed(value, size)
        self._answered = True

    def _locate(self, site: Site) -> Where:
        from pykvm.kvm.exit_locate import locate_memory
        from pykvm.kvm.exit_site import physical

        write = self.is_write
        data = self.value.to_bytes(self.size, "little") if write else b""
        if self._detached:  # the page tables may have changed since
            return locate_memory(site, self._regs(), write, self.gpa, data)
        translate = partial(physical, self.vcpu)
        return locate_memory(site, self._regs(), write, self.gpa, data, translate)

    def _what(self) -> str:
        size = _bytes(self.size)
        if self.is_write:
            return f"mmio write {self.gpa:#x} ← {self.value:#x} ({size})"
        if self._answered or self._detached:
            return f"mmio read {self.gpa:#x} → {self.value:#x} ({size})"
        return f"mmio read {self.gpa:#x} ({size})"


def _packed(value: int, size: int) -> bytes:
    try:
        return value.to_bytes(size, "little")
    except OverflowError:
        raise ExitError(
            f"the answer {value:#x} does not fit the {_bytes(size)} that the guest reads; mask it"
        ) from None


def _bytes(size: int) -> str:
    return f"{size} byte" if size == 1 else f"{size} bytes"


def _shown(value: int, size: int) -> str:
    return f"'{chr(value)}'" if size == 1 and 0x20 <= value < 0x7F else f"{value:#x}"
