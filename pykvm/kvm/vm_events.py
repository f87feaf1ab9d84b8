"""Event descriptors and batched writes: I/O that needs no exit to user space.

KVM API: KVM_IOEVENTFD, KVM_IRQFD, KVM_(UN)REGISTER_COALESCED_MMIO.
"""

from __future__ import annotations

import errno
import threading

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.errors import InvalidArgument, KvmError
from pykvm.kvm.fd import FileLike, fileno
from pykvm.kvm.vm_base import VmBase, check_int
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pykvm.kvm.vcpu import Vcpu

_RING_ENTRIES = (c.PAGE_SIZE - ffi.sizeof("struct kvm_coalesced_mmio_ring")) // ffi.sizeof(
    "struct kvm_coalesced_mmio"
)


class CoalescedWrite(NamedTuple):
    """A write that KVM kept in the ring. `address`: a port or a guest-physical address."""

    is_pio: bool
    address: int
    data: bytes

    @property
    def value(self) -> int:
        """The written number (little endian)."""
        return int.from_bytes(self.data, "little")


class VmEvents(VmBase):
    """irqfd, ioeventfd and coalesced I/O of a VM."""

    _coalesced: list[tuple[bool, int, int]]
    _coalesced_lock: threading.Lock

    # -- irqfd ---------------------------------------------------------------------------------

    def assign_irqfd(self, fd: FileLike, gsi: int, resample_fd: FileLike | None = None) -> None:
        """Makes writes to the eventfd `fd` raise the interrupt `gsi`.

        With `resample_fd` (another eventfd) the interrupt is level-triggered: it stays up until
        the guest's EOI, which lowers it and signals `resample_fd` (needs the in-kernel chips).
        """
        self._irqfd(fd, gsi, 0, resample_fd)

    def deassign_irqfd(self, fd: FileLike, gsi: int) -> None:
        """Undoes `assign_irqfd`; returns when no interrupt is on its way any more."""
        self._irqfd(fd, gsi, c.KVM_IRQFD_FLAG_DEASSIGN, None)

    def _irqfd(self, fd: FileLike, gsi: int, flags: int, resample_fd: FileLike | None) -> None:
        what = f"fd={fileno(fd)} gsi={gsi}"
        if self._irqchip == "none":
            raise InvalidArgument(
                "KVM_IRQFD",
                what,
                "the VM has no in-kernel interrupt controller; call create_irqchip() first",
            )
        request: Any = ffi.new("struct kvm_irqfd *")
        request.fd = check_int(fileno(fd), 31, "fd", "KVM_IRQFD")
        request.gsi = check_int(gsi, 32, "gsi", "KVM_IRQFD")
        request.flags = flags
        if resample_fd is not None:
            self._need("KVM_CAP_IRQFD_RESAMPLE", "KVM_IRQFD", what)
            request.flags |= c.KVM_IRQFD_FLAG_RESAMPLE
            request.resamplefd = check_int(fileno(resample_fd), 31, "resample_fd", "KVM_IRQFD")
        try:
            self.ioctl("KVM_IRQFD", request)
        except KvmError as error:
            raise error.explained(what, _IRQFD_HINTS.get(error.errno or 0, "")) from None

    # -- ioeventfd -----------------------------------------------------------------------------

    def assign_ioeventfd(
        self,
        fd: FileLike,
        address: int,
        length: int = 0,
        *,
        pio: bool = False,
        datamatch: int | None = None,
    ) -> None:
        """Makes guest writes to `address` signal the eventfd `fd`, without an exit.

        `address`: a port with `pio`, else guest-physical. `length`: 1, 2, 4 or 8 bytes; 0 means a
        write of any length. `datamatch`: only writes of this value (not with length 0).
        """
        self._ioeventfd(fd, address, length, pio, datamatch, 0)

    def deassign_ioeventfd(
        self,
        fd: FileLike,
        address: int,
        length: int = 0,
        *,
        pio: bool = False,
        datamatch: int | None = None,
    ) -> None:
        """Undoes `assign_ioeventfd` with the same arguments."""
        self._ioeventfd(fd, address, length, pio, datamatch, c.KVM_IOEVENTFD_FLAG_DEASSIGN)

    def _ioeventfd(
        self, fd: FileLike, address: int, length: int, pio: bool, datamatch: int | None, flags: int
    ) -> None:
        name = "KVM_IOEVENTFD"
        what = f"{'port' if pio else 'gpa'}={address:#x} length={length}"
        if length not in (0, 1, 2, 4, 8):
            raise InvalidArgument(name, what, "the length must be 0 (any), 1, 2, 4 or 8 bytes")
        check_int(address, 16 if pio else 64, "port" if pio else "gpa", name)
        if address + length > 1 << (16 if pio else 64):
            raise InvalidArgument(name, what, "it reaches past the last address")
        if length == 0 and datamatch is None and not flags:
            self._need("KVM_CAP_IOEVENTFD_ANY_LENGTH", name, what)
        request: Any = ffi.new("struct kvm_ioeventfd *")
        if datamatch is not None:
            if length == 0:
                raise InvalidArgument(name, what, "datamatch needs a length; any length has none")
            check_int(datamatch, length * 8, "datamatch", name)
            request.datamatch = datamatch
            flags |= c.KVM_IOEVENTFD_FLAG_DATAMATCH
        request.addr = address
        request.len = length
        request.fd = check_int(fileno(fd), 31, "fd", name)
        request.flags = flags | (c.KVM_IOEVENTFD_FLAG_PIO if pio else 0)
        try:
            self.ioctl(name, request)
        except KvmError as error:
            raise error.explained(what, _IOEVENTFD_HINTS.get(error.errno or 0, "")) from None

    # -- coalesced writes ------------------------------------------------------------------------

    @property
    def coalesced_page(self) -> int:
        """Page number of the coalesced ring in a vCPU's mapping; 0 if the host has none."""
        return self.check_extension("KVM_CAP_COALESCED_MMIO")

    @property
    def coalesced_zones(self) -> list[tuple[bool, int, int]]:
        """The zones as (is_pio, address, size)."""
        return list(self._coalesced)

    def register_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        """Makes KVM keep guest writes to [address, address + size) in a ring, without an exit.

        They come back, in order, from `drain_coalesced()` before the exit that follows them; a
        full ring lets writes exit as usual. `address`: a port with `pio`, else guest-physical.
        """
        name = "KVM_REGISTER_COALESCED_MMIO"
        what = f"{'port' if pio else 'gpa'}={address:#x} size={size:#x}"
        self._need(f"KVM_CAP_COALESCED_{'PIO' if pio else 'MMIO'}", name, what)
        top = 1 << (16 if pio else 64)
        if size <= 0 or size >= 1 << 32 or address < 0 or address + size > top:
            raise InvalidArgument(
                name, what, "the zone must be non-empty and below the last address"
            )
        if (pio, address, size) in self._coalesced:
            raise InvalidArgument(name, what, "the zone is registered already", errno.EEXIST)
        try:
            self._zone_ioctl(name, address, size, pio)
        except KvmError as error:
            hint = "KVM has no room for more zones" if error.errno == errno.ENOSPC else ""
            raise error.explained(what, hint) from None
        self._coalesced.append((pio, address, size))
        for vcpu in self.vcpus:
            vcpu._use_coalesced_ring()

    def unregister_coalesced(self, address: int, size: int, *, pio: bool = False) -> None:
        """Undoes `register_coalesced` with the same arguments. Drain the ring first."""
        name = "KVM_UNREGISTER_COALESCED_MMIO"
        if (pio, address, size) not in self._coalesced:
            raise InvalidArgument(
                name,
                f"{'port' if pio else 'gpa'}={address:#x} size={size:#x}",
                "no such zone is registered",
                errno.ENOENT,
            )
        self._zone_ioctl(name, address, size, pio)
        self._coalesced.remove((pio, address, size))

    def _zone_ioctl(self, name: str, address: int, size: int, pio: bool) -> None:
        zone: Any = ffi.new("struct kvm_coalesced_mmio_zone *")
        zone.addr = address
        zone.size = size
        zone.pio = pio
        self.ioctl(name, zone)

    def drain_coalesced(self) -> list[CoalescedWrite]:
        """Takes the writes out of the ring, oldest first. Any thread; empty without zones."""
        vcpu = next(iter(self.vcpus), None)
        if not self._coalesced or vcpu is None:
            return []
        found: list[CoalescedWrite] = []
        with self._coalesced_lock:
            ring = _ring_of(vcpu)
            if ring is None:
                return found
            first = ring.first
            # Indices and lengths come from shared memory: keep them in range whatever they say.
            while first < _RING_ENTRIES and first != ring.last and len(found) < _RING_ENTRIES:
                entry = ring.coalesced_mmio[first]
                data = bytes(ffi.buffer(entry.data))[: entry.len]
                found.append(CoalescedWrite(bool(entry.pio), entry.phys_addr, data))
                first = (first + 1) % _RING_ENTRIES
                ring.first = first
        return found


def _ring_of(vcpu: Vcpu) -> Any:
    native = vcpu._native
    return None if native is None or native.coalesced == ffi.NULL else native.coalesced


_IRQFD_HINTS = {
    errno.EBUSY: "this eventfd raises an interrupt of a VM already",
    errno.EINVAL: "the GSI is out of range, or resampling is not possible with this irqchip",
    errno.EBADF: "it is not an eventfd",
}
_IOEVENTFD_HINTS = {
    errno.EEXIST: "an ioeventfd is at this address already, or none can tell the two apart",
    errno.ENOENT: "no such ioeventfd was assigned",
    errno.EBADF: "it is not an eventfd",
    errno.ENOSPC: "the VM has too many I/O devices in the kernel",
}
