"""`GuestMemory`: the guest-physical address space, made of regions with holes between them.

Addresses are guest-physical, sizes are bytes, numbers are little endian (as x86 has them). An
access may cross from one region into an adjacent one; one that touches a hole raises
`MemoryAccessError` and changes nothing. Needs no `/dev/kvm`: see `GuestMemory.anonymous`.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from pykvm._native import ffi
from pykvm.kvm.errors import ClosedError
from pykvm.kvm.region import MemoryAccessError, MemoryRegion, RegionError
from pykvm.memory_search import Span, find_next
from pykvm.sparsefile import SparseReader, SparseWriter
from pykvm.typed import TYPE_CHECKING, Any, TypeVar, cast, overload

if TYPE_CHECKING:
    import ctypes

    from typing_extensions import Buffer

    _Layout = TypeVar("_Layout", bound=ctypes.Structure | ctypes.Union)

__all__ = ["GuestMemory", "MemoryAccessError", "MemoryRegion", "RegionError"]

_LIMIT = 1 << 64
_NO_SPAN = cast(Span, (0, -1, memoryview(b""), None))  # holds no address, not even no bytes


def _reader(code: str, bits: int) -> Callable[[GuestMemory, int], int]:
    # Native mode ("@"): the value is loaded at once, never byte by byte, so that a number which
    # the guest changes meanwhile is not torn when it is aligned. This host is little endian.
    unpack = struct.Struct("@" + code).unpack_from
    size = bits // 8

    def read(self: GuestMemory, gpa: int) -> int:
        base, end, view, _ = self._main
        if not (base <= gpa and gpa + size <= end):
            place = self._place(gpa, size)
            if place is None:
                return int.from_bytes(self.read(gpa, size), "little")
            view, offset = place
        else:
            offset = gpa - base
        try:
            return unpack(view, offset)[0]  # type: ignore[no-any-return]
        except ValueError as error:
            raise _closed(error) from None

    read.__name__ = f"read_u{bits}"
    read.__qualname__ = f"GuestMemory.read_u{bits}"
    read.__doc__ = f"The {bits}-bit unsigned number at guest-physical `gpa`. Raises as `read`."
    return read


def _writer(code: str, bits: int) -> Callable[[GuestMemory, int, int], None]:
    pack = struct.Struct("@" + code).pack_into
    size, most = bits // 8, (1 << bits) - 1

    def write(self: GuestMemory, gpa: int, value: int) -> None:
        if not 0 <= value <= most:  # here: pack_into would clear the bytes before it says no
            raise _misfit(gpa, value, bits)
        base, end, view, region = self._main
        if not (base <= gpa and gpa + size <= end):
            span = self._find_span(gpa)
            if span is None or gpa + size > span[1]:
                return self.write(gpa, value.to_bytes(size, "little"))
            base, end, view, region = span
        offset = gpa - base
        if region.tracked:
            region.mark(offset, size)
        try:
            pack(view, offset, value)
        except TypeError as error:  # what pack_into says of a released view
            raise _closed(error) from None

    write.__name__ = f"write_u{bits}"
    write.__qualname__ = f"GuestMemory.write_u{bits}"
    write.__doc__ = f"Put `value` at guest-physical `gpa`, as {bits} bits. Raises as `write`."
    return write


class GuestMemory:
    """All of a guest's RAM by guest-physical address, over `MemoryRegion`s that do not overlap.

    Reading and writing are safe while other threads do the same and while vCPUs run (then the bytes
    are as the guest left them at that moment; only aligned u8 to u64 are single accesses).
    """

    __slots__ = ("__weakref__", "_bases", "_main", "_owned", "_spans")

    def __init__(self, regions: Iterable[MemoryRegion] = ()) -> None:
        self._owned: list[MemoryRegion] = []
        self._spans: tuple[Span, ...] = ()
        self._bases: list[int] = []
        self._main: Span = _NO_SPAN
        for region in regions:
            self.add(region)

    @classmethod
    def anonymous(
        cls, pieces: Iterable[tuple[int, int]], *, huge_pages: str | None = None
    ) -> GuestMemory:
        """Memory that belongs to no VM: one new region for each `(gpa, size)`. Close it after use.

        `huge_pages` as in `MemoryRegion`.
        """
        memory = cls()
        try:
            for gpa, size in pieces:
                region = MemoryRegion(gpa, size, huge_pages=huge_pages)
                memory._owned.append(region)
                memory.add(region)
        except BaseException:
            memory.close()
            raise
        return memory

    # -- regions -----------------------------------------------------------------------------------

    @property
    def regions(self) -> list[MemoryRegion]:
        """The regions, by address."""
        return [span[3] for span in self._spans]

    @property
    def spans(self) -> tuple[Span, ...]:
        """(first gpa, end, bytes, region), by address. Another object whenever regions change."""
        return self._spans

    @property
    def size(self) -> int:
        """Bytes of RAM, holes not counted."""
        return sum(end - base for base, end, _, _ in self._spans)

    @property
    def ram(self) -> list[tuple[int, int]]:
        """Ordinary RAM as (gpa, bytes): what a memory map lists. Memory devices are not in it."""
        return [(span[0], span[1] - span[0]) for span in self._spans if span[3].kind == "ram"]

    @property
    def end(self) -> int:
        """The guest-physical address after the highest byte; 0 where there is no memory."""
        return self._spans[-1][1] if self._spans else 0

    def add(self, region: MemoryRegion) -> None:
        """Make `region` part of the address space. Raises `RegionError` if it overlaps another."""
        for base, end, _, other in self._spans:
            if region.gpa < end and base < region.end:
                raise RegionError(
                    f"memory {region.gpa:#x}..{region.end - 1:#x} overlaps the region "
                    f"{other.gpa:#x}..{other.end - 1:#x}; place it elsewhere"
                )
        span = (region.gpa, region.end, region._live(), region)
        self._set((*self._spans, span))

    def remove(self, region: MemoryRegion) -> None:
        """Take `region` out; it is not closed. Raises `RegionError` if it is not here."""
        left = tuple(span for span in self._spans if span[3] is not region)
        if len(left) == len(self._spans):
            raise RegionError(f"{region!r} is not part of this memory")
        self._set(left)

    def _set(self, spans: tuple[Span, ...]) -> None:
        # Readers take these without a lock: each is replaced whole, and `_place` copes with one
        # being newer than the other.
        self._spans = tuple(sorted(spans, key=lambda span: span[0]))
        self._bases = [span[0] for span in self._spans]
        self._main = max(self._spans, key=lambda span: span[1] - span[0], default=_NO_SPAN)

    def _find_span(self, gpa: int) -> Span | None:
        spans = self._spans
        index = bisect_right(self._bases, gpa) - 1
        if 0 <= index < len(spans):
            span = spans[index]
            if span[0] <= gpa < span[1]:
                return span
        return None

    def _place(self, gpa: int, length: int) -> tuple[memoryview, int] | None:
        """The bytes and the offset in them if all of the access is in one region."""
        span = self._find_span(gpa)
        if span is None or gpa + length > span[1]:
            return None
        return span[2], gpa - span[0]

    def _pieces(self, gpa: int, length: int) -> list[tuple[Span, int, int]]:
        """(span, offset in it, length) for each region of the access, which must touch no hole."""
        pieces = []
        at, left = gpa, length
        if length < 0 or gpa < 0 or gpa + length > _LIMIT:
            raise self.outside(gpa, length)
        while left:
            span = self._find_span(at)
            if span is None:
                raise self.outside(gpa, length)
            count = min(left, span[1] - at)
            pieces.append((span, at - span[0], count))
            at += count
            left -= count
        return pieces

    def outside(self, gpa: int, length: int) -> MemoryAccessError:
        """The error that an access which touches a hole raises."""
        what = f"{length} bytes at guest-physical {gpa:#x}"
        if length < 0:
            text = f"{what}: the length is negative"
        elif gpa < 0 or gpa + length > _LIMIT:
            text = f"{what} leave the address space of 2^64 bytes"
        elif not self._spans:
            text = f"{what}: this memory has no regions"
        else:
            base, end, _, _ = min(self._spans, key=lambda s: max(s[0] - gpa, gpa - (s[1] - 1), 0))
            text = f"{what} are not all memory; the nearest region is {base:#x}..{end - 1:#x}"
        return MemoryAccessError(text, gpa, length)

    # -- bytes -------------------------------------------------------------------------------------

    def contains(self, gpa: int, length: int = 1) -> bool:
        """Whether every byte of `[gpa, gpa + length)` is memory. No bytes always are."""
        try:
            self._pieces(gpa, length)
        except MemoryAccessError:
            return False
        return True

    def read(self, gpa: int, length: int) -> bytes:
        """`length` bytes at guest-physical `gpa`; a length of 0 touches nothing.

        Raises `MemoryAccessError` if a byte is not memory, `ClosedError` after close().
        """
        base, end, view, _ = self._main
        try:
            if base <= gpa and gpa + length <= end and length >= 0:
                return bytes(view[gpa - base : gpa - base + length])
            return b"".join([span[2][at : at + n] for span, at, n in self._pieces(gpa, length)])
        except ValueError as error:
            raise _closed(error) from None

    def write(self, gpa: int, data: Buffer) -> None:
        """Put `data` (bytes-like) at guest-physical `gpa`, all or nothing. Raises as `read`."""
        source = data if type(data) is bytes else memoryview(data).cast("B")
        length = len(source)
        base, end, view, region = self._main
        try:
            if base <= gpa and gpa + length <= end:
                if region.tracked:
                    region.mark(gpa - base, length)
                view[gpa - base : gpa - base + length] = source
                return
            done = 0
            for span, at, n in self._pieces(gpa, length):
                if span[3].tracked:
                    span[3].mark(at, n)
                span[2][at : at + n] = source[done : done + n]
                done += n
        except ValueError as error:
            raise _closed(error) from None

    def view(self, gpa: int, length: int) -> memoryview:
        """`length` bytes at `gpa` without a copy, writable: what a device keeps for its buffers.

        All of it must lie in one region. The pages stay mapped while the view lives, even if the
        memory is closed. Where there are snapshots, get it anew for each piece of work: what is
        written later through an old one, they do not see (`MemoryRegion.mark`).
        """
        span = self._find_span(gpa) if length > 0 else None
        if span is None or gpa + length > span[1]:
            pieces = self._pieces(gpa, length)
            if not pieces:
                return memoryview(bytearray())
            raise MemoryAccessError(
                f"a view of {length} bytes at guest-physical {gpa:#x} would cross from one region "
                "into another; use read() and write()",
                gpa,
                length,
            )
        at = gpa - span[0]
        if span[3].tracked:
            span[3].mark(at, length)
        try:
            return span[2][at : at + length]
        except ValueError as error:
            raise _closed(error) from None

    def fill(self, gpa: int, length: int, byte: int = 0) -> None:
        """Set `length` bytes at `gpa` to `byte` (0 to 255). Whole pages of zeros are given back."""
        if not 0 <= byte <= 255:
            raise _misfit(gpa, byte, 8)
        for (_, _, _, region), offset, n in self._pieces(gpa, length):
            region.fill(offset, n, byte)

    def discard(self, gpa: int, length: int) -> int:
        """Give the whole pages in `[gpa, gpa + length)` back to the host; bytes given back.

        They are zero from then on and cost nothing until touched again. Safe while vCPUs run.
        Raises as `read`.
        """
        return sum(
            region.discard(offset, n) for (_, _, _, region), offset, n in self._pieces(gpa, length)
        )

    def address_of(self, view: memoryview) -> int | None:
        """The guest-physical address that a view of this memory begins at; None if it is another's.

        For devices whose requests are about the memory of a buffer, not about what is in it.
        """
        host = int(ffi.cast("uintptr_t", ffi.from_buffer(view)))
        for base, _, _, region in self._spans:
            if 0 <= host - region.host_address < region.size:
                return base + host - region.host_address
        return None

    read_u8 = _reader("B", 8)
    read_u16 = _reader("H", 16)
    read_u32 = _reader("I", 32)
    read_u64 = _reader("Q", 64)
    write_u8 = _writer("B", 8)
    write_u16 = _writer("H", 16)
    write_u32 = _writer("I", 32)
    write_u64 = _writer("Q", 64)

    @overload
    def read_struct(self, layout: str, gpa: int) -> tuple[Any, ...]: ...
    @overload
    def read_struct(self, layout: type[_Layout], gpa: int) -> _Layout: ...
    def read_struct(self, layout: str | type[Any], gpa: int) -> Any:
        """What lies at `gpa`: a tuple for a `struct` format, a copy for a `ctypes.Structure` type.

        A format without a byte-order sign is little endian, without padding ("<").
        """
        if isinstance(layout, str):
            packed = _format(layout)
            return packed.unpack(self.read(gpa, packed.size))
        import ctypes  # loaded already: it made the layout

        return layout.from_buffer_copy(self.read(gpa, ctypes.sizeof(layout)))

    def write_struct(
        self, layout: str | ctypes.Structure | ctypes.Union, gpa: int, *values: Any
    ) -> None:
        """Put `values` by a `struct` format, or a `ctypes.Structure` object, at `gpa`."""
        if isinstance(layout, str):
            try:
                data = _format(layout).pack(*values)
            except struct.error as error:
                raise MemoryAccessError(
                    f"{values!r} do not fit the format {layout!r}: {error}", gpa
                ) from None
            self.write(gpa, data)
        else:
            self.write(gpa, bytes(layout))

    # -- search ------------------------------------------------------------------------------------

    def find(self, pattern: Buffer, start: int = 0, end: int | None = None) -> int | None:
        """The lowest gpa in `[start, end)` where all of `pattern` lies, or None.

        Matches may cross from one region into an adjacent one. Pages that do not exist yet are
        known to be zero and are not touched.
        """
        return next(self._search(pattern, start, end), None)

    def find_all(
        self, pattern: Buffer, start: int = 0, end: int | None = None, *, limit: int = 1000
    ) -> list[int]:
        """The first `limit` places of `pattern` in `[start, end)` that do not overlap, in order."""
        hits: list[int] = []
        search = self._search(pattern, start, end)
        while len(hits) < limit and (hit := next(search, None)) is not None:
            hits.append(hit)
        return hits

    def _search(self, pattern: Buffer, start: int, end: int | None) -> Iterator[int]:
        needle = bytes(pattern)
        if not needle:
            raise MemoryAccessError("the pattern to find is empty; give at least one byte")
        if start < 0:
            raise self.outside(start, 0)
        limit = self.end if end is None else min(end, self.end)
        at = start
        while at < limit:
            hit = find_next(self._spans, needle, at, limit)
            if hit is None:
                return
            yield hit
            at = hit + len(needle)

    # -- files -------------------------------------------------------------------------------------

    def export(self, path: str | os.PathLike[str], start: int = 0, end: int | None = None) -> int:
        """Write `[start, end)` to a sparse file: file offset = gpa - start. Bytes written.

        Holes between regions and pages never touched are holes in the file. The file appears under
        its name when it is complete.
        """
        limit = self.end if end is None else end
        if not 0 <= start <= limit <= _LIMIT:
            raise MemoryAccessError(f"cannot export {start:#x}..{limit:#x}: not a range", start)
        with SparseWriter(path, limit - start) as writer:
            for base, stop, view, region in self._spans:
                low, high = max(base, start), min(stop, limit)
                if low < high:
                    for offset, length in region.extents(low - base, high - base):
                        part = view[offset : offset + length]
                        writer.write(base + offset - start, part)
                        part.release()
            return writer.written

    def import_file(self, path: str | os.PathLike[str], gpa: int = 0) -> int:
        """The opposite of `export`: file offset 0 goes to `gpa`; holes in the file become zeros.

        Holes of the memory must be holes in the file. A file that does not fit is refused before
        anything changes. Bytes read.
        """
        with SparseReader(path) as reader:
            if gpa < 0 or gpa + reader.size > self.end:
                raise MemoryAccessError(
                    f"{reader.path} has {reader.size:#x} bytes and does not fit at guest-physical "
                    f"{gpa:#x}: memory ends at {self.end:#x}",
                    gpa,
                    reader.size,
                )
            data = reader.extents()
            parts = [(at, self._pieces(gpa + at, n)) for at, n in data]
            for base, stop, _, _ in self._spans:
                low, high = max(base, gpa), min(stop, gpa + reader.size)
                if low < high:
                    self.fill(low, high - low)
            for at, pieces in parts:
                for span, offset, n in pieces:
                    if span[3].tracked:
                        span[3].mark(offset, n)
                    reader.read_into(at, span[2][offset : offset + n])
                    at += n
            return sum(n for _, n in data)

    # -- end ---------------------------------------------------------------------------------------

    def close(self) -> None:
        """Forget all regions, and close those that `anonymous` made (others are their VM's)."""
        self._set(())
        while self._owned:
            self._owned.pop().close()

    def __enter__(self) -> GuestMemory:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        ranges = ", ".join(f"{base:#x}..{end - 1:#x}" for base, end, _, _ in self._spans)
        return f"<GuestMemory {ranges or 'empty'}>"


def _format(layout: str) -> struct.Struct:
    return struct.Struct(layout if layout[:1] in ("<", ">", "=", "!", "@") else "<" + layout)


def _misfit(gpa: int, value: object, bits: int) -> MemoryAccessError:
    return MemoryAccessError(
        f"{value!r} for guest-physical {gpa:#x} is not a number of {bits} bits; mask it", gpa
    )


def _closed(error: ValueError | TypeError) -> Exception:
    # What a released memoryview says; anything else is not ours to hide.
    if "released memoryview" in str(error) or "read-write bytes-like" in str(error):
        return ClosedError("this guest memory is closed; its region was closed or its VM ended")
    return error
