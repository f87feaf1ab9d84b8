"""vCPUs of snapshots (native/src/reset_vcpu.c does the ioctls).

The TSC goes by its offset (KVM_VCPU_TSC_OFFSET) where the host has one: a TSC that is written as an
MSR within a second of where it would be is taken for an attempt to synchronise it and not put back
(arch/x86/kvm/x86.c, kvm_synchronize_tsc).
"""

from __future__ import annotations

import os

from pykvm._native import ffi, lib
from pykvm.errors import PykvmError
from pykvm.kvm import constants as c
from pykvm.kvm.errors import KvmError, Unsupported
from pykvm.kvm.msrs import MsrError
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.machine.machine import Machine

MSR_TSC, MSR_APIC_BASE, MSR_EFER = 0x10, 0x1B, 0xC0000080
MCG_CAP = 0x179
# Written by the ioctls of other parts; or constants of the machine; or (the wall clocks) such that
# writing them makes KVM write to guest memory.
_NOT = {
    MSR_TSC, MSR_APIC_BASE, MSR_EFER, 0x11, 0x4B564D00,
    0x8B, 0xCE, 0x10A, 0x345, *range(0x480, 0x494),
}  # fmt: skip
# Not in KVM_GET_MSR_INDEX_LIST although they are a vCPU's: the MTRRs (SDM vol. 3, 12.11).
_MTRRS = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF)
_STEPS = {
    lib.PYKVM_RS_REGS: "REGS", lib.PYKVM_RS_SREGS: "SREGS", lib.PYKVM_RS_XCRS: "XCRS",
    lib.PYKVM_RS_XSAVE: "XSAVE", lib.PYKVM_RS_LAPIC: "LAPIC", lib.PYKVM_RS_MSRS: "MSRS",
    lib.PYKVM_RS_TSC: "DEVICE_ATTR", lib.PYKVM_RS_MP_STATE: "MP_STATE",
    lib.PYKVM_RS_DEBUGREGS: "DEBUGREGS", lib.PYKVM_RS_EVENTS: "VCPU_EVENTS",
}  # fmt: skip


class VcpuKind:
    """What this host's vCPUs of one machine are made of, found out by trying."""

    def __init__(self, machine: Machine) -> None:
        vcpu = machine.vcpus[0]
        self.msrs = _settable(vcpu)
        self.has_lapic = machine.irqchip != "none"
        self.has_xcrs = bool(machine.vm.check_extension("KVM_CAP_XCRS"))
        self.xsave2 = bool(machine.vm.check_extension("KVM_CAP_XSAVE2"))
        self.tsc_offset = _has_tsc_offset(vcpu)


def _settable(vcpu: Vcpu) -> list[int]:
    """The MSRs that can be read and be written back."""
    wanted = [index for index in vcpu.vm.kvm.msr_index_list() if index not in _NOT]
    banks = 0
    try:
        banks = vcpu.get_msr(MCG_CAP) & 0xFF
    except PykvmError:
        pass
    wanted += [i for i in (*_MTRRS, *range(0x400, 0x400 + 4 * banks)) if i not in wanted]
    values: dict[int, int] = {}
    for index in wanted:
        try:
            values[index] = vcpu.get_msr(index)
        except MsrError:
            continue
    found = []
    for index, value in values.items():
        try:
            vcpu.set_msr(index, value)
        except MsrError:
            continue
        found.append(index)
    return found


def _has_tsc_offset(vcpu: Vcpu) -> bool:
    try:
        vcpu.set_tsc_offset(vcpu.get_tsc_offset() ^ 1 << 40)
        vcpu.set_tsc_offset(vcpu.get_tsc_offset() ^ 1 << 40)
        vcpu.get_msr(MSR_TSC)
    except (Unsupported, KvmError):
        return False
    return True


class VcpuImage:
    """All of one vCPU that a guest can change, as KVM's structures (`c`)."""

    def __init__(self, kind: VcpuKind, xsave_size: int) -> None:
        self.msrs: Any = ffi.new(
            "struct kvm_msrs *", {"nmsrs": len(kind.msrs), "entries": len(kind.msrs)}
        )
        for entry, index in zip(self.msrs.entries, kind.msrs, strict=True):
            entry.index = index
        self.xsave: Any = ffi.new("uint8_t[]", xsave_size)
        self.c: Any = ffi.new("struct pykvm_vcpu_image *")
        self.c.has_lapic, self.c.has_xcrs = kind.has_lapic, kind.has_xcrs
        self.c.tsc_offset, self.c.xsave2 = kind.tsc_offset, kind.xsave2
        self.c.msrs, self.c.xsave = self.msrs, self.xsave

    @classmethod
    def take(cls, vcpu: Vcpu, kind: VcpuKind) -> VcpuImage:
        """The vCPU now; nothing is pending. Raises `KvmError`."""
        vcpu.flush()
        image = cls(kind, vcpu.xsave_size)
        step: Any = ffi.new("uint32_t *")
        _check(lib.pykvm_image_take(vcpu._native, image.c, step), "GET", step[0], image)
        return image

    def put(self, vcpu: Vcpu) -> None:
        """The vCPU becomes this. Raises `KvmError` naming what KVM refused."""
        vcpu._detach_exit()
        step: Any = ffi.new("uint32_t *")
        _check(lib.pykvm_image_put(vcpu._native, self.c, step), "SET", step[0], self)


def abandon(vcpu: Vcpu) -> None:
    """Ends an exit that the vCPU still has to complete; its registers are replaced afterwards."""
    if vcpu.pending:
        vcpu._detach_exit()
        result = lib.pykvm_abandon(vcpu._native)
        if result < 0:
            raise KvmError("KVM_RUN", -result, f"vCPU {vcpu.id}", "its last exit does not end")
    else:
        vcpu._native.sync_dirty = 0


def _check(result: int, verb: str, step: int, image: VcpuImage) -> None:
    if result >= 0:
        return
    name = f"KVM_{verb}_{_STEPS.get(step & 0xFF, 'REGS')}"
    if step & 0xFF == lib.PYKVM_RS_MSRS:
        entry = image.msrs.entries[min(step >> 8, image.msrs.nmsrs - 1)]
        raise MsrError(name, entry.index, entry.data if verb == "SET" else None, step >> 8)
    raise KvmError(name, -result, "snapshot", os.strerror(-result))


__all__ = ["VcpuImage", "VcpuKind", "abandon", "c"]
