"""A vCPU as the lab sees it: registers by name, memory by page tables, what a host lacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from pykvm.arch.paging import paging_registers, walk
from pykvm.errors import PykvmError
from pykvm.lab.events import LabError
from pykvm.lab.explain.host import SOFTWARE, host_kind
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.machine import Machine

SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
CONTROL = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")
LONGEST_READ = 64 << 20
_PAGE = 4096
_LMA = 1 << 10


def code_bits(vcpu: Vcpu) -> int:
    """16, 32 or 64: how the CPU decodes at RIP (SDM vol. 3, 3.4.5)."""
    sregs = vcpu.sregs
    if sregs.efer & _LMA and sregs.cs.l:
        return 64
    return 32 if sregs.cs.db else 16


def linear_rip(vcpu: Vcpu) -> int:
    """The linear address of the next instruction."""
    return linear(vcpu, int(vcpu.regs.rip))


def linear(vcpu: Vcpu, rip: int) -> int:
    """The linear address of an offset in CS."""
    sregs = vcpu.sregs
    if sregs.efer & _LMA and sregs.cs.l:
        return rip
    return (int(sregs.cs.base) + rip) & 0xFFFFFFFF


def privilege(vcpu: Vcpu) -> int:
    """The CPL: 0 to 3."""
    return int(vcpu.sregs.ss.dpl) if vcpu.sregs.cr0 & 1 else 0


def registers(vcpu: Vcpu) -> dict[str, int]:
    """All that have names."""
    found = dict(vcpu.regs.as_dict())
    sregs = vcpu.sregs
    for name in SEGMENTS:
        found[name] = int(getattr(sregs, name).selector)
    for name in SEGMENTS:
        found[f"{name}_base"] = int(getattr(sregs, name).base)
    for name in CONTROL:
        found[name] = int(getattr(sregs, name))
    return found


def set_register(vcpu: Vcpu, name: str, value: int) -> None:
    """Sets one. In real mode a segment's base follows its selector."""
    name = name.lower()
    sregs = vcpu.sregs
    try:
        if name in vcpu.regs._fields:
            setattr(vcpu.regs, name, value)
        elif name in SEGMENTS:
            getattr(sregs, name).selector = value
            if not sregs.cr0 & 1:
                getattr(sregs, name).base = value << 4
        elif name.endswith("_base") and name[:-5] in SEGMENTS:
            getattr(sregs, name[:-5]).base = value
        elif name in CONTROL:
            setattr(sregs, name, value)
        else:
            raise LabError(f"there is no register {name!r}; see registers()")
    except (OverflowError, ValueError) as error:
        raise LabError(f"{name}={value:#x} is not possible: {error}") from None


def _paging(vcpu: Vcpu) -> dict[str, Any]:
    return dict(paging_registers(vcpu.sregs))


def translate(machine: Machine, vcpu: Vcpu, address: int) -> int | None:
    """Guest-physical for linear, by the page tables; None where nothing is mapped."""
    try:
        return walk(machine.memory, address, **_paging(vcpu)).gpa
    except PykvmError:
        return None


def read(
    machine: Machine,
    vcpu: Vcpu,
    address: int,
    length: int,
    hide: Callable[[int, bytes], bytes],
) -> bytes:
    """Memory by linear address, page by page."""
    if not 0 <= length <= LONGEST_READ:
        raise LabError(f"{length} bytes at once are not possible; read {LONGEST_READ} at most")
    parts = []
    for at, size in pages(address, length):
        gpa = translate(machine, vcpu, at)
        if gpa is None:
            raise LabError(f"nothing is mapped at {at:#x}")
        try:
            parts.append(hide(gpa, machine.memory.read(gpa, size)))
        except PykvmError as error:
            raise LabError(f"{at:#x} leads to guest-physical {gpa:#x}: {error}") from None
    return b"".join(parts)


def write(machine: Machine, vcpu: Vcpu, address: int, data: bytes) -> None:
    """Sets memory by linear address: all pages are looked up before the first byte is written."""
    places = []
    for at, size in pages(address, len(data)):
        gpa = translate(machine, vcpu, at)
        if gpa is None:
            raise LabError(f"nothing is mapped at {at:#x}")
        places.append((gpa, at - address, size))
    for gpa, start, size in places:
        machine.memory.write(gpa, data[start : start + size])


def pages(address: int, length: int) -> list[tuple[int, int]]:
    """The pieces of a range, none over a page's border."""
    found = []
    while length > 0:
        size = min(length, _PAGE - address % _PAGE)
        found.append((address, size))
        address, length = address + size, length - size
    return found


def stepping_fails(vcpu: Vcpu) -> str:
    """Why a single step of what comes next would not stop, or ""."""
    if host_kind() == SOFTWARE and privilege(vcpu) == 3 and code_bits(vcpu) == 64:
        return "64-bit ring 3 runs natively on this host and cannot be intercepted"
    return ""


@cache
def int3_fails() -> str:
    """Why an INT3 does not stop a guest on this host, or "": tried once, in a VM of its own.

    QEMU's software CPU checks the intercept of INT n for it and not that of #BP (APM vol. 2,
    15.12.4), so that a KVM in it never learns of the INT3.
    """
    from pykvm.kvm import Kvm, exits

    with Kvm() as kvm, kvm.create_vm() as vm:
        memory = vm.add_memory(0, 1 << 16)
        memory.view[3 * 4 : 3 * 4 + 4] = b"\x00\x05\x00\x00"  # vector 3 is at 0:500
        memory.view[0x500:0x501] = b"\xf4"  # hlt
        memory.view[0x1000:0x1001] = b"\xcc"
        vcpu = vm.create_vcpu(0)
        vcpu.sregs.cs.base = vcpu.sregs.cs.selector = 0
        vcpu.regs.rip, vcpu.regs.rsp = 0x1000, 0x8000
        vcpu.set_guest_debug(software_breakpoints=True)
        exit_ = vcpu.run()
        if isinstance(exit_, exits.DebugExit | exits.InternalErrorExit):
            return ""
    return "this host gives INT3 to the guest, whoever asks to see it"


def reserved_registers(machine: Machine) -> int:
    """Debug registers that `pykvm.machine.assist` may need beside the lab."""
    return 2 if host_kind() == SOFTWARE and machine.assist_mode != "off" else 0


def limits(machine: Machine, kind: str) -> str:
    """What a breakpoint of this kind cannot do on this host, or ""."""
    if host_kind() == SOFTWARE:
        return "not met in 64-bit ring 3, which this host cannot intercept"
    return ""


def data_watching_fails() -> str:
    """Why debug registers never see data on this host, or ""."""
    if host_kind() == SOFTWARE:
        return "this host's KVM emulates ring 0 and does not compare its data with debug registers"
    return ""
