"""Which pages the guest wrote: dirty bitmaps per slot, dirty rings per vCPU.

KVM API: KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG; KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
KVM_CAP_DIRTY_LOG_RING.
"""

from __future__ import annotations

import errno

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.dirtyring import ENTRY_SIZE
from pykvm.kvm.errors import InvalidArgument, KvmError, Unsupported
from pykvm.kvm.region import MemoryRegion
from pykvm.kvm.vm_base import VmBase
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer


class VmDirty(VmBase):
    """Dirty page tracking of a VM."""

    _dirty_ring_size: int  # bytes per vCPU, 0 when off

    # -- bitmaps -------------------------------------------------------------------------------

    def enable_manual_dirty_log(self, *, initially_set: bool = False) -> None:
        """Makes `get_dirty_log` only read; `clear_dirty_log` then write-protects pages again.

        `initially_set`: pages start as dirty, so that the first protection can be done in parts.
        """
        capability = "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2"
        have = self._need(capability, "KVM_ENABLE_CAP", "manual dirty log")
        wanted = c.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
        if initially_set:
            if not have & c.KVM_DIRTY_LOG_INITIALLY_SET:
                raise Unsupported("KVM_ENABLE_CAP", "initially_set", "this host's KVM is too old")
            wanted |= c.KVM_DIRTY_LOG_INITIALLY_SET
        self.enable_cap(capability, wanted)

    def get_dirty_log(self, region: MemoryRegion) -> bytearray:
        """The region's dirty bitmap: bit n (little endian) is page n, whole 64-bit words.

        Reading also clears it and protects the pages again, unless the log is manual. The region
        needs `log_dirty`. Raises `InvalidArgument`, `KvmError`.
        """
        slot = self._logged("KVM_GET_DIRTY_LOG", region)
        pages = region.size // c.PAGE_SIZE
        bitmap = bytearray((pages + 63) // 64 * 8)
        request: Any = ffi.new("struct kvm_dirty_log *")
        request.slot = slot
        with ffi.from_buffer(bitmap) as buffer:
            request.dirty_bitmap = buffer
            self._log_ioctl("KVM_GET_DIRTY_LOG", request, slot)
        return bitmap

    def clear_dirty_log(
        self,
        region: MemoryRegion,
        bitmap: Buffer | None = None,
        first_page: int = 0,
        num_pages: int | None = None,
    ) -> None:
        """Clears and protects the pages whose bits are set in `bitmap` (all of them if None).

        The bitmap starts at page `first_page`, a multiple of 64, and covers `num_pages`, a
        multiple of 64 or up to the region's end. Of use with `enable_manual_dirty_log`: without,
        reading the log has cleared it already.
        """
        name = "KVM_CLEAR_DIRTY_LOG"
        slot = self._logged(name, region)
        pages = region.size // c.PAGE_SIZE
        count = pages - first_page if num_pages is None else num_pages
        if first_page < 0 or first_page % 64 or first_page >= pages:
            raise InvalidArgument(
                name, f"first_page={first_page}", f"it must be a multiple of 64 below {pages}"
            )
        if count <= 0 or first_page + count > pages or (count % 64 and first_page + count != pages):
            raise InvalidArgument(
                name,
                f"num_pages={count}",
                f"it must be a multiple of 64 or end at the last of the region's {pages} pages",
            )
        words = (count + 63) // 64 * 8
        data = b"\xff" * words if bitmap is None else bytes(memoryview(bitmap).cast("B"))
        if len(data) < (count + 7) // 8:
            raise InvalidArgument(
                name, f"bitmap of {len(data)} bytes", f"{count} pages need {(count + 7) // 8}"
            )
        request: Any = ffi.new("struct kvm_clear_dirty_log *")
        request.slot = slot
        request.first_page = first_page
        request.num_pages = count
        with ffi.from_buffer(bytearray(data[:words].ljust(words, b"\0"))) as buffer:
            request.dirty_bitmap = buffer
            self._log_ioctl(name, request, slot)

    def dirty_pages(self, region: MemoryRegion) -> list[int]:
        """Guest-physical addresses of the region's dirty pages (`get_dirty_log`, decoded)."""
        return [region.gpa + page * c.PAGE_SIZE for page in set_bits(self.get_dirty_log(region))]

    def _logged(self, name: str, region: MemoryRegion) -> int:
        if not any(region is mine for mine in self._regions) or region.slot is None:
            raise InvalidArgument(
                name, f"region at {region.gpa:#x}", "it is not memory of this VM", errno.ENOENT
            )
        if not region.flags & c.KVM_MEM_LOG_DIRTY_PAGES:
            raise InvalidArgument(
                name,
                f"slot={region.slot}",
                "its writes are not logged; use add_memory(log_dirty=True) or set_log_dirty",
                errno.ENOENT,
            )
        return region.slot

    def _log_ioctl(self, name: str, request: Any, slot: int) -> None:
        try:
            self.ioctl(name, request)
        except KvmError as error:
            hint = ""
            if error.errno == errno.ENXIO and self._dirty_ring_size:
                hint = "the VM has dirty rings instead; use harvest_dirty_rings"
            raise error.explained(f"slot={slot}", hint) from None

    # -- rings ---------------------------------------------------------------------------------

    def enable_dirty_ring(self, entries: int) -> None:
        """Gives every vCPU a dirty ring of `entries` pages (a power of two, at least 256).

        Before the first vCPU. A full ring stops its vCPU with `DirtyRingFullExit`.
        """
        what = f"entries={entries}"
        self._need_no_vcpus("KVM_ENABLE_CAP", what)
        if self._dirty_ring_size:
            raise InvalidArgument("KVM_ENABLE_CAP", what, "the VM has dirty rings", errno.EEXIST)
        for capability in ("KVM_CAP_DIRTY_LOG_RING_ACQ_REL", "KVM_CAP_DIRTY_LOG_RING"):
            largest = self.check_extension(capability)
            if largest:
                break
        else:
            raise Unsupported(
                "KVM_ENABLE_CAP", what, "this host's KVM lacks KVM_CAP_DIRTY_LOG_RING"
            )
        size = entries * ENTRY_SIZE
        if entries < 256 or entries & (entries - 1) or size > largest:
            raise InvalidArgument(
                "KVM_ENABLE_CAP",
                what,
                f"it must be a power of two from 256 to {largest // ENTRY_SIZE}",
            )
        self.enable_cap(capability, size)
        self._dirty_ring_size = size

    @property
    def dirty_ring_size(self) -> int:
        """Bytes in each vCPU's dirty ring; 0 when the VM has none."""
        return self._dirty_ring_size

    def harvest_dirty_rings(self) -> list[tuple[int, int]]:
        """Takes what all vCPUs' rings hold: (memory slot, page number in the slot)."""
        found: list[tuple[int, int]] = []
        for vcpu in self.vcpus:
            found += vcpu.harvest_dirty_ring()
        return found

    def reset_dirty_rings(self) -> int:
        """Protects the harvested pages again; returns how many entries the kernel took back."""
        return self.ioctl("KVM_RESET_DIRTY_RINGS")


def set_bits(bitmap: Buffer) -> list[int]:
    """The numbers of the bits that are set in a little-endian bitmap of whole 64-bit words."""
    found: list[int] = []
    for index, word in enumerate(memoryview(bitmap).cast("B").cast("Q")):
        base = index * 64
        while word:
            low = word & -word
            found.append(base + low.bit_length() - 1)
            word ^= low
    return found
