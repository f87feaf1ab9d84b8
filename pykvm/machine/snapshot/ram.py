"""Guest memory of snapshots: who wrote which page since when, and the contents as page tables.

The contents of memory at one moment are a `RamImage`: for each page, a pointer to its bytes, or
NULL for zeros. Images share the pages that did not change between them, so a second snapshot costs
only what was written since the first. Two images differ at most where their pointers do: that makes
going from any image to any other right, whatever their order.

Changes are found by KVM's dirty log (KVM API 4.8, 4.117) for what guests and KVM write, and by
`MemoryRegion.marks` for what this process writes. The copying is in native/src/reset.c.
"""

from __future__ import annotations

import mmap

from pykvm._native import ffi, lib
from pykvm.kvm import constants as c
from pykvm.kvm.errors import KvmError
from pykvm.machine.snapshot.errors import SnapshotError
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm.region import MemoryRegion
    from pykvm.machine.machine import Machine
    from pykvm.memory_search import Span

PAGE = c.PAGE_SIZE
Shape = tuple[tuple[int, int], ...]
"""(guest-physical address, bytes) of each region."""


class RamImage:
    """The contents of guest memory at one moment; never changed.

    `tables`: a C array of page pointers for each region; `blocks`: what their pages lie in.
    """

    def __init__(self, shape: Shape, tables: list[Any], blocks: tuple[Any, ...]) -> None:
        self.shape = shape
        self.tables = tables
        self.blocks = blocks
        self.c: Any = ffi.new("pykvm_pages[]", tables)

    @classmethod
    def zeros(cls, shape: Shape) -> RamImage:
        """Memory that is all zeros."""
        return cls(shape, [ffi.new("const uint8_t *[]", size // PAGE) for _, size in shape], ())

    def page(self, region: int, number: int) -> bytes:
        """The bytes of one page."""
        at = self.tables[region][number]
        return bytes(PAGE) if at == ffi.NULL else bytes(ffi.buffer(at, PAGE))


class RamTracker:
    """The memory of one machine, watched from its first snapshot on.

    `base`: the image that memory was equal to when changes were last collected; None if there is
    none.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._spans: tuple[Span, ...] = ()
        self.base: RamImage | None = None
        self.regions: list[MemoryRegion] = []
        self.shape: Shape = ()
        self.c: Any = ffi.new("struct pykvm_ram *")
        self._held: list[Any] = []

    def follow(self) -> None:
        """Watches the regions that there are now. Raises `KvmError`."""
        machine = self._machine
        if machine.memory.spans is self._spans and self._spans:
            return
        vm = machine.vm
        spans = machine.memory.spans
        manual = c.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
        has_manual = bool(vm.check_extension("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2") & manual)
        if has_manual:
            vm.enable_manual_dirty_log()
        self.regions = [span[3] for span in spans]
        self.shape = tuple((r.gpa, r.size) for r in self.regions)
        self.base = None
        self._held = []
        parts = ffi.new("struct pykvm_ram_part[]", max(1, len(self.regions)))
        for part, region in zip(parts, self.regions, strict=False):
            if not region.flags & c.KVM_MEM_LOG_DIRTY_PAGES and not self._readonly(region):
                vm.set_log_dirty(region, True)
            pages = region.size // PAGE
            bitmap = ffi.new("uint64_t[]", (pages + 63) // 64)
            host, marks = ffi.from_buffer(region.view), ffi.from_buffer(region.marks)
            region.tracked = True
            self._held += [bitmap, host, marks]
            part.slot, part.logged, part.pages = region.slot, not self._readonly(region), pages
            part.host, part.marks, part.bitmap = host, marks, bitmap
        self._held.append(parts)
        self.c.vm_fd, self.c.manual = vm.fd, has_manual
        self.c.count, self.c.part = len(self.regions), parts
        self._spans = spans

    @staticmethod
    def _readonly(region: MemoryRegion) -> bool:
        return bool(region.flags & c.KVM_MEM_READONLY)

    def take(self) -> RamImage:
        """The contents now. The vCPUs and devices stand still."""
        self.follow()
        found = self._checked(lib.pykvm_ram_collect(self.c), "KVM_GET_DIRTY_LOG")
        base = self.base
        if base is None:
            base = RamImage.zeros(self.shape)
            found = 0
            for index, region in enumerate(self.regions):
                for at, length in region.extents():
                    first, end = at // PAGE, -(-(at + length) // PAGE)
                    lib.pykvm_ram_touch(self.c, index, first, end - first)
                    found += end - first
        elif not found:
            return base
        tables = []
        for table in base.tables:
            copy = ffi.new("const uint8_t *[]", len(table))
            ffi.memmove(copy, table, ffi.sizeof(table))
            tables.append(copy)
        blocks = base.blocks
        if found:
            # The pages of it that turn out to be zero or unchanged are never touched.
            block = mmap.mmap(-1, found * PAGE, flags=mmap.MAP_PRIVATE | 0x4000)
            room = ffi.from_buffer(block)
            used = lib.pykvm_ram_take(self.c, ffi.new("const uint8_t **[]", tables), room)
            if used:
                blocks = (*blocks, room)
        self.base = RamImage(self.shape, tables, blocks)
        return self.base

    def put(self, image: RamImage) -> int:
        """Memory becomes `image`; the number of pages that were copied for it."""
        self.follow()
        self.check(image)
        base = self.base
        if base is None:  # what has pages may be anything, all else is zeros
            base = RamImage.zeros(self.shape)
            for region in self.regions:
                for at, length in region.extents():
                    region.mark(at, length)
        self.base = None
        done = self._checked(lib.pykvm_ram_put(self.c, image.c, base.c), "KVM_CLEAR_DIRTY_LOG")
        self.base = image
        return done

    def check(self, image: RamImage) -> None:
        """Raises `SnapshotError` where the image is of other memory."""
        if image.shape != self.shape:
            raise SnapshotError(
                f"the snapshot has memory at {_describe(image.shape)}, "
                f"this machine at {_describe(self.shape)}"
            )

    def difference(self, image: RamImage) -> tuple[int, int, int] | None:
        """The first byte that is not as in `image`: (gpa, byte there, byte here)."""
        self.follow()
        self.check(image)
        part, offset = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        if not lib.pykvm_ram_compare(self.c, image.c, part, offset):
            return None
        index, at = part[0], offset[0]
        then = image.page(index, at // PAGE)[at % PAGE]
        return self.shape[index][0] + at, then, self.regions[index].view[at]

    @staticmethod
    def _checked(result: int, name: str) -> int:
        if result < 0:
            raise KvmError(name, -result)
        return result


def _describe(shape: Shape) -> str:
    return ", ".join(f"{gpa:#x}..{gpa + size - 1:#x}" for gpa, size in shape) or "no address"
