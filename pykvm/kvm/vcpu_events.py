"""Interrupts and exceptions of a vCPU: pending ones, and making them (KVM API, 4.16
KVM_INTERRUPT, 4.31 KVM_GET_VCPU_EVENTS, KVM_NMI, KVM_SMI, KVM_X86_SET_MCE)."""

from __future__ import annotations

import errno

from pykvm._native import ffi
from pykvm.kvm.errors import KvmError, Unsupported
from pykvm.kvm.record import Record
from pykvm.kvm.vcpu_base import VcpuBase
from pykvm.kvm.vm_base import check_int
from pykvm.typed import Any

_GROUPS = ("exception", "interrupt", "nmi", "smi", "triple_fault")
_ALONE = ("sipi_vector", "flags", "exception_has_payload", "exception_payload")


class VcpuEvents(Record):
    """Pending and injected events (`struct kvm_vcpu_events`), flattened.

    `flags` (`constants.KVM_VCPUEVENT_VALID_*`): which of the optional parts count when set.
    `interrupt_shadow`: `constants.KVM_X86_SHADOW_INT_*`.
    """

    exception_injected: int = 0
    exception_nr: int = 0
    exception_has_error_code: int = 0
    exception_pending: int = 0
    exception_error_code: int = 0
    interrupt_injected: int = 0
    interrupt_nr: int = 0
    interrupt_soft: int = 0
    interrupt_shadow: int = 0
    nmi_injected: int = 0
    nmi_pending: int = 0
    nmi_masked: int = 0
    sipi_vector: int = 0
    flags: int = 0
    smi_smm: int = 0
    smi_pending: int = 0
    smi_smm_inside_nmi: int = 0
    smi_latched_init: int = 0
    triple_fault_pending: int = 0
    exception_has_payload: int = 0
    exception_payload: int = 0

    @classmethod
    def from_c(cls, struct: Any) -> VcpuEvents:
        """The record with the values of the C structure."""
        return cls(**{name: getattr(*_place(struct, name)) for name in cls._fields})

    def to_c(self, struct: Any) -> None:
        """Copies the fields into the C structure."""
        for name in self._fields:
            target, member = _place(struct, name)
            try:
                setattr(target, member, getattr(self, name))
            except OverflowError as error:
                raise ValueError(f"VcpuEvents.{name}: {error}") from None


def _place(struct: Any, name: str) -> tuple[Any, str]:
    """Where a flattened field lies: (structure, member)."""
    if name not in _ALONE:
        for group in _GROUPS:
            if name.startswith(group + "_"):
                return getattr(struct, group), name[len(group) + 1 :]
    return struct, name


class MachineCheck(Record):
    """A machine check to deliver (`struct kvm_x86_mce`; SDM vol. 3, 16.3)."""

    status: int
    addr: int = 0
    misc: int = 0
    mcg_status: int = 0
    bank: int = 0


class VcpuEventsPart(VcpuBase):
    """Pending events, interrupts, NMIs, SMIs and machine checks."""

    def get_vcpu_events(self) -> VcpuEvents:
        """A copy of the pending and injected events."""
        data: Any = ffi.new("struct kvm_vcpu_events *")
        self.ioctl("KVM_GET_VCPU_EVENTS", data)
        return VcpuEvents.from_c(data)

    def set_vcpu_events(self, state: VcpuEvents) -> None:
        """Sets pending and injected events."""
        data: Any = ffi.new("struct kvm_vcpu_events *")
        state.to_c(data)
        try:
            self.ioctl("KVM_SET_VCPU_EVENTS", data)
        except KvmError as error:
            raise error.explained(
                f"flags={state.flags:#x}",
                "a flag needs its capability switched on (exception payload, triple fault, SMM), "
                "or an exception number is not one of 0 to 31",
            ) from None

    events = property(get_vcpu_events, set_vcpu_events, doc="Pending events: a copy.")

    def interrupt(self, vector: int) -> None:
        """Queues an external interrupt, as a PIC in user space does: no irqchip, or a split one.

        The guest must be able to take it: see `ready_for_interrupt`, `request_interrupt_window`.
        A second one before the first is taken replaces it, or is refused with a split irqchip.
        """
        check_int(vector, 8, "vector", "KVM_INTERRUPT")
        try:
            self.ioctl("KVM_INTERRUPT", ffi.new("struct kvm_interrupt *", (vector,)))
        except KvmError as error:
            hints = {
                errno.ENXIO: "the PIC is in the kernel; use vm.irq_line or vm.signal_msi",
                errno.EEXIST: "an interrupt is queued already; run the vCPU first",
            }
            raise error.explained(f"vector={vector:#x}", hints.get(error.errno or 0, "")) from None

    def nmi(self) -> None:
        """Queues a non-maskable interrupt."""
        self.ioctl("KVM_NMI")

    def smi(self) -> None:
        """Queues a system management interrupt."""
        if not self.vm.check_extension("KVM_CAP_X86_SMM"):
            raise Unsupported("KVM_SMI", None, "this host's KVM lacks KVM_CAP_X86_SMM")
        self.ioctl("KVM_SMI")

    @property
    def ready_for_interrupt(self) -> bool:
        """Whether, at the last exit, `interrupt()` would have been taken at once."""
        return bool(self._shared().ready_for_interrupt_injection)

    @property
    def interrupts_enabled(self) -> bool:
        """The guest's interrupt flag at the last exit."""
        return bool(self._shared().if_flag)

    @property
    def request_interrupt_window(self) -> bool:
        """Whether to exit (`IrqWindowOpenExit`) as soon as an interrupt could be taken."""
        return bool(self._shared().request_interrupt_window)

    @request_interrupt_window.setter
    def request_interrupt_window(self, wanted: bool) -> None:
        self._shared().request_interrupt_window = wanted

    def _shared(self) -> Any:
        if self.closed:
            raise self._closed_error()
        return self._run

    # -- machine checks --------------------------------------------------------------------------

    def setup_mce(self, mcg_cap: int) -> None:
        """Sets MCG_CAP: `Kvm.mce_cap_supported()` bits, and the number of banks in bits 0-7."""
        try:
            self.ioctl("KVM_X86_SETUP_MCE", ffi.new("__u64 *", mcg_cap))
        except KvmError as error:
            raise error.explained(
                f"mcg_cap={mcg_cap:#x}",
                "it needs 1 to 32 banks in the low byte; the other bits of Kvm.mce_cap_supported()",
            ) from None

    def inject_mce(self, check: MachineCheck) -> None:
        """Delivers a machine check (#MC, or a logged corrected error)."""
        data: Any = ffi.new("struct kvm_x86_mce *")
        check.to_c(data)
        try:
            self.ioctl("KVM_X86_SET_MCE", data)
        except KvmError as error:
            raise error.explained(
                f"bank={check.bank} status={check.status:#x}",
                "the bank must exist (setup_mce) and the status be valid (bit 63)",
            ) from None
