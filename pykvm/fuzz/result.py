"""What came of one input."""

from __future__ import annotations

from dataclasses import dataclass, field

from pykvm.enums import StrEnum

VECTORS = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC",
    19: "#XM", 20: "#VE", 21: "#CP",
}  # fmt: skip
"""Exceptions by vector (SDM vol. 3A, 7.3)."""


class Outcome(StrEnum):
    """How a run ended."""

    OK = "ok"
    CRASH = "crash"
    HANG = "hang"


@dataclass(frozen=True)
class Crash:
    """Where and how the target failed.

    - `kind`: an exception's name ("#PF"), "failed" (the target said so), or what else ended it.
    - `rip`: of the instruction (guest-virtual); `address`: what a page fault was about (CR2).
    - `where`: symbol and offset, if known, of the caller if no code is at `rip`; `instruction`:
      disassembled.
    - `stack`: return addresses by frame pointer, innermost first.
    """

    kind: str
    rip: int
    where: str = ""
    instruction: str = ""
    address: int | None = None
    error: int = 0
    message: str = ""
    registers: dict[str, int] = field(default_factory=dict)
    stack: tuple[int, ...] = ()

    def __str__(self) -> str:
        what = self.kind
        if self.address is not None:
            what += f" {_access(self.error)} {self.address:#x}"
        if self.message:
            what += f": {self.message}"
        where = f"{self.rip:#x}" + (f" <{self.where}>" if self.where else "")
        return f"{what} at {where}" + (f": {self.instruction}" if self.instruction else "")


@dataclass(frozen=True)
class Result:
    """What one input did.

    `pages`: guest pages that were written and put back; `run_ns`: in the guest and KVM;
    `reset_ns`: to put memory back.
    """

    outcome: Outcome
    crash: Crash | None = None
    pages: int = 0
    run_ns: int = 0
    reset_ns: int = 0


def _access(error: int) -> str:
    # SDM vol. 3A, 4.7: bit 1 is a write, bit 4 an instruction fetch.
    if error & 16:
        return "fetching"
    return "writing" if error & 2 else "reading"
