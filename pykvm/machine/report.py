"""The crash report: registers, the last exits, and the instruction where the guest stopped."""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.machine.result import Outcome, StopReason
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.kvm.accounting import TraceRecord
    from pykvm.machine.machine import Machine

_TITLES = {
    StopReason.PANIC: "the guest's kernel panicked",
    StopReason.SHUTDOWN: "triple fault: the CPU met an exception while it delivered a double fault",
    StopReason.INTERNAL_ERROR: "KVM could not go on with this guest",
    StopReason.FAIL_ENTRY: "the CPU refused to enter the guest with this state",
    StopReason.HOST_ERROR: "the host refused to run the vCPU",
    StopReason.UNHANDLED: "an exit that this machine does not handle",
}
RESET_RIP = 0xFFF0  # SDM vol. 3, 9.1.4
_CODE_WINDOW = 24  # bytes disassembled from RIP


def crash_report(machine: Machine, outcome: Outcome, records: Sequence[TraceRecord]) -> str:
    """Several lines for stderr; never raises, whatever state the guest is in."""
    vcpu = machine.vcpus[outcome.vcpu]
    lines = [f"pykvm: {_TITLES.get(outcome.reason, str(outcome.reason))} (vCPU {vcpu.id})"]
    if outcome.detail:
        lines.append(f"  {outcome.detail}")
    if outcome.reason is StopReason.PANIC:  # its own report is on its console
        return "\n".join(lines)
    parts = [registers, code]
    if outcome.reason is StopReason.SHUTDOWN and vcpu.regs.rip == RESET_RIP:
        parts = [last_entry]
    if outcome.reason in (StopReason.FAIL_ENTRY, StopReason.INTERNAL_ERROR):
        parts.append(refusals)
    for part in parts:
        try:
            lines += part(machine, vcpu)
        except Exception as error:  # a report about a broken guest must not break
            lines.append(f"  ({part.__name__} not available: {error})")
    if records:
        lines.append("last exits, oldest first:")
        lines += [f"  {describe(machine, r)}" for r in records[-12:]]
    return "\n".join(lines)


def last_entry(machine: Machine, vcpu: Vcpu) -> list[str]:
    """What is left when KVM has reset the vCPU already, as it does on AMD hosts."""
    regs = vcpu.entry_regs
    if regs is None:
        return ["registers: lost, this host resets the vCPU at a triple fault"]
    lines = ["registers at the last entry (this host resets the vCPU at a triple fault):"]
    names = [n for n in regs if n not in ("rip", "rflags")]
    for at in range(0, 16, 4):
        lines.append("  " + "  ".join(f"{n:>3}={regs[n]:016x}" for n in names[at : at + 4]))
    rip = regs["rip"]
    symbol = machine.image.symbol_at(rip) if machine.image is not None else None
    return [*lines, f"  rip={rip:016x}" + (f" ({symbol})" if symbol else "")]


def registers(machine: Machine, vcpu: Vcpu) -> list[str]:
    """General, segment and control registers, as QEMU's `info registers` groups them."""
    r, s = vcpu.regs, vcpu.sregs
    names = [
        "rax",
        "rbx",
        "rcx",
        "rdx",
        "rsi",
        "rdi",
        "rbp",
        "rsp",
        *(f"r{n}" for n in range(8, 16)),
    ]
    lines = ["registers:"]
    for at in range(0, 16, 4):
        lines.append("  " + "  ".join(f"{n:>3}={getattr(r, n):016x}" for n in names[at : at + 4]))
    lines.append(f"  rip={r.rip:016x}  rflags={r.rflags:08x} [{_flags(r.rflags)}]")
    for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt"):
        seg = getattr(s, name)
        if name in ("cs", "ss", "tr") or seg.base or seg.selector:
            lines.append(
                f"  {name:>3}={seg.selector:04x} base={seg.base:016x} limit={seg.limit:08x} "
                f"type={seg.type:#x} dpl={seg.dpl} db={seg.db} l={seg.l} p={seg.present}"
            )
    lines.append(
        f"  gdt={s.gdt.base:016x}/{s.gdt.limit:04x}  idt={s.idt.base:016x}/{s.idt.limit:04x}"
    )
    lines.append(
        f"  cr0={s.cr0:08x} cr2={s.cr2:016x} cr3={s.cr3:016x} cr4={s.cr4:08x} efer={s.efer:08x}"
    )
    return lines


def refusals(machine: Machine, vcpu: Vcpu) -> list[str]:
    """Fields that the CPU's own entry checks refuse (SDM vol. 3, 27.3.1; APM vol. 2, 15.5.1)."""
    from pykvm.arch.checker import check

    problems = check(vcpu)
    if not problems:
        return []
    return ["fields that an entry would refuse:", *(f"  {p}" for p in problems[:8])]


def _flags(rflags: int) -> str:
    names = {0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF",
             14: "NT", 16: "RF", 17: "VM", 18: "AC"}  # fmt: skip
    return " ".join(name for bit, name in names.items() if rflags >> bit & 1)


def code(machine: Machine, vcpu: Vcpu) -> list[str]:
    """The instructions at RIP, with the symbol that holds it."""
    from pykvm.arch.disasm import disassemble

    address = vcpu.sregs.cs.base + vcpu.regs.rip
    raw = read_linear(machine, vcpu, address, _CODE_WINDOW)
    symbol = machine.image.symbol_at(vcpu.regs.rip) if machine.image is not None else None
    where = f"code at {address:#x}" + (f" ({symbol}):" if symbol else ":")
    if not raw:
        return [f"{where} not mapped"]
    lines = [where]
    for insn in disassemble(raw, address, code_bits(vcpu))[:4]:
        lines.append(f"  {insn}")
    if len(lines) == 1:
        lines.append(f"  {raw[:8].hex(' ')}  (no valid instruction)")
    return lines


def code_bits(vcpu: Vcpu) -> int:
    """16, 32 or 64: how the CPU decodes at RIP (SDM vol. 3, 3.4.5)."""
    s = vcpu.sregs
    if s.efer & 1 << 10 and s.cs.l:
        return 64
    return 32 if s.cr0 & 1 and s.cs.db else 16


def read_linear(machine: Machine, vcpu: Vcpu, address: int, length: int) -> bytes:
    """Guest memory by linear address through the vCPU's page tables; shorter where it ends."""
    from pykvm.arch.pagescan import read_virtual
    from pykvm.arch.pagewalk import paging_registers

    return read_virtual(machine.memory, address, length, **paging_registers(vcpu.sregs))


def describe(machine: Machine, record: TraceRecord) -> str:
    """One trace record as a line."""
    arrow = "←" if record.is_write else "→"
    value = "" if record.value is None else f" {arrow} {record.value:#x}"
    times = f" × {record.count}" if record.count > 1 else ""
    if record.name == "KVM_EXIT_IO":
        what = f"{'out' if record.is_write else 'in'} {record.address:#x}{value}{times}"
    elif record.name == "KVM_EXIT_MMIO":
        what = f"mmio {'write' if record.is_write else 'read'} {record.address:#x}{value}"
    else:
        what = record.name.removeprefix("KVM_EXIT_").lower().replace("_", " ")
    owner = device_name(machine, record)
    return f"#{record.sequence} rip={record.rip:#x} {what}" + (f" [{owner}]" if owner else "")


def device_name(machine: Machine, record: TraceRecord) -> str:
    """Who answered a port or MMIO exit, or ""."""
    if record.name == "KVM_EXIT_IO":
        found = machine.pio.find(record.address)
    elif record.name == "KVM_EXIT_MMIO":
        found = machine.mmio.find(record.address)
    else:
        return ""
    return found[0].name if found else "unclaimed"
