"""Steps: many, over a call, out of a function, and where breakpoints need stepping."""

from __future__ import annotations

import time
from dataclasses import replace

from pykvm.arch.disasm import MAX_INSTRUCTION, Insn, disassemble_one
from pykvm.lab import cpu
from pykvm.lab.events import Event, EventKind, LabError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.lab.session import Lab
    from pykvm.lab.steering import Steering

_WHOLE = ("call", "lcall", "rep", "repe", "repne", "int", "syscall", "sysenter")
_RETURNS = ("ret", "retf", "iret", "iretd", "iretq", "sysret", "sysexit", "retfq", "sysretq")
LONGEST_OUT = 10_000_000  # steps


def instruction(lab: Lab) -> Insn | None:
    """The one that comes next; None if there are no bytes, or none that are one."""
    address = lab.address
    code = b""
    for length in range(MAX_INSTRUCTION, 0, -1):
        code = lab.peek(address, length)
        if code:
            break
    return disassemble_one(code, address, cpu.code_bits(lab.vcpu)) if code else None


def steps(lab: Lab, steering: Steering, count: int, interrupts: bool) -> Event:
    """`count` of them, unless something else happens."""
    if count < 1:
        raise LabError(f"{count} steps are not possible; use 1 or more")
    done = 0
    while True:
        event = steering.step(interrupts, count - done)
        done += event.steps
        if event.kind is not EventKind.STEP or done >= count:
            return replace(event, steps=done)


def over(lab: Lab, steering: Steering) -> Event:
    """A step, or to the instruction behind, at this depth of the stack."""
    next_one = instruction(lab)
    first = next_one.mnemonic.split()[0] if next_one is not None else ""
    if next_one is None or not first.startswith(_WHOLE):
        return steering.step()
    depth, vcpu = lab.vcpu.regs.rsp, lab.vcpu.id

    def back(lab: Lab) -> bool:
        return lab.vcpu.id == vcpu and lab.vcpu.regs.rsp >= depth

    point = lab.break_at(next_one.address + next_one.size, condition=back)
    try:
        event = steering.go(None)
    finally:
        point.delete()
    if event.breakpoint is point:
        return replace(event, kind=EventKind.STEP, breakpoint=None, steps=1)
    return event


def out(lab: Lab, steering: Steering) -> Event:
    """Over everything, until this function's own return."""
    vcpu, depth = lab.vcpu.id, lab.vcpu.regs.rsp
    for done in range(LONGEST_OUT):
        lab.select(vcpu)
        next_one = instruction(lab)
        returns = next_one is not None and next_one.mnemonic.split()[-1] in _RETURNS
        if returns and lab.vcpu.regs.rsp >= depth:
            event = steering.step()
            return replace(event, steps=done + event.steps)
        event = over(lab, steering)
        if event.kind is not EventKind.STEP:
            return event
    raise LabError(f"the function has not returned in {LONGEST_OUT} steps; set a breakpoint")


def by_steps(lab: Lab, steering: Steering, timeout: float | None) -> Event:
    """What `cont` does where a breakpoint or watchpoint needs every instruction looked at.

    Only the selected vCPU runs."""
    end = None if timeout is None else time.monotonic() + timeout
    done = 0
    while True:
        event = steering.step()
        done += event.steps
        if event.kind is not EventKind.STEP:
            return replace(event, steps=done)
        point = lab.points.at(event.address)
        if point is not None and point.met():
            return replace(event, kind=EventKind.BREAKPOINT, breakpoint=point, steps=done)
        if end is not None and time.monotonic() >= end:
            return replace(event, kind=EventKind.TIMEOUT, steps=done)
