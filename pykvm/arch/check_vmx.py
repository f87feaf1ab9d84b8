"""VMX's checks on the guest state at VM entry (SDM vol. 3C 27.3.1), as far as KVM leaves them open.

Fields that KVM computes itself (CR0.NE, CR4.VMXE, the unusable bit of segments that are not
present) are taken as KVM sets them. A state that fails here gives `KVM_EXIT_FAIL_ENTRY` with reason
0x80000021 on Intel CPUs, where KVM does not fall back to emulating it.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.arch.bits import CR0, CR4, EFER, RFLAGS
from pykvm.arch.limits import CpuLimits
from pykvm.arch.problem import Report
from pykvm.arch.state import CpuState, SegmentState

_CONTROL = "SDM vol. 3C 27.3.1.1"
_SEGMENTS = "SDM vol. 3C 27.3.1.2"
_TABLES = "SDM vol. 3C 27.3.1.3"
_FLAGS = "SDM vol. 3C 27.3.1.4"

_EFER_VMX = int(EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE)
_RFLAGS_RESERVED = ~((1 << 22) - 1) | 1 << 15 | 1 << 5 | 1 << 3
_CANONICAL_MSRS = {
    0x175: "IA32_SYSENTER_ESP",
    0x176: "IA32_SYSENTER_EIP",
    0xC0000100: "FS base",
    0xC0000101: "GS base",
}


def check(cpu: CpuState, limits: CpuLimits, report: Report) -> None:
    """Add what VMX would refuse."""
    vm86 = bool(cpu.regs.get("rflags", 0) & RFLAGS.VM)
    _control(cpu, limits, report)
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        segment = cpu.segments[name]
        if vm86:
            _vm86_segment(name, segment, report)
        else:
            _code_or_data(cpu, name, segment, limits, report)
        _base(cpu, name, segment, report)
    _task_register(cpu, report)
    _ldt(cpu, report)
    _descriptor_tables(cpu, report)
    _rip_and_rflags(cpu, report)


def is_canonical(address: int, cr4: int) -> bool:
    """The upper bits of a linear address repeat its top bit (48 bits, 57 with CR4.LA57)."""
    bits = 57 if cr4 & CR4.LA57 else 48
    top = address >> (bits - 1)
    return top == 0 or top == (1 << 65 - bits) - 1


def _unusable(segment: SegmentState) -> bool:
    # KVM turns a segment that is not present into an unusable one (vmx_segment_access_rights()).
    return bool(segment.unusable) or not segment.present


def _control(cpu: CpuState, limits: CpuLimits, report: Report) -> None:
    def bad(field: str, value: int, why: str) -> None:
        report.add("vmx", field, value, why, _CONTROL)

    if cpu.cr4 & CR4.CET and not cpu.cr0 & CR0.WP:
        bad("cr0", cpu.cr0, "CR4.CET needs CR0.WP")
    if cpu.cr4 & CR4.PCIDE and not cpu.efer & EFER.LMA:
        bad("cr4", cpu.cr4, "PCIDE is allowed only in long mode")
    # In long mode KVM itself refuses this.
    if not cpu.efer & EFER.LMA and cpu.cr3 >> limits.maxphyaddr:
        why = f"bits beyond the {limits.maxphyaddr} bits of an address are set"
        bad("cr3", cpu.cr3, why)
    if unknown := cpu.efer & ~_EFER_VMX & limits.efer:
        bad("efer", cpu.efer, f"{EFER(unknown)} does not exist on Intel CPUs")
    for number, name in _CANONICAL_MSRS.items():
        value = cpu.msrs.get(number, 0)
        if not is_canonical(value, cpu.cr4):
            bad(f"msrs[{number:#x}]", value, f"{name} must be canonical")
    pat = cpu.msrs.get(0x277, 0)
    if any(pat >> 8 * n & 0xFF not in (0, 1, 4, 5, 6, 7) for n in range(8)):
        bad("msrs[0x277]", pat, "IA32_PAT holds a memory type other than 0, 1, 4, 5, 6, 7")


def _vm86_segment(name: str, segment: SegmentState, report: Report) -> None:
    def bad(part: str, value: int, why: str) -> None:
        report.add("vmx", f"{name}.{part}", value, why, _SEGMENTS)

    if segment.base != segment.selector << 4:
        bad("base", segment.base, "in virtual-8086 mode the base is the selector times 16")
    if segment.limit != 0xFFFF:
        bad("limit", segment.limit, "in virtual-8086 mode the limit is 0xffff")
    if (segment.type, segment.s, segment.dpl, segment.present) != (3, 1, 3, 1) or segment.unusable:
        bad("type", segment.type, "in virtual-8086 mode segments are present data of DPL 3, type 3")


def _code_or_data(
    cpu: CpuState, name: str, segment: SegmentState, limits: CpuLimits, report: Report
) -> None:
    def bad(part: str, why: str) -> None:
        report.add("vmx", f"{name}.{part}", getattr(segment, part), why, _SEGMENTS)

    if _unusable(segment):
        if name == "cs":
            report.add(
                "vmx", "cs.present", segment.present, "CS must be present and usable", _SEGMENTS
            )
        return
    if not segment.s:
        bad("s", "must be 1: not a system segment")
    _limit(name, segment, report)
    loose = limits.unrestricted_guest
    if name == "cs":
        _code(cpu, segment, loose, bad)
        return
    if name == "ss":
        # KVM sets the accessed bit itself where it lets VMX run real mode.
        if (segment.type | 1 if loose else segment.type) not in (3, 7):
            bad("type", "the stack needs a writable, accessed data segment (type 3 or 7)")
        if not cpu.cr0 & CR0.PE and segment.dpl:
            bad("dpl", "must be 0 in real mode")
        if not loose and segment.dpl != segment.selector & 3:
            bad("dpl", "must be the selector's RPL")
        return
    if not segment.type & 1 and not loose:
        bad("type", "the accessed bit must be set")
    if segment.type & 8 and not segment.type & 2:
        bad("type", "a code segment in a data segment register must be readable")
    if not loose and segment.type <= 11 and segment.dpl < segment.selector & 3:
        bad("dpl", "must not be below the selector's RPL")


def _code(cpu: CpuState, cs: SegmentState, loose: bool, bad: Callable[[str, str], None]) -> None:
    ss = cpu.segments["ss"]
    ss_dpl = ss.dpl
    kind = cs.type | 1 if loose else cs.type
    if kind not in (9, 11, 13, 15) and not (loose and kind == 3):
        bad("type", "CS needs an accessed code segment (type 9, 11, 13 or 15)")
    if kind == 3 and cs.dpl:
        bad("dpl", "CS of type 3 (real mode's) must have DPL 0")
    if kind in (9, 11) and cs.dpl != ss_dpl:
        bad("dpl", f"CS.DPL must equal SS.DPL, which is {ss_dpl}")
    if kind in (13, 15) and cs.dpl > ss_dpl:
        bad("dpl", f"conforming CS.DPL must not exceed SS.DPL, which is {ss_dpl}")
    if not loose and cpu.cr0 & CR0.PE and cs.selector & 3 != ss.selector & 3:
        bad("selector", f"CS.RPL must equal SS.RPL, which is {ss.selector & 3}")
    if cpu.efer & EFER.LMA and cs.l and cs.db:
        bad("db", "must be 0 in a 64-bit code segment (CS.L)")


def _limit(name: str, segment: SegmentState, report: Report) -> None:
    if segment.g and segment.limit & 0xFFF != 0xFFF:
        why = f"limit {segment.limit:#x} is not made of pages: granularity must be 0"
        report.add("vmx", f"{name}.g", segment.g, why, _SEGMENTS)
    if not segment.g and segment.limit >> 20:
        why = f"limit {segment.limit:#x} exceeds 20 bits: granularity must be 1"
        report.add("vmx", f"{name}.g", segment.g, why, _SEGMENTS)


def _base(cpu: CpuState, name: str, segment: SegmentState, report: Report) -> None:
    if name in ("fs", "gs"):
        if not is_canonical(segment.base, cpu.cr4):
            report.add("vmx", f"{name}.base", segment.base, "must be canonical", _SEGMENTS)
    elif segment.base >> 32 and (name == "cs" or not _unusable(segment)):
        report.add("vmx", f"{name}.base", segment.base, "bits 63:32 must be 0", _SEGMENTS)


def _task_register(cpu: CpuState, report: Report) -> None:
    tr = cpu.segments["tr"]

    def bad(part: str, why: str) -> None:
        report.add("vmx", f"tr.{part}", getattr(tr, part), why, _SEGMENTS)

    if _unusable(tr):
        bad("present", "TR must be usable: give it a busy TSS, even if none is ever used")
        return
    if tr.selector & 4:
        bad("selector", "the TI flag must be 0: a TSS lives in the GDT")
    long_mode = bool(cpu.efer & EFER.LMA)
    if tr.type != 11 and (long_mode or tr.type != 3):
        wanted = "11, a busy 64-bit TSS" if long_mode else "3 or 11, a busy TSS"
        bad("type", f"must be {wanted}")
    if tr.s:
        bad("s", "must be 0: a TSS is a system segment")
    if not is_canonical(tr.base, cpu.cr4):
        bad("base", "must be canonical")
    _limit("tr", tr, report)


def _ldt(cpu: CpuState, report: Report) -> None:
    ldt = cpu.segments["ldt"]
    if _unusable(ldt):
        return

    def bad(part: str, why: str) -> None:
        report.add("vmx", f"ldt.{part}", getattr(ldt, part), why, _SEGMENTS)

    if ldt.selector & 4:
        bad("selector", "the TI flag must be 0: an LDT lives in the GDT")
    if ldt.type != 2:
        bad("type", "must be 2, an LDT")
    if ldt.s:
        bad("s", "must be 0: an LDT is a system segment")
    if not is_canonical(ldt.base, cpu.cr4):
        bad("base", "must be canonical")
    _limit("ldt", ldt, report)


def _descriptor_tables(cpu: CpuState, report: Report) -> None:
    for name, table in (("gdt", cpu.gdt), ("idt", cpu.idt)):
        if not is_canonical(table.base, cpu.cr4):
            report.add("vmx", f"{name}.base", table.base, "must be canonical", _TABLES)
        if table.limit >> 16:
            report.add("vmx", f"{name}.limit", table.limit, "bits 31:16 must be 0", _TABLES)


def _rip_and_rflags(cpu: CpuState, report: Report) -> None:
    def bad(field: str, value: int, why: str) -> None:
        report.add("vmx", field, value, why, _FLAGS)

    rip = cpu.regs.get("rip", 0)
    if cpu.efer & EFER.LMA and cpu.segments["cs"].l:
        if not is_canonical(rip, cpu.cr4):
            bad("rip", rip, "must be canonical in 64-bit mode")
    elif rip >> 32:
        bad("rip", rip, "bits 63:32 must be 0 outside 64-bit mode")
    if "rflags" not in cpu.regs:
        return
    rflags = cpu.regs["rflags"]
    # KVM_SET_REGS sets bit 1 itself (RFLAGS.FIXED), so its absence is no problem.
    if reserved := rflags & _RFLAGS_RESERVED:
        bad("rflags", rflags, f"bits {reserved:#x} are reserved")
    if rflags & RFLAGS.VM and (cpu.efer & EFER.LMA or not cpu.cr0 & CR0.PE):
        bad("rflags", rflags, "VM (virtual-8086 mode) needs protected mode outside long mode")
