"""What the end of a run means: a panic that the console told of, a triple fault that is a reset."""

from __future__ import annotations

from pykvm.machine.result import Outcome, StopReason
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine

PANIC_TEXT = b"Kernel panic - not syncing"
_LONGEST_LINE = 400  # bytes of a panic message that are quoted
# After a panic Linux resets, halts, spins for ever or powers off, as panic= and the board have it.
_AFTER_PANIC = {
    StopReason.RESET,
    StopReason.SHUTDOWN,
    StopReason.HALTED,
    StopReason.POWER_OFF,
    StopReason.PANIC,
    StopReason.TIMEOUT,
}


def judge(machine: Machine, outcome: Outcome, output: bytes) -> Outcome:
    """The outcome as it is reported; `output` is what the guest printed since it was started.

    Stock kernels meet most of their panics before the driver of the pvpanic device is there, and
    tell of them on the console only. A panic whose kernel then spins until the time-out stays a
    time-out, with the panic as its detail.
    """
    reason = outcome.reason
    if reason in _AFTER_PANIC:
        line = panic_line(output)
        if line:
            if reason is not StopReason.TIMEOUT:
                outcome = outcome._replace(reason=StopReason.PANIC, exit=None)
            return outcome._replace(detail=line)
    if reason is StopReason.SHUTDOWN and resets_by_triple_fault(machine):
        return outcome._replace(reason=StopReason.RESET, detail="triple fault", exit=None)
    return outcome


def panic_line(output: bytes) -> str:
    """The line with which a Linux kernel panicked, without its time stamp; "" if none did."""
    at = output.find(PANIC_TEXT)
    if at < 0:
        return ""
    end = output.find(b"\n", at, at + _LONGEST_LINE)
    line = output[at : end if end >= 0 else at + _LONGEST_LINE]
    text = line.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()


def resets_by_triple_fault(machine: Machine) -> bool:
    """Whether a triple fault is this guest's way to restart its machine."""
    if machine.triple_fault != "auto":
        return machine.triple_fault == "reset"
    for word in machine.cmdline.split():
        if word.startswith("reboot="):
            # Linux: reboot=[warm|cold|...][,]t: the letters of the methods, in any order.
            return any(part[:1] == "t" for part in word[7:].split(","))
    return False
