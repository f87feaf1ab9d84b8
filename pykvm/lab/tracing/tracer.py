"""`Tracer`: takes each exit from the trace ring while its vCPU still stands there, and explains it.

The ring has one record and is lossless, so the loop stops after each exit until it was looked at.
At that moment registers, page tables and code are those of the exit: the instruction is found for
certain, also where the guest changes its code or its mode. The time that looking takes counts
neither as the guest's nor as the handler's, and with one vCPU it is taken out of the time line.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from pykvm.errors import PykvmError
from pykvm.kvm.decode import decode
from pykvm.kvm.exits import make_exit
from pykvm.kvm.registers import SYNC_SREGS
from pykvm.lab.places import describe_place
from pykvm.machine.result import MachineError
from pykvm.typed import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pykvm.kvm.accounting import TraceRecord
    from pykvm.machine import Machine

_IO, _MMIO = "KVM_EXIT_IO", "KVM_EXIT_MMIO"
_TEXT = {*range(0x20, 0x7F), *b"\t\n\r"}


@dataclass(frozen=True, slots=True)
class TracedExit:
    """One exit with all that is known about it.

    `time_ns` counts from the tracer's start, without the tracer's own work where there is one
    vCPU. `address` is the linear address of the instruction, CS base included (None where unknown),
    `instruction` its disassembly, `symbol` where in the image that is, `place` the device and
    register that were accessed. `what` says in a few words what the guest did.
    """

    record: TraceRecord
    time_ns: int
    what: str
    place: str
    address: int | None
    instruction: str
    symbol: str

    def __str__(self) -> str:
        at = "" if self.address is None else f" at {self.address:#x}"
        where = f" [{self.place}]" if self.place else ""
        code = f": {self.instruction}" if self.instruction else ""
        return f"#{self.record.sequence} {self.what}{where}{at}{code}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON. Times in ns, addresses as numbers."""
        record = self.record
        result: dict[str, Any] = {
            "sequence": record.sequence,
            "vcpu": record.vcpu,
            "time_ns": self.time_ns,
            "reason": record.name,
            "what": self.what,
        }
        if record.name in (_IO, _MMIO):
            result["direction"] = "write" if record.is_write else "read"
            result["port" if record.name == _IO else "gpa"] = record.address
            result |= {"size": record.size, "count": record.count, "place": self.place}
        elif record.address:
            result["address"] = record.address
        if record.value is not None:
            result["value"] = record.value
        result |= {
            "rip": self.address,
            "instruction": self.instruction,
            "symbol": self.symbol,
            "native": record.native,
            "run_ns": record.run_ns,
            "handle_ns": record.handle_ns,
        }
        return result


class Tracer:
    """Calls `on_exit` with a `TracedExit` for each exit of the machine, one at a time.

    The machine must have been made with `trace=Tracer.RING`. As a context manager it takes what is
    left when the block ends. `on_exit` runs in the vCPU's thread; an exception there ends the run.
    """

    RING = 1

    def __init__(self, machine: Machine, on_exit: Callable[[TracedExit], object]) -> None:
        if machine.on_trace is not None:
            raise MachineError("the machine is traced already; close the other tracer first")
        self.machine = machine
        self.count = 0
        self._on_exit = on_exit
        self._lock = threading.Lock()
        self._alone = len(machine.vcpus) == 1
        for vcpu in machine.vcpus:
            vcpu.native_sync |= SYNC_SREGS  # segments say where code is, and in which mode
        machine.on_trace = self._take
        decode(b"\x90", 0, 64)  # loads the disassembler: not while the guest waits
        self._started_ns = time.monotonic_ns()

    def close(self) -> None:
        """Takes the last records and leaves the machine alone. Closing twice is harmless."""
        machine = self.machine
        if machine.on_trace != self._take:
            return
        machine.on_trace = None
        for vcpu in machine.vcpus:
            self._take(vcpu.trace_records())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self, records: list[TraceRecord]) -> None:
        entered = time.monotonic_ns()
        with self._lock:
            for record in records:
                self.count += 1
                self._on_exit(self.explain(record))
            if self._alone:
                self._started_ns += time.monotonic_ns() - entered

    def explain(self, record: TraceRecord) -> TracedExit:
        """A record in words; its vCPU must still stand at that exit for the instruction's sake."""
        machine = self.machine
        address, instruction, words = self._instruction(record)
        place = ""
        if record.name in (_IO, _MMIO):
            bus = "pio" if record.name == _IO else "mmio"
            place = describe_place(machine, bus, record.address, record.is_write)
            words = access_text(record)
        symbol = None
        if machine.image is not None and address is not None:
            symbol = machine.image.symbol_at(address)
        return TracedExit(
            record,
            max(0, record.time_ns - self._started_ns),
            words,
            place,
            address,
            instruction,
            symbol or "",
        )

    def _instruction(self, record: TraceRecord) -> tuple[int | None, str, str]:
        """Address, disassembly, and what the exit itself says about it."""
        vcpu = self.machine.vcpus[record.vcpu]
        fallback = record.cs_base + record.rip if record.rip else None
        words = record.name.removeprefix("KVM_EXIT_").lower().replace("_", " ")
        try:
            exit_ = make_exit(vcpu, 0)
            if exit_.reason != record.reason:  # somebody has used the vCPU since
                return fallback, "", words
            address, instruction = exit_.address, exit_.instruction
            if record.name not in (_IO, _MMIO):
                words = str(exit_)
                if address is not None:  # the place is told apart
                    words = words.partition(f" at {address:#x}")[0].partition(" near 0x")[0]
            return address, instruction, words
        except PykvmError:
            return fallback, "", words


def access_text(record: TraceRecord) -> str:
    """`out 0x3f8 ← 'H'`, `mmio read 0xd0000000 → 0x00000001`: what a port or MMIO exit moved."""
    if record.name == _IO:
        verb = ("out" if record.is_write else "in") + ("s" if record.count > 1 else "")
    else:
        verb = "mmio write" if record.is_write else "mmio read"
    arrow = "←" if record.is_write else "→"
    text = f"{verb} {record.address:#x}"
    if record.value is None:
        return text
    value = f"{record.value:#0{2 + 2 * record.size}x}"
    if record.name == _IO and record.size == 1 and record.value in _TEXT:
        value = repr(chr(record.value))
    if record.count > 1:
        return f"{text} {arrow} {value}, … ({record.count} × {record.size})"
    return f"{text} {arrow} {value}"
