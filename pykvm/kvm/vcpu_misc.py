"""Time, signals, nested state, prefaulting and dirty rings of a vCPU (KVM API,
4.55 KVM_SET_TSC_KHZ, KVM_KVMCLOCK_CTRL, 4.21 KVM_SET_SIGNAL_MASK, KVM_GET_NESTED_STATE,
KVM_PRE_FAULT_MEMORY; devices/vcpu.rst)."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.dirtyring import DirtyRing
from pykvm.kvm.errors import InvalidArgument, KvmError, Unsupported
from pykvm.kvm.vcpu_base import VcpuBase
from pykvm.kvm.vm_base import check_int
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HEADER = 8  # of struct kvm_nested_state: flags, format, size

_NSIG = 65  # signals are numbered below this (signal(7))


class VcpuMisc(VcpuBase):
    """What remains of a vCPU's ioctls."""

    _dirty_ring: DirtyRing | None = None

    # -- time ----------------------------------------------------------------------------------

    def get_tsc_khz(self) -> int:
        """The guest's TSC frequency in kHz."""
        try:
            return self.ioctl("KVM_GET_TSC_KHZ")
        except KvmError as error:
            raise error.explained(None, "the host's TSC is not stable") from None

    def set_tsc_khz(self, khz: int) -> None:
        """Sets the guest's TSC frequency in kHz; other than the host's needs TSC scaling."""
        check_int(khz, 32, "khz", "KVM_SET_TSC_KHZ", low=1)
        try:
            self.ioctl("KVM_SET_TSC_KHZ", khz)
        except KvmError as error:
            hint = "the frequency is out of the CPU's range"
            if not self.vm.check_extension("KVM_CAP_TSC_CONTROL"):
                hint = "this host cannot scale the TSC: at most its own frequency is possible"
            raise error.explained(f"khz={khz}", hint) from None

    tsc_khz = property(get_tsc_khz, set_tsc_khz, doc="The guest's TSC frequency in kHz.")

    def get_tsc_offset(self) -> int:
        """What is added to the host's TSC to give the guest's, modulo 2^64."""
        data = self.get_attribute(c.KVM_VCPU_TSC_CTRL, c.KVM_VCPU_TSC_OFFSET)
        return int.from_bytes(data, "little")

    def set_tsc_offset(self, offset: int) -> None:
        """Sets the TSC offset, modulo 2^64 (so negative values work).

        Raises `Unsupported` on a host that takes the offset and ignores it.
        """
        wanted = offset & 0xFFFFFFFFFFFFFFFF
        self.set_attribute(c.KVM_VCPU_TSC_CTRL, c.KVM_VCPU_TSC_OFFSET, wanted)
        if self.get_tsc_offset() != wanted:
            raise Unsupported(
                "KVM_SET_DEVICE_ATTR", f"offset={offset:#x}", "this host's KVM ignores TSC offsets"
            )

    tsc_offset = property(get_tsc_offset, set_tsc_offset, doc="Guest TSC minus host TSC.")

    def kvmclock_ctrl(self) -> None:
        """Tells a Linux guest that it was paused, so that its soft-lockup watchdog keeps still.

        Only if the guest has switched kvmclock on; `InvalidArgument` otherwise.
        """
        try:
            self.ioctl("KVM_KVMCLOCK_CTRL")
        except KvmError as error:
            if error.errno == errno.EINVAL:
                raise InvalidArgument(
                    "KVM_KVMCLOCK_CTRL", None, "the guest does not use kvmclock"
                ) from None
            raise

    # -- signals -------------------------------------------------------------------------------

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """The signals that are blocked while the guest runs; None: as in the thread.

        A signal that the thread blocks and this mask does not makes KVM_RUN fail with EINTR, and
        stays pending. Only for callers of the raw ioctl: `run()` goes on after signals other than
        its own, so it would spin; it is stopped by `kick()`.
        """
        if blocked is None:
            self.ioctl("KVM_SET_SIGNAL_MASK", ffi.NULL)
            return
        mask = 0
        for number in blocked:
            if not 1 <= number < _NSIG:
                raise InvalidArgument(
                    "KVM_SET_SIGNAL_MASK", f"signal {number}", f"there are 1 to {_NSIG - 1}"
                )
            mask |= 1 << (number - 1)
        request: Any = ffi.new("struct kvm_signal_mask *", {"len": 8, "sigset": 8})
        ffi.buffer(request.sigset, 8)[:] = mask.to_bytes(8, "little")
        self.ioctl("KVM_SET_SIGNAL_MASK", request)

    # -- nested virtualization -----------------------------------------------------------------

    def get_nested_state(self) -> bytes:
        """What the guest does as a hypervisor itself: an opaque block to keep and put back.

        Raises `Unsupported` where the host has no nested virtualization.
        """
        size = self._nested_size("KVM_GET_NESTED_STATE")
        block: Any = ffi.new("char[]", size)
        state: Any = ffi.cast("struct kvm_nested_state *", block)
        state.size = size
        self.ioctl("KVM_GET_NESTED_STATE", state)
        return bytes(ffi.buffer(block, state.size))

    def set_nested_state(self, state: Buffer) -> None:
        """Puts a block from `get_nested_state` back."""
        name = "KVM_SET_NESTED_STATE"
        self._nested_size(name)
        data = bytes(memoryview(state).cast("B"))
        size = int.from_bytes(data[4:8], "little")
        if len(data) < ffi.sizeof("struct kvm_nested_state") or size > len(data):
            raise InvalidArgument(
                name, f"{len(data)} bytes", f"the block says that it has {size}; it is cut off"
            )
        try:
            self.ioctl(name, ffi.cast("struct kvm_nested_state *", ffi.from_buffer(data)))
        except KvmError as error:
            raise error.explained(
                f"{len(data)} bytes", "set CPUID, MSRs and sregs as they were first"
            ) from None

    nested_state = property(get_nested_state, set_nested_state, doc="Nested state as bytes.")

    def _nested_size(self, name: str) -> int:
        size = self.vm.check_extension("KVM_CAP_NESTED_STATE")
        if not size:
            raise Unsupported(
                name, "nested state", "this host's KVM has no nested virtualization for guests"
            )
        return max(size, _HEADER)

    # -- memory --------------------------------------------------------------------------------

    def prefault(self, gpa: int, size: int) -> None:
        """Maps guest memory into the guest's second-level page tables before it is touched.

        Both in multiples of 4 KiB; guest-physical. Raises `Unsupported` without two-dimensional
        paging or before Linux 6.11.
        """
        name, what = "KVM_PRE_FAULT_MEMORY", f"gpa={gpa:#x} size={size:#x}"
        if not self.vm.check_extension("KVM_CAP_PRE_FAULT_MEMORY"):
            raise Unsupported(name, what, "this host's KVM lacks KVM_CAP_PRE_FAULT_MEMORY")
        if gpa < 0 or size <= 0 or gpa % c.PAGE_SIZE or size % c.PAGE_SIZE:
            raise InvalidArgument(name, what, "both must be multiples of 4 KiB")
        request: Any = ffi.new("struct kvm_pre_fault_memory *")
        request.gpa, request.size = gpa, size
        while request.size:
            try:
                self.ioctl(name, request)  # the kernel moves gpa and size on as it goes
            except KvmError as error:
                if error.errno == errno.EAGAIN:
                    continue
                hint = "no memory is there" if error.errno == errno.ENOENT else ""
                raise error.explained(f"gpa={request.gpa:#x}", hint) from None

    @property
    def dirty_ring(self) -> DirtyRing:
        """This vCPU's dirty ring. The VM needs `enable_dirty_ring`."""
        if self.closed:
            raise self._closed_error()
        if self._dirty_ring is None:
            if not self.vm.dirty_ring_size:
                raise InvalidArgument(
                    "mmap", "dirty ring", "call vm.enable_dirty_ring() before making the vCPU"
                )
            self._dirty_ring = DirtyRing(self.fd, self.vm.dirty_ring_size)
            self._at_close(self._dirty_ring.close)
        return self._dirty_ring

    def harvest_dirty_ring(self, limit: int | None = None) -> list[tuple[int, int]]:
        """Takes pages that this vCPU wrote: (memory slot, page number in the slot)."""
        return self.dirty_ring.harvest(limit)

    # -- task priority acceleration --------------------------------------------------------------

    def set_tpr_access_reporting(self, enabled: bool) -> None:
        """Makes accesses to the task priority register `TprAccessExit`s (KVM_CAP_VAPIC)."""
        request: Any = ffi.new("struct kvm_tpr_access_ctl *")
        request.enabled = enabled
        self.ioctl("KVM_TPR_ACCESS_REPORTING", request)

    def set_vapic_addr(self, gpa: int) -> None:
        """Where the guest's shadow of the task priority register lies; 0 for none."""
        self.ioctl("KVM_SET_VAPIC_ADDR", ffi.new("struct kvm_vapic_addr *", (gpa,)))
