"""What the parts of `Vm` share: capabilities and the state they all look at."""

from __future__ import annotations

import errno

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.errors import InvalidArgument, KvmError, Unsupported
from pykvm.kvm.fd import FdOwner
from pykvm.kvm.region import MemoryRegion
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm.system import Kvm
    from pykvm.kvm.vcpu import Vcpu


class CapabilityOwner(FdOwner):
    """A descriptor that takes KVM_ENABLE_CAP: a VM or a vCPU."""

    def enable_cap(self, capability: str | int, *args: int, flags: int = 0) -> int:
        """Switches a capability on, with up to four 64-bit arguments (KVM API, 4.37, 6, 7).

        Returns what the kernel returns, usually 0. Raises `KvmError` naming the capability.
        """
        number = c.capability(capability)
        what = f"{c.capability_name(number)}({', '.join(map(hex, args))})"
        if len(args) > 4:
            raise InvalidArgument("KVM_ENABLE_CAP", what, "a capability takes at most 4 arguments")
        request: Any = ffi.new("struct kvm_enable_cap *")
        request.cap = number
        request.flags = flags
        for i, value in enumerate(args):
            if not 0 <= value < 1 << 64:
                raise InvalidArgument("KVM_ENABLE_CAP", what, f"argument {i} does not fit 64 bits")
            request.args[i] = value
        try:
            return self.ioctl("KVM_ENABLE_CAP", request)
        except KvmError as error:
            raise error.explained(
                what,
                f"{self._name} does not have it, takes it earlier, or not with these arguments",
            ) from None


class VmBase(CapabilityOwner):
    """State of a `Vm` that several of its parts use."""

    kvm: Kvm
    type: int
    _vcpus: dict[int, Vcpu]  # also closed ones: the kernel keeps their ids
    _regions: list[MemoryRegion]
    _irqchip: str  # "none", "kernel", "split"

    @property
    def vcpus(self) -> list[Vcpu]:
        """The open vCPUs, in the order they were made."""
        return [vcpu for vcpu in self._vcpus.values() if not vcpu.closed]

    def check_extension(self, extension: str | int) -> int:
        """What this VM says about a capability: as `Kvm.check_extension`, for this kind of VM."""
        return self.ioctl("KVM_CHECK_EXTENSION", c.capability(extension))

    def _need(self, extension: str, ioctl: str, what: str) -> int:
        """The capability's value; raises `Unsupported` if the host lacks it."""
        value = self.check_extension(extension)
        if not value:
            raise Unsupported(ioctl, what, f"this host's KVM lacks {extension}")
        return value

    def _need_no_vcpus(self, ioctl: str, what: str) -> None:
        if self._vcpus:
            raise InvalidArgument(
                ioctl,
                what,
                f"the VM has {len(self._vcpus)} vCPUs already; do this before the first one",
                errno.EBUSY,
            )

    def _need_stopped(self, ioctl: str, what: str | None) -> None:
        """Refuses while a vCPU is inside KVM_RUN in another thread."""
        for vcpu in self.vcpus:
            native = vcpu._native
            if native is not None and native.tid:
                raise InvalidArgument(
                    ioctl,
                    what,
                    f"vCPU {vcpu.id} is running in another thread; stop it first: vcpu.kick()",
                    errno.EBUSY,
                )


def check_int(
    value: int, bits: int, name: str, ioctl: str, *, low: int = 0, high: int | None = None
) -> int:
    """`value` if it lies in [low, high] (2**bits - 1 unless given); else `InvalidArgument`."""
    top = (1 << bits) - 1 if high is None else high
    if not low <= value <= top:
        raise InvalidArgument(ioctl, f"{name}={value:#x}", f"it must be in {low:#x}..{top:#x}")
    return value
