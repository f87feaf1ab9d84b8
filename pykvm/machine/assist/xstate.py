"""The vCPU's floating-point and vector state: XSAVE areas, XCR0 and PKRU."""

from __future__ import annotations

from pykvm.kvm.errors import KvmError
from pykvm.machine.assist.cpu import Refused
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu

_PKRU = 9  # its state component
_XSTATE_BV = slice(512, 520)


def xcr0(vcpu: Vcpu) -> int:
    """XCR0; 1 (x87 alone) where the guest has no XSAVE."""
    try:
        return vcpu.get_xcrs().get(0, 1)
    except KvmError:
        return 1


def _pkru_offset(vcpu: Vcpu) -> int:
    for entry in vcpu.vm.kvm.supported_cpuid():
        if entry.function == 0xD and entry.index == _PKRU and entry.eax:
            return int(entry.ebx)
    raise Refused("this host has no protection keys")


def read_pkru(vcpu: Vcpu) -> int:
    """PKRU; 0 while it is in its initial state."""
    area = vcpu.get_xsave()
    if not int.from_bytes(area[_XSTATE_BV], "little") >> _PKRU & 1:
        return 0
    at = _pkru_offset(vcpu)
    return int.from_bytes(area[at : at + 4], "little")


def write_pkru(vcpu: Vcpu, value: int) -> None:
    """Sets PKRU."""
    at = _pkru_offset(vcpu)
    area = bytearray(vcpu.get_xsave())
    present = int.from_bytes(area[_XSTATE_BV], "little") | 1 << _PKRU
    area[_XSTATE_BV] = present.to_bytes(8, "little")
    area[at : at + 4] = value.to_bytes(4, "little")
    vcpu.set_xsave(area)
