"""`KvmDevice`: a device that the kernel emulates for a VM (KVM API, KVM_CREATE_DEVICE)."""

from __future__ import annotations

from pykvm.kvm.attributes import AttributeOwner
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm.vm import Vm


class KvmDevice(AttributeOwner):
    """An in-kernel device; made by `Vm.create_device(type)`, driven by its attributes.

    On x86 the one type is `constants.KVM_DEV_TYPE_VFIO`, which ties VFIO groups to the VM.
    """

    def __init__(self, vm: Vm, fd: int, device_type: int) -> None:
        super().__init__(fd, f"this KVM device of type {device_type}")
        self.vm = vm
        self.type = device_type
