"""Giving the guest an exception or a software interrupt (KVM API, KVM_SET_VCPU_EVENTS).

KVM delivers them: through the IDT with its gates, stacks and error codes, or through the vector
table in real mode, and a fault on the way becomes the right next one. What KVM does not do for an
injected event is done here: the gate's DPL for INT n, RF in the saved flags of a fault, CR2, DR6.

Sources: SDM vol. 3A 7.3 to 7.14, 6.12.1.2 (DPL), 19.3.1.1 (RF); vol. 2A INT n.
"""

from __future__ import annotations

from pykvm.kvm.constants import KVM_VCPUEVENT_VALID_SHADOW
from pykvm.machine.assist.cpu import GP, IF, NP, RF, TF, Cpu, Fault
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm.vcpu_events import VcpuEvents

_TRAPS = frozenset((1, 3, 4))
_IOPL = 3 << 12
_INTERRUPT_GATES = frozenset((5, 6, 7, 14, 15))
_DR6_BS = 1 << 14
_DR6_FIXED = 0xFFFF0FF0


def raise_fault(cpu: Cpu, fault: Fault) -> None:
    """The instruction raised an exception: RIP stays on it."""
    if fault.cr2 is not None:
        cpu.sregs.cr2 = fault.cr2
        cpu.changed_sregs()
    if fault.vector not in _TRAPS and fault.vector != 8:
        cpu.flags(0, RF)
    events = cpu.vcpu.get_vcpu_events()
    events.exception_injected = 1
    events.exception_pending = 0
    events.interrupt_shadow = 0
    events.exception_nr = fault.vector
    coded = fault.error is not None and not cpu.real
    events.exception_has_error_code = int(coded)
    events.exception_error_code = (fault.error or 0) if coded else 0
    _put(cpu, events)


def software_interrupt(cpu: Cpu, vector: int, length: int, *, privileged: bool = False) -> None:
    """INT n, INT3 or INTO: the guest goes on in its handler, with RIP behind the instruction.

    `privileged` is INT1, whose gate's DPL does not count.
    """
    _check_gate(cpu, vector, privileged)
    cpu.skip(length)
    cpu.flags(RF)
    events = cpu.vcpu.get_vcpu_events()
    # As an interrupt, so that no vector has an error code; KVM looks neither at IF nor at DPL.
    events.interrupt_injected = 1
    events.interrupt_nr = vector
    events.interrupt_soft = 0
    events.interrupt_shadow = 0
    _put(cpu, events)


def _check_gate(cpu: Cpu, vector: int, privileged: bool) -> None:
    if cpu.real:
        if vector * 4 + 3 > cpu.sregs.idt.limit:
            raise Fault(GP, vector * 8 + 2)
        return
    if cpu.vm86 and not privileged and vector != 3 and cpu.regs.rflags & _IOPL != _IOPL:
        raise Fault(GP, 0)
    size = 16 if cpu.long else 8
    table = cpu.sregs.idt
    if (vector + 1) * size - 1 > table.limit:
        raise Fault(GP, vector * 8 + 2)
    gate = cpu.read(table.base + vector * size, size, system=True)
    kind = gate[5]
    if kind & 0x1F not in _INTERRUPT_GATES or (cpu.long and kind & 0x1F not in (14, 15)):
        raise Fault(GP, vector * 8 + 2)
    if not privileged and cpu.cpl > kind >> 5 & 3:
        raise Fault(GP, vector * 8 + 2)
    if not kind & 0x80:
        raise Fault(NP, vector * 8 + 2)


def finished(cpu: Cpu, length: int) -> None:
    """The instruction is complete: RIP, RF, the interrupt shadow, and a pending single step."""
    stepping = cpu.regs.rflags & TF
    cpu.skip(length)
    cpu.flags(RF)
    retired(cpu, bool(stepping))


def retired(cpu: Cpu, stepping: bool) -> None:
    """As `finished`, where the instruction has set RIP and RFLAGS itself."""
    if stepping:
        debug = cpu.vcpu.debugregs
        debug.dr6 = debug.dr6 | _DR6_BS | _DR6_FIXED
        cpu.vcpu.debugregs = debug
        raise_fault(cpu, Fault(1))
        return
    if cpu.regs.rflags & IF:
        events = cpu.vcpu.get_vcpu_events()
        if events.interrupt_shadow:
            events.interrupt_shadow = 0
            _put(cpu, events)


def _put(cpu: Cpu, events: VcpuEvents) -> None:
    events.flags = KVM_VCPUEVENT_VALID_SHADOW  # the rest of the flagged parts stay as they are
    cpu.vcpu.set_vcpu_events(events)
