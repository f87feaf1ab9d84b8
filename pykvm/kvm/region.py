"""`MemoryRegion`: the host memory behind one piece of guest RAM. A holder: it makes no KVM ioctls.

A region is a memfd (or a file the caller brings) mapped once into this process. Pages come into
being when they are first touched, so a region of many GiB costs nothing until the guest uses it.

Addresses are guest-physical (`gpa`) unless a name says otherwise; sizes are bytes. Sources: the KVM
API document, section 4.35 KVM_SET_USER_MEMORY_REGION; memfd_create(2), madvise(2), lseek(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import sys
import weakref
from collections.abc import Iterator
from types import TracebackType

from pykvm._native import ffi, lib
from pykvm.errors import PykvmError
from pykvm.kvm.errors import ClosedError
from pykvm.sparsefile import data_extents
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

PAGE_SIZE = 4096
_LIMIT = 1 << 64
_MAP_NORESERVE = 0x4000  # not in every mmap module; the value is the same on all of x86
_PUNCH_FROM = 64 << 10  # below, writing zeros is cheaper than dropping pages
_HUGE_SIZES = {"2M": 2 << 20, "1G": 1 << 30}
_HUGE_FLAGS = {"2M": os.MFD_HUGE_2MB, "1G": os.MFD_HUGE_1GB}
# Nobody may shrink the file under the mapping (that would be SIGBUS here and in the kernel).
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


class RegionError(PykvmError):
    """A region of guest memory that cannot be made as asked (size, alignment, huge pages, file)."""


class MemoryAccessError(PykvmError):
    """An access to guest-physical addresses that no region holds.

    `.gpa` and `.length` are the access, in bytes.
    """

    def __init__(self, message: str, gpa: int = 0, length: int = 0) -> None:
        super().__init__(message)
        self.gpa = gpa
        self.length = length


class MemoryRegion:
    """Guest RAM at `[gpa, gpa + size)`, backed by a memfd mapped MAP_SHARED and MAP_NORESERVE.

    - `huge_pages`: None, "2M" or "1G" (hugetlbfs pages, reserved now; `size` and `gpa` must be
      multiples of the page) or "thp" (transparent huge pages, as far as the host has any to give;
      where it gives none to files, the memory is anonymous, and no other process can share it).
    - `fd`, `offset`: map this file instead of a new memfd, from `offset` on. The descriptor is
      duplicated, the caller's stays the caller's. The file must not be truncated meanwhile.
    - `private`: copy-on-write (MAP_PRIVATE): guest writes do not reach the file.
    - `slot`, `flags`: the KVM memory slot and its KVM_MEM_* flags, kept for whoever registers it.
    - `guest_memfd`: the fd of KVM_CREATE_GUEST_MEMFD that goes with the region; the region owns it
      from then on and closes it.
    - `kind`: "ram" is what memory maps list; "device" is a memory device's, which drivers add, and
      "file" keeps its contents through resets, too (persistent memory).

    Raises `RegionError`. `close()` may be called while views exist: the region refuses further use
    at once, and the pages are unmapped when the last view is gone, never under one.
    """

    __slots__ = (
        "__weakref__",
        "_finalizer",
        "_gpa",
        "_map",
        "_marks",
        "_size",
        "_view",
        "anonymous",
        "fd",
        "flags",
        "guest_memfd",
        "guest_memfd_offset",
        "host_address",
        "huge_pages",
        "kind",
        "name",
        "offset",
        "private",
        "slot",
        "tracked",
    )

    fd: int
    """The backing file's descriptor, -1 after close(). Its contents are the guest's memory, from
    `offset` on (not for a private region)."""
    anonymous: bool
    """Whether no file is behind it: `fd` is -1, and no other process can map it."""
    host_address: int
    """Where the region is mapped in this process (host-virtual), 0 after close()."""
    tracked: bool
    """Whether a snapshot wants to know what is written: see `marks`."""

    def __init__(
        self,
        gpa: int,
        size: int,
        *,
        huge_pages: str | None = None,
        slot: int | None = None,
        flags: int = 0,
        fd: int | None = None,
        offset: int = 0,
        private: bool = False,
        guest_memfd: int | None = None,
        guest_memfd_offset: int = 0,
        name: str = "pykvm-ram",
        kind: str = "ram",
    ) -> None:
        _check_place(gpa, size, huge_pages)
        self._gpa = gpa
        self._size = size
        self.slot = slot
        self.flags = flags
        self.huge_pages = huge_pages
        self.offset = offset
        self.private = private
        self.guest_memfd = guest_memfd
        self.guest_memfd_offset = guest_memfd_offset
        self.name = name
        self.kind = kind
        self.tracked = False
        self._marks: bytearray | None = None
        if fd is None and offset:
            raise RegionError(f"offset {offset:#x} of a new region must be 0; give fd= with it")
        self.anonymous = False
        if fd is None and huge_pages == "thp":
            from pykvm.kvm.anonymous import files_have_thp

            self.anonymous = not files_have_thp()
        if self.anonymous:
            self.fd = -1
        elif fd is None:
            self.fd = _make_memfd(name, size, huge_pages)
        else:
            self.fd = _check_file(fd, offset, size)
        try:
            self._map = _map(self.fd, size, offset, private, huge_pages)
        except BaseException:
            if self.fd >= 0:
                os.close(self.fd)
            raise
        self._view: memoryview = memoryview(self._map)
        self.host_address = int(ffi.cast("uintptr_t", ffi.from_buffer(self._map)))
        fds = [fd for fd in (self.fd, guest_memfd) if fd is not None and fd >= 0]
        self._finalizer = weakref.finalize(self, _close_all, fds)

    @property
    def gpa(self) -> int:
        """The first guest-physical address of the region."""
        return self._gpa

    @property
    def size(self) -> int:
        """The length in bytes."""
        return self._size

    @property
    def end(self) -> int:
        """The guest-physical address after the last byte."""
        return self._gpa + self._size

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return not self._finalizer.alive

    @property
    def view(self) -> memoryview:
        """The whole region, writable, zero-copy. Holding it (or a slice) keeps the pages mapped."""
        return memoryview(self._live())

    @property
    def marks(self) -> bytearray:
        """A byte for each page, not 0 where this process wrote to it: what KVM's log does not know.

        Native code sets them always, the methods here and of `GuestMemory` while `tracked`.
        """
        if self._marks is None:
            self._marks = bytearray(self._size // PAGE_SIZE)
        return self._marks

    def mark(self, offset: int, length: int) -> None:
        """`length` bytes at `offset` are written, or may be: for whoever uses a view."""
        if length > 0:
            first, last = offset // PAGE_SIZE, (offset + length - 1) // PAGE_SIZE
            self.marks[first : last + 1] = b"\1" * (last - first + 1)

    def contains(self, gpa: int, length: int = 1) -> bool:
        """Whether `[gpa, gpa + length)` lies in the region."""
        return length >= 0 and self._gpa <= gpa and gpa + length <= self._gpa + self._size

    def read(self, gpa: int, length: int) -> bytes:
        """`length` bytes at guest-physical `gpa`. Raises `MemoryAccessError` outside the region."""
        view = self._live()
        self._check(gpa, length)
        at = gpa - self._gpa
        return bytes(view[at : at + length])

    def write(self, gpa: int, data: Buffer) -> None:
        """Put `data` (any bytes-like object) at guest-physical `gpa`, whole or not at all."""
        view = self._live()
        source = memoryview(data).cast("B")
        self._check(gpa, len(source))
        at = gpa - self._gpa
        if self.tracked:
            self.mark(at, len(source))
        view[at : at + len(source)] = source

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """The parts that have pages, as (offset, length) from the region's start, in order.

        All else is a hole: it reads as zero and costs nothing. `start` and `end` bound the search
        (offsets). A private region reports all of itself: the file does not know its pages.
        """
        self._live()
        end = self._size if end is None else min(end, self._size)
        if self.anonymous:
            from pykvm.kvm.anonymous import mapped_extents

            yield from mapped_extents(self.host_address, start, end)
            return
        if self.private:
            if start < end:
                yield start, end - start
            return
        for at, length in data_extents(self.fd, self.offset + start, self.offset + end):
            yield at - self.offset, length

    def fill(self, offset: int, length: int, byte: int = 0) -> None:
        """Set `length` bytes at `offset` (from the region's start) to `byte` (0 to 255).

        Large ranges of zeros are made by giving whole pages back to the host.
        """
        view = self._live()
        self._check(self._gpa + offset, length)
        if self.tracked:
            self.mark(offset, length)
        low, high = offset, offset
        if byte == 0 and length >= _PUNCH_FROM and not self.private:
            page = _HUGE_SIZES.get(self.huge_pages or "", PAGE_SIZE)
            first, last = -(-offset // page) * page, (offset + length) // page * page
            try:
                if first < last:
                    self._map.madvise(self._give_back, first, last - first)
                    low, high = first, last
            except OSError:  # a file system that cannot punch holes
                pass
        for start, end in ((offset, low), (high, offset + length)):
            if start < end:
                with ffi.from_buffer(view[start:end]) as target:
                    lib.pykvm_memory_fill(target, end - start, byte)

    def discard(self, offset: int, length: int) -> int:
        """Give the whole pages in `[offset, offset + length)` back to the host; bytes given back.

        They read as zeros from then on, to the guest (KVM unmaps them first), to devices and to
        views, and come into being again when they are touched. Safe while vCPUs run. A private
        region and a file system that cannot punch holes keep their pages: the result is 0.
        """
        self._live()
        self._check(self._gpa + offset, length)
        page = _HUGE_SIZES.get(self.huge_pages or "", PAGE_SIZE)
        first, last = -(-offset // page) * page, (offset + length) // page * page
        if first >= last or self.private:
            return 0
        if self.tracked:
            self.mark(first, last - first)
        try:
            self._map.madvise(self._give_back, first, last - first)
        except OSError:
            return 0
        return last - first

    @property
    def _give_back(self) -> int:
        return mmap.MADV_DONTNEED if self.anonymous else mmap.MADV_REMOVE

    def close(self) -> None:
        """Give up the file and, once no view is left, the mapping. Closing twice is harmless.

        Take the region out of its VM first: KVM keeps using a mapping as long as the slot exists.
        """
        if not self._finalizer.alive:
            return
        self._finalizer()
        self.fd = -1
        self.host_address = 0
        self.guest_memfd = None
        with contextlib.suppress(BufferError):
            self._view.release()
        with contextlib.suppress(BufferError):  # a view is out: the last one to go unmaps
            self._map.close()
        del self._map

    def __enter__(self) -> MemoryRegion:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"slot={self.slot} fd={self.fd}"
        return f"<MemoryRegion {self._gpa:#x}..{self.end - 1:#x} {state}>"

    def _live(self) -> memoryview:
        if not self._finalizer.alive:
            raise ClosedError(f"the memory region at {self._gpa:#x} is closed; add a new one")
        return self._view

    def _check(self, gpa: int, length: int) -> None:
        if not self.contains(gpa, length):
            raise MemoryAccessError(
                f"{length} bytes at guest-physical {gpa:#x} are not in the memory region "
                f"{self._gpa:#x}..{self.end - 1:#x}; read or write inside it",
                gpa,
                length,
            )


def _check_place(gpa: int, size: int, huge_pages: str | None) -> None:
    if huge_pages not in (None, "2M", "1G", "thp"):
        raise RegionError(f'huge_pages is {huge_pages!r}; use None, "2M", "1G" or "thp"')
    page = _HUGE_SIZES.get(huge_pages or "", PAGE_SIZE)
    what = f"{huge_pages} pages" if page > PAGE_SIZE else "4 KiB pages"
    if size <= 0 or size % page:
        raise RegionError(f"memory size {size:#x} is not a positive number of {what}; round it")
    if gpa < 0 or gpa % page:
        raise RegionError(f"memory address {gpa:#x} is not aligned to {what}; round it")
    if gpa + size > _LIMIT:
        raise RegionError(f"memory at {gpa:#x} of {size:#x} bytes ends above 2^64; place it lower")


def _make_memfd(name: str, size: int, huge_pages: str | None) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if huge_pages in _HUGE_FLAGS:
        flags |= os.MFD_HUGETLB | _HUGE_FLAGS[huge_pages]
    try:
        fd = os.memfd_create(name, flags)
    except OSError as error:
        if huge_pages in _HUGE_FLAGS:
            raise RegionError(
                f"this host has no {huge_pages} huge pages ({os.strerror(error.errno or 0)}); "
                'use huge_pages="thp" or None'
            ) from error
        raise RegionError(f"memfd_create failed: {os.strerror(error.errno or 0)}") from error
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except (OSError, OverflowError) as error:
        os.close(fd)
        raise RegionError(f"cannot make a memory file of {size:#x} bytes: {error}") from error
    return fd


def _check_file(fd: int, offset: int, size: int) -> int:
    """A duplicate of `fd` if the file can back the region: regular, and long enough."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise RegionError(f"fd {fd} cannot back guest memory: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise RegionError(f"fd {fd} cannot back guest memory: it is not a regular file")
    if offset < 0 or offset % PAGE_SIZE:
        raise RegionError(f"file offset {offset:#x} is not aligned to 4 KiB pages; round it")
    if offset + size > status.st_size:
        raise RegionError(
            f"the file has {status.st_size:#x} bytes, the region needs {offset + size:#x}; "
            "extend the file (truncate -s) or make the region smaller"
        )
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)


def _map(fd: int, size: int, offset: int, private: bool, huge_pages: str | None) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE if private or fd < 0 else mmap.MAP_SHARED
    if fd < 0:
        flags |= mmap.MAP_ANONYMOUS
    if huge_pages not in _HUGE_FLAGS:
        # hugetlbfs must reserve now: without, running out of pages later is SIGBUS, not an error.
        flags |= _MAP_NORESERVE
    # Python duplicates the descriptor unless told not to (3.13); one fewer fd for each region.
    extra = {"trackfd": False} if sys.version_info >= (3, 13) else {}
    try:
        mapping = mmap.mmap(fd, size, flags=flags, offset=offset, **extra)
    except (OSError, OverflowError, ValueError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if huge_pages in _HUGE_FLAGS and number == errno.ENOMEM:
            kib = _HUGE_SIZES[huge_pages] >> 10
            remedy = (
                "/proc/sys/vm/nr_hugepages (as root)"
                if huge_pages == "2M"
                else f"/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages (as root; "
                "/proc/sys/vm/nr_hugepages is for the default size only)"
            )
            raise RegionError(
                f"the host has too few free {huge_pages} huge pages for {size:#x} bytes; "
                f"write at least {size // _HUGE_SIZES[huge_pages]} more to {remedy}"
            ) from error
        raise RegionError(f"cannot map {size:#x} bytes of guest memory: {error}") from error
    if huge_pages == "thp":
        try:
            mapping.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:
            mapping.close()
            raise RegionError(
                f"this host kernel has no transparent huge pages ({error.strerror}); "
                "use huge_pages=None"
            ) from error
    return mapping


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
