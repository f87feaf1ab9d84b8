"""`Vm`: one virtual machine (KVM API, "vm ioctls"). Its parts are in the vm_*.py beside this."""

from __future__ import annotations

import errno
import threading

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.errors import InvalidArgument, KvmError, Unsupported
from pykvm.kvm.rules import Rules
from pykvm.kvm.statsfd import StatsOwner
from pykvm.kvm.vm_dirty import VmDirty
from pykvm.kvm.vm_events import VmEvents
from pykvm.kvm.vm_irq import VmIrq
from pykvm.kvm.vm_memory import VmMemory
from pykvm.kvm.vm_policy import VmPolicy
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm.device import KvmDevice
    from pykvm.kvm.system import Kvm
    from pykvm.kvm.vcpu import Vcpu


class Vm(VmMemory, VmDirty, VmIrq, VmEvents, VmPolicy, StatsOwner):
    """A virtual machine; made by `Kvm.create_vm()`.

    Closing it closes its vCPUs, devices and the memory that it made. Host memory that views still
    refer to stays mapped until the last of them is gone.
    """

    def __init__(self, kvm: Kvm, fd: int, vm_type: int) -> None:
        super().__init__(fd, "this VM")
        self.kvm = kvm
        self.type = vm_type
        self.rules = Rules()
        self._vcpus = {}
        self._devices: list[KvmDevice] = []
        self._regions = []
        self._owned = set()
        self._memslots = 0
        self._irqchip = "none"
        self._pit = False
        self._routes = []
        self._routed = set()
        self._coalesced = []
        self._coalesced_lock = threading.Lock()
        self._dirty_ring_size = 0
        self._sync_supported = -1
        self._run_size = kvm.vcpu_mmap_size  # asked now: the Kvm may be closed later

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """A new vCPU. `vcpu_id` is its APIC id; each can be used once in a VM's life (4.7).

        Raises `InvalidArgument` for an id that is used or too high, `KvmError`.
        """
        from pykvm.kvm.vcpu import Vcpu

        name, what = "KVM_CREATE_VCPU", f"vcpu_id={vcpu_id}"
        if vcpu_id in self._vcpus:
            raise InvalidArgument(name, what, "the VM has had a vCPU of this id", errno.EEXIST)
        limit = self.check_extension("KVM_CAP_MAX_VCPU_ID") or 4
        if not 0 <= vcpu_id < limit:
            raise InvalidArgument(name, what, f"it must be from 0 to {limit - 1}")
        try:
            fd = self.ioctl(name, vcpu_id)
        except KvmError as error:
            most = self.check_extension("KVM_CAP_MAX_VCPUS")
            hint = "the VM has had a vCPU of this id" if error.errno == errno.EEXIST else ""
            if len(self._vcpus) >= most:
                hint = f"a VM has at most {most} vCPUs"
            raise error.explained(what, hint) from None
        if self._sync_supported < 0:
            self._sync_supported = self.check_extension("KVM_CAP_SYNC_REGS")
        vcpu = Vcpu(self, vcpu_id, fd, self._run_size, self._sync_supported)
        self._vcpus[vcpu_id] = vcpu
        if self._coalesced:
            vcpu._use_coalesced_ring()
        return vcpu

    def create_device(self, device_type: int, *, test: bool = False) -> KvmDevice | None:
        """A new in-kernel device; with `test`, only asks whether it could be made."""
        name, what = "KVM_CREATE_DEVICE", f"device_type={device_type}"
        request: Any = ffi.new("struct kvm_create_device *")
        request.type = device_type
        request.flags = c.KVM_CREATE_DEVICE_TEST if test else 0
        try:
            self.ioctl(name, request)
        except KvmError as error:
            if error.errno == errno.ENODEV:
                raise Unsupported(
                    name, what, "this host's kernel has no such device", errno.ENODEV
                ) from None
            raise error.explained(what) from None
        if test:
            return None
        from pykvm.kvm.device import KvmDevice

        device = KvmDevice(self, request.fd, device_type)
        self._devices.append(device)
        return device

    def __repr__(self) -> str:
        if self.closed:
            return "<Vm closed>"
        return f"<Vm fd={self._fd} vcpus={len(self.vcpus)} regions={len(self._regions)}>"

    def _before_close(self) -> None:
        self._need_stopped("close", None)
        for vcpu in self.vcpus:
            vcpu.close()
        for device in self._devices:
            device.close()
        self._close_stats()

    def close(self) -> None:
        """Closes the VM, its vCPUs and its devices. Closing twice is harmless.

        Raises `InvalidArgument`, and closes nothing, while a vCPU runs in another thread.
        """
        if self.closed:
            return
        super().close()
        self._vcpus.clear()
        self._devices.clear()
        self.rules.close()
        # Only now, with the VM gone, has KVM let go of the memory.
        for region in self._regions:
            region.slot = None
            if id(region) in self._owned:
                region.close()
        self._regions = []
        self._owned.clear()
