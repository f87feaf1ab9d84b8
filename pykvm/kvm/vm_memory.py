"""Guest memory slots of a `Vm`: add, move, resize, remove; flags; private memory.

KVM API: 4.35 KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2,
KVM_SET_MEMORY_ATTRIBUTES, KVM_CREATE_GUEST_MEMFD. Addresses are guest-physical.
"""

from __future__ import annotations

import errno
import os

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.errors import ClosedError, InvalidArgument, KvmError, Unsupported
from pykvm.kvm.region import MemoryRegion
from pykvm.kvm.vm_base import VmBase, check_int
from pykvm.typed import Any

_SET = "KVM_SET_USER_MEMORY_REGION"
_MAX_SIZE = ((1 << 31) - 1) * c.PAGE_SIZE  # KVM_MEM_MAX_NR_PAGES


class VmMemory(VmBase):
    """The memory slots of a VM."""

    _owned: set[int]  # id() of the regions that the VM made and closes itself
    _memslots: int

    @property
    def regions(self) -> list[MemoryRegion]:
        """The regions of guest memory, by guest-physical address."""
        return sorted(self._regions, key=lambda region: region.gpa)

    def region_at(self, gpa: int) -> MemoryRegion | None:
        """The region that holds guest-physical `gpa`, None in a hole."""
        return next((r for r in self._regions if r.contains(gpa)), None)

    def region_of_slot(self, slot: int) -> MemoryRegion:
        """The region in a memory slot. Raises `InvalidArgument`."""
        for region in self._regions:
            if region.slot == slot:
                return region
        raise InvalidArgument(_SET, f"slot={slot}", "there is no memory in that slot", errno.ENOENT)

    @property
    def max_slots(self) -> int:
        """How many memory slots the VM can have."""
        if not self._memslots:
            self._memslots = self.check_extension("KVM_CAP_NR_MEMSLOTS") or 32
        return self._memslots

    def add_memory(
        self,
        gpa: int,
        size: int,
        *,
        slot: int | None = None,
        readonly: bool = False,
        log_dirty: bool = False,
        guest_memfd: bool = False,
        huge_pages: str | None = None,
        region: MemoryRegion | None = None,
    ) -> MemoryRegion:
        """Gives the guest `size` bytes of memory at guest-physical `gpa`.

        Both in multiples of 4 KiB. `slot`: the KVM slot, the lowest free one unless given (bits
        16 and up are the address space: 1 is SMRAM where the host has it). `readonly`: guest
        writes come out as MMIO exits. `log_dirty`: `get_dirty_log` works on it. `guest_memfd`:
        backed for private memory by a guest_memfd too (`set_private`). `huge_pages`: as for
        `MemoryRegion`. `region`: existing host memory of that place and size, which stays the
        caller's to close; otherwise the VM makes and closes it.

        Raises `InvalidArgument` (overlap, slot in use, bad place), `Unsupported`, `KvmError`,
        `RegionError`; the VM is then as it was.
        """
        slot = self._free_slot() if slot is None else slot
        flags = self._flags(readonly, log_dirty, guest_memfd)
        if region is not None:
            self._check_given(region, gpa, size, guest_memfd)
        self._check_place(gpa, size, slot)
        owned = region is None
        if region is None:
            region = self._make_region(gpa, size, huge_pages, guest_memfd)
        region.slot = slot
        region.flags = flags
        try:
            self._set_slot(region, gpa, size)
        except BaseException:
            region.slot = None
            if owned:
                region.close()
            raise
        self._regions.append(region)
        if owned:
            self._owned.add(id(region))
        return region

    def remove_memory(self, region: MemoryRegion) -> None:
        """Takes a region away from the guest; closes it if the VM made it."""
        self._own(region)
        self._set_slot(region, region.gpa, 0)
        self._forget(region)

    def move_memory(self, region: MemoryRegion, gpa: int) -> None:
        """Moves a region to another guest-physical address; its contents move along.

        A `GuestMemory` made before knows the old place: make a new one from `vm.regions`.
        """
        self._own(region)
        self._need_stopped(_SET, f"slot={region.slot}")
        if region.flags & c.KVM_MEM_GUEST_MEMFD:
            raise InvalidArgument(
                _SET, f"slot={region.slot}", "KVM cannot move guest_memfd memory; remove and add it"
            )
        self._check_place(gpa, region.size, region.slot or 0, ignore=region)
        self._set_slot(region, gpa, region.size)
        region._gpa = gpa

    def resize_memory(self, region: MemoryRegion, size: int) -> MemoryRegion:
        """Replaces a region by one of `size` bytes, with as much of the contents as fits.

        The old region is closed if the VM made it; the new one is returned. KVM cannot change the
        size of a slot, so the guest has no memory there for a moment: the vCPUs must not run.
        """
        self._own(region)
        slot, flags = region.slot or 0, region.flags
        self._need_stopped(_SET, f"slot={slot}")
        if flags & c.KVM_MEM_GUEST_MEMFD:
            raise InvalidArgument(
                _SET, f"slot={slot}", "guest_memfd memory cannot be resized; remove and add it"
            )
        self._check_place(region.gpa, size, slot, ignore=region)
        new = MemoryRegion(region.gpa, size, huge_pages=region.huge_pages, slot=slot, flags=flags)
        try:
            old_view, new_view = region.view, new.view
            for offset, length in region.extents(0, min(size, region.size)):
                end = min(offset + length, size)
                new_view[offset:end] = old_view[offset:end]
            self._set_slot(region, region.gpa, 0)
            try:
                self._set_slot(new, new.gpa, size)
            except BaseException:
                self._set_slot(region, region.gpa, region.size)
                raise
        except BaseException:
            new.close()
            raise
        self._forget(region)
        self._regions.append(new)
        self._owned.add(id(new))
        return new

    def set_log_dirty(self, region: MemoryRegion, enabled: bool) -> None:
        """Switches dirty logging of a region on or off."""
        self._own(region)
        old = region.flags
        bit = c.KVM_MEM_LOG_DIRTY_PAGES
        if enabled and old & c.KVM_MEM_GUEST_MEMFD:
            raise InvalidArgument(_SET, f"slot={region.slot}", _NO_LOG_PRIVATE)
        region.flags = old | bit if enabled else old & ~bit
        try:
            self._set_slot(region, region.gpa, region.size)
        except BaseException:
            region.flags = old
            raise

    # -- private memory ----------------------------------------------------------------------

    def set_private(self, gpa: int, size: int, private: bool = True) -> None:
        """Makes guest memory private (from the guest_memfd) or shared again (from the region).

        Needs `KVM_CAP_MEMORY_ATTRIBUTES`, which protected kinds of VM have.
        """
        ioctl = "KVM_SET_MEMORY_ATTRIBUTES"
        have = self._need("KVM_CAP_MEMORY_ATTRIBUTES", ioctl, f"gpa={gpa:#x}")
        if private and not have & c.KVM_MEMORY_ATTRIBUTE_PRIVATE:
            raise Unsupported(ioctl, f"gpa={gpa:#x}", "this kind of VM has no private memory")
        if size <= 0 or gpa % c.PAGE_SIZE or size % c.PAGE_SIZE:
            raise InvalidArgument(
                ioctl, f"gpa={gpa:#x} size={size:#x}", "both must be multiples of 4 KiB"
            )
        request: Any = ffi.new("struct kvm_memory_attributes *")
        request.address = gpa
        request.size = size
        request.attributes = c.KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0
        self.ioctl(ioctl, request)

    def _make_region(
        self, gpa: int, size: int, huge_pages: str | None, guest_memfd: bool
    ) -> MemoryRegion:
        if not guest_memfd:
            return MemoryRegion(gpa, size, huge_pages=huge_pages)
        memfd, mappable = self._create_guest_memfd(size)
        try:
            # Where the guest_memfd holds the shared memory too, it is what the host must look at.
            backing = memfd if mappable else None
            return MemoryRegion(gpa, size, huge_pages=huge_pages, fd=backing, guest_memfd=memfd)
        except BaseException:
            os.close(memfd)
            raise

    def _create_guest_memfd(self, size: int) -> tuple[int, bool]:
        """A guest_memfd, and whether the host may map it."""
        ioctl = "KVM_CREATE_GUEST_MEMFD"
        self._need("KVM_CAP_GUEST_MEMFD", ioctl, f"size={size:#x}")
        request: Any = ffi.new("struct kvm_create_guest_memfd *")
        request.size = size
        # A VM without private memory can use a guest_memfd only as shared memory (Linux 6.18).
        if not self.check_extension("KVM_CAP_MEMORY_ATTRIBUTES") & c.KVM_MEMORY_ATTRIBUTE_PRIVATE:
            usable = c.GUEST_MEMFD_FLAG_MMAP | c.GUEST_MEMFD_FLAG_INIT_SHARED
            request.flags = self.check_extension("KVM_CAP_GUEST_MEMFD_FLAGS") & usable
        return self.ioctl(ioctl, request), bool(request.flags & c.GUEST_MEMFD_FLAG_MMAP)

    # -- checks --------------------------------------------------------------------------------

    def _free_slot(self) -> int:
        used = {region.slot for region in self._regions}
        return next(slot for slot in range(len(used) + 1) if slot not in used)

    def _flags(self, readonly: bool, log_dirty: bool, guest_memfd: bool) -> int:
        flags = 0
        if readonly:
            self._need("KVM_CAP_READONLY_MEM", _SET, "readonly=True")
            flags |= c.KVM_MEM_READONLY
        if log_dirty:
            flags |= c.KVM_MEM_LOG_DIRTY_PAGES
        if guest_memfd:
            self._need("KVM_CAP_USER_MEMORY2", f"{_SET}2", "guest_memfd=True")
            if readonly:
                raise InvalidArgument(
                    f"{_SET}2", "readonly=True", "guest_memfd memory cannot be read-only"
                )
            if log_dirty:
                raise InvalidArgument(f"{_SET}2", "log_dirty=True", _NO_LOG_PRIVATE)
            flags |= c.KVM_MEM_GUEST_MEMFD
        return flags

    def _check_place(
        self, gpa: int, size: int, slot: int, ignore: MemoryRegion | None = None
    ) -> None:
        check_int(slot, 32, "slot", _SET)
        space, number = slot >> 16, slot & 0xFFFF
        if number >= self.max_slots:
            raise InvalidArgument(
                _SET, f"slot={number}", f"this host has the slots 0 to {self.max_slots - 1}"
            )
        if space >= max(1, self.check_extension("KVM_CAP_MULTI_ADDRESS_SPACE")):
            raise InvalidArgument(
                _SET, f"slot={slot:#x}", f"this VM has no address space {space} (bits 16 and up)"
            )
        if size <= 0 or size % c.PAGE_SIZE:
            raise InvalidArgument(_SET, f"size={size:#x}", "it must be a multiple of 4 KiB, not 0")
        if gpa < 0 or gpa % c.PAGE_SIZE:
            raise InvalidArgument(_SET, f"gpa={gpa:#x}", "it must be a multiple of 4 KiB")
        if gpa + size > 1 << 64:
            raise InvalidArgument(_SET, f"gpa={gpa:#x} size={size:#x}", "it ends above 2^64")
        if size > _MAX_SIZE:
            raise InvalidArgument(
                _SET, f"size={size:#x}", f"a slot holds at most {_MAX_SIZE:#x} bytes; use several"
            )
        for other in self._regions:
            if other is ignore:
                continue
            place = f"{other.gpa:#x}..{other.end - 1:#x} (slot {other.slot})"
            if other.slot == slot:
                raise InvalidArgument(
                    _SET, f"slot={slot}", f"it holds {place} already", errno.EEXIST
                )
            same_space = (other.slot or 0) >> 16 == space
            if same_space and gpa < other.end and other.gpa < gpa + size:
                raise InvalidArgument(
                    _SET,
                    f"gpa={gpa:#x} size={size:#x}",
                    f"it overlaps the memory at {place}",
                    errno.EEXIST,
                )

    def _check_given(self, region: MemoryRegion, gpa: int, size: int, guest_memfd: bool) -> None:
        if region.closed:
            raise ClosedError(f"the memory region at {region.gpa:#x} is closed; make a new one")
        if region.slot is not None:
            raise InvalidArgument(
                _SET, f"region at {region.gpa:#x}", f"it is in slot {region.slot} of a VM already"
            )
        if (region.gpa, region.size) != (gpa, size):
            raise InvalidArgument(
                _SET,
                f"region at {region.gpa:#x}",
                f"it is {region.size:#x} bytes at {region.gpa:#x}, not {size:#x} at {gpa:#x}",
            )
        if guest_memfd and region.guest_memfd is None:
            raise InvalidArgument(
                _SET, f"region at {region.gpa:#x}", "it has no guest_memfd of its own"
            )

    def _own(self, region: MemoryRegion) -> None:
        if not any(region is mine for mine in self._regions):
            raise InvalidArgument(
                _SET, f"region at {region.gpa:#x}", "it is not memory of this VM", errno.ENOENT
            )

    def _forget(self, region: MemoryRegion) -> None:
        self._regions = [r for r in self._regions if r is not region]
        region.slot = None
        if id(region) in self._owned:
            self._owned.discard(id(region))
            region.close()

    def _set_slot(self, region: MemoryRegion, gpa: int, size: int) -> None:
        """Tells the kernel; `size` 0 deletes the slot."""
        with_memfd = region.flags & c.KVM_MEM_GUEST_MEMFD
        name = f"{_SET}2" if with_memfd else _SET
        kind = "struct kvm_userspace_memory_region"
        request: Any = ffi.new(f"{kind}2 *" if with_memfd else f"{kind} *")
        request.slot = region.slot
        request.flags = region.flags
        request.guest_phys_addr = gpa
        request.memory_size = size
        request.userspace_addr = region.host_address
        if with_memfd:
            request.guest_memfd = region.guest_memfd
            request.guest_memfd_offset = region.guest_memfd_offset
        try:
            self.ioctl(name, request)
        except KvmError as error:
            place = f"slot={region.slot} gpa={gpa:#x} size={size:#x}"
            hint = ""
            if error.errno == errno.EINVAL:
                hint = "it may lie above the guest's physical addresses; place it lower"
                if region.flags & c.KVM_MEM_LOG_DIRTY_PAGES:
                    hint += ", or leave out log_dirty"
            raise error.explained(place, hint) from None


_NO_LOG_PRIVATE = "KVM does not log writes to guest_memfd memory"
