"""What the parts of `VcpuState` share."""

from __future__ import annotations

from pykvm._native import ffi
from pykvm.kvm.attributes import AttributeOwner
from pykvm.kvm.record import Record
from pykvm.kvm.statsfd import StatsOwner
from pykvm.kvm.vm_base import CapabilityOwner
from pykvm.typed import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pykvm.kvm.vm import Vm

_R = TypeVar("_R", bound=Record)


class VcpuBase(CapabilityOwner, AttributeOwner, StatsOwner):
    """A vCPU's descriptor. `Vcpu` adds registers, `kvm_run` and running."""

    id: int
    vm: Vm
    _run: Any  # struct kvm_run *

    def _get(self, ioctl: str, record: type[_R], structure: str) -> _R:
        """A record read by a KVM_GET_* ioctl of that structure."""
        data: Any = ffi.new(f"struct {structure} *")
        self.ioctl(ioctl, data)
        return record.from_c(data)

    def _set(self, ioctl: str, record: Record, structure: str) -> None:
        """Writes a record with a KVM_SET_* ioctl."""
        data: Any = ffi.new(f"struct {structure} *")
        record.to_c(data)
        self.ioctl(ioctl, data)
