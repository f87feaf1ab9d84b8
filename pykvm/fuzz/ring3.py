"""`Ring3`: a function of an ELF program, called in ring 3 of a VM, again and again.

```python
with Ring3("parser.elf") as target:             # LLVMFuzzerTestOneInput(data, size)
    result = target.execute(b"GET /")
    print(result.outcome, result.crash, target.coverage.count())
```

There is no kernel: a page of ring-0 code reports faults, a stub in ring 3 calls the function and
says when it has returned. Memory is put back after each run, so every input meets the same state.
Ring 3 is the fast part of every host, also of a KVM without VMX or SVM.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from types import TracebackType

from pykvm.arch.disasm import disassemble_one
from pykvm.fuzz import layout as at
from pykvm.fuzz.coverage import Coverage
from pykvm.fuzz.errors import FuzzError
from pykvm.fuzz.program import Program
from pykvm.fuzz.result import VECTORS, Crash, Outcome, Result
from pykvm.fuzz.space import Space
from pykvm.fuzz.stubs import call_stub
from pykvm.kvm import Kvm
from pykvm.kvm.region import MemoryRegion
from pykvm.machine.snapshot import rounds
from pykvm.typed import Any, Self

ENTRY = "LLVMFuzzerTestOneInput"
INITIALIZE = "LLVMFuzzerInitialize"
_STACK_ROOM = 128  # the red zone, and what a caller would have pushed
_FRAME = struct.Struct("<7Q")
_MOST_FRAMES = 32
_MESSAGE = 256
_XCR0 = 7  # x87, SSE, AVX


class Ring3:
    """One VM with one target.

    - `program`: a `Program`, a path or bytes; `function`: what is called with (input, length).
    - `initialize`: a function that is called once, before the state that runs start from; unless
      given it is `LLVMFuzzerInitialize` where there is one. "" is none.
    - `room`, `stack`, `heap`: bytes for inputs, stack and heap.
    - `timeout`: seconds, after which a run is a hang.

    Raises `FuzzError`, `KvmError` and what opening `/dev/kvm` raises.
    """

    def __init__(
        self,
        program: Program | str | os.PathLike[str] | bytes,
        function: str = ENTRY,
        *,
        initialize: str | None = None,
        room: int = 1 << 20,
        stack: int = 256 << 10,
        heap: int = 1 << 20,
        timeout: float = 1.0,
    ) -> None:
        for name, value in (("room", room), ("stack", stack), ("heap", heap)):
            if value < at.PAGE or value % at.PAGE:
                raise FuzzError(f"{name}={value} is not a multiple of {at.PAGE}")
        self.program = program if isinstance(program, Program) else Program(program)
        entry = self.program.symbol(function)
        if initialize is None and INITIALIZE in self.program.symbols:
            initialize = INITIALIZE
        self.function = function
        self.room = room
        self.runs = 0
        self.interrupted: Callable[[], object] | None = None
        """Called when a signal stopped a run; if it returns true the run is a hang."""
        self._space = self._lay_out(room, stack, heap)
        self._kvm = Kvm()
        try:
            self._make(entry, initialize, heap, timeout)
        except BaseException:
            self.close()
            raise

    # -- making it -----------------------------------------------------------------------------

    def _lay_out(self, room: int, stack: int, heap: int) -> Space:
        space = Space()
        space.add_segments(self.program.segments)
        for gva, value in self.program.patches:
            space.patch(gva, value)
        space.add(at.STUB_GVA, 2 * at.PAGE, writable=False, executable=True)
        space.add(at.HEAP_GVA, heap, writable=True, executable=False)
        space.add(at.STACK_TOP_GVA - stack, stack, writable=True, executable=False)
        space.add_shared(at.SHARED, at.SHARED_GVA, at.INPUT + room)
        return space

    def _make(self, entry: int, initialize: str | None, heap: int, timeout: float) -> None:
        self._vm = self._kvm.create_vm()
        cpuid = self._kvm.supported_cpuid()
        has_xsave = any(e.function == 1 and e.ecx >> 26 & 1 for e in cpuid)
        avx = has_xsave and any(e.function == 1 and e.ecx >> 28 & 1 for e in cpuid)
        space = self._space
        space.xsave = has_xsave
        sp = at.STACK_TOP_GVA - _STACK_ROOM
        space.write(at.STUB_GVA, call_stub(at.STUB_GVA, entry, sp, avx=avx, port=at.PORT_DONE))
        if initialize:
            first = self.program.symbol(initialize)
            space.write(
                at.STUB_GVA + at.PAGE,
                call_stub(at.STUB_GVA + at.PAGE, first, sp, avx=avx, port=at.PORT_READY),
            )
        state = space.state(at.STUB_GVA, sp)
        size = -(-space.size // at.PAGE) * at.PAGE
        self.ram = self._vm.add_memory(0, size, log_dirty=True)
        self.shared: MemoryRegion = self._vm.add_memory(at.SHARED, at.INPUT + self.room)
        self._vcpu = self._vm.create_vcpu(0)
        self._vcpu.set_cpuid(cpuid)
        for gpa, data in (*space.pieces, *state.memory):
            self.ram.view[gpa : gpa + len(data)] = data
        control = struct.pack("<QQ", at.HEAP_GVA, heap)
        self.shared.view[at.HEAP_AT : at.HEAP_AT + 16] = control
        self.shared.view[at.MXCSR : at.MXCSR + 4] = struct.pack("<I", 0x1F80)
        state.apply(self._vcpu)
        if has_xsave:
            self._vcpu.set_xcrs({0: _XCR0 if avx else 3})
        self.coverage = Coverage(self.shared.view[at.COVERAGE : at.COMPARISONS])
        self._rounds = rounds.Rounds(
            self._vm, self._vcpu, self.ram, self.shared,
            place=at.INPUT_AT, room=(at.INPUT, self.room), room_gva=at.SHARED_GVA + at.INPUT,
            cleared=(at.COVERAGE, at.INPUT - at.COVERAGE), timeout=timeout,
        )  # fmt: skip
        self._rounds.begin()
        if initialize:
            self._initialize(initialize)

    def _initialize(self, name: str) -> None:
        self._vcpu.regs.rip = at.STUB_GVA + at.PAGE
        stop = self._rounds.run(b"")
        if stop.kind != rounds.OUT or stop.port != at.PORT_READY:
            raise FuzzError(f"{name}() does not return: {self._result(stop)[1] or 'it hangs'}")
        self._vcpu.complete()
        self._vcpu.regs.rip = at.STUB_GVA
        self._rounds.begin()

    # -- runs ------------------------------------------------------------------------------------

    def execute(self, data: bytes) -> Result:
        """One run. Raises `FuzzError` if the input is longer than `room`."""
        if len(data) > self.room:
            raise FuzzError(
                f"an input of {len(data)} bytes does not fit into {self.room}; make room= larger"
            )
        stop = self._rounds.run(data)
        while stop.kind == rounds.SIGNAL:  # the interpreter looks at its signals in between
            if self.interrupted is not None and self.interrupted():
                stop = stop._replace(kind=rounds.TIMEOUT)
                break
            stop = self._rounds.go_on()
        self.runs += 1
        if stop.kind == rounds.OUT and stop.port == at.PORT_DONE:
            pages = self._rounds.reset()
            phases = self._rounds.phases
            return Result(Outcome.OK, None, pages, phases.run, phases.dirty_log + phases.copy)
        outcome, crash = self._result(stop)
        pages = self._rounds.restore()
        phases = self._rounds.phases
        return Result(outcome, crash, pages, phases.run, phases.dirty_log + phases.copy)

    def difference(self) -> str | None:
        """The first thing that a reset left other than it was, or None; for tests."""
        return self._rounds.difference()

    @property
    def comparisons(self) -> set[bytes]:
        """Constants that the last run compared with, of 2 to 8 bytes: words for a dictionary."""
        raw = self.shared.view[at.COMPARISONS : at.INPUT]
        (count,) = struct.unpack_from("<Q", raw, 0)
        found: set[bytes] = set()
        for index in range(min(count, len(raw) // 16 - 1)):
            value, size = struct.unpack_from("<QQ", raw, 16 * (index + 1))
            if 2 <= size <= 8:
                found.add(value.to_bytes(8, "little")[:size])
        return found

    # -- what went wrong -------------------------------------------------------------------------

    def _result(self, stop: rounds.Stop) -> tuple[Outcome, Crash | None]:
        if stop.kind in (rounds.TIMEOUT, rounds.SIGNAL, rounds.KICKED):
            return Outcome.HANG, None
        if stop.kind == rounds.OUT and stop.port == at.PORT_FAULT:
            return Outcome.CRASH, self._fault()
        regs = self._registers()
        if stop.kind == rounds.OUT and stop.port == at.PORT_FAILED:
            message = self._text(regs["rdi"])
            self._blame(regs)
            return Outcome.CRASH, self._crash("failed", regs, message=message)
        what = f"port {stop.port:#x}" if stop.kind == rounds.OUT else "an exit"
        return Outcome.CRASH, self._crash(what, regs, message="the target left its address space")

    def _blame(self, regs: dict[str, int]) -> None:
        """The runtime says whom it was called by (RSI, a return address): that call is it."""
        after = regs["rsi"]
        if not self.program.where(after - 1):
            return
        near = 5  # bytes of a CALL rel32
        regs["rip"] = after - near if self.read(after - near, 1) == b"\xe8" else after - 1

    def _fault(self) -> Crash:
        regs = self._registers()
        gpa = regs["rsp"]  # the ring-0 stack is identity-mapped
        if not at.PAGE <= gpa <= at.RING0_STACK_TOP - _FRAME.size:
            return self._crash("fault", regs, message="in ring 0")
        vector, error, rip, _, rflags, rsp, _ = _FRAME.unpack_from(self.ram.view, gpa)
        regs.update(rip=rip, rsp=rsp, rflags=rflags)
        address = int(self._vcpu.sregs.cr2) if vector == 14 else None
        name = VECTORS.get(vector, f"vector {vector}")
        return self._crash(name, regs, address=address, error=error)

    def _registers(self) -> dict[str, int]:
        return {name: int(getattr(self._vcpu.regs, name)) for name in _NAMES}

    def _crash(self, kind: str, regs: dict[str, int], **more: Any) -> Crash:
        rip = regs["rip"]
        code = self.read(rip, 15)
        instruction = disassemble_one(code, rip, 64) if code else None
        where = self.program.where(rip)
        caller = self.read(regs["rsp"], 8)
        if not where and len(caller) == 8:  # it went where no code is: who called?
            where = self.program.where(int.from_bytes(caller, "little"))
            more.setdefault("message", "a call or jump to where no code is")
        return Crash(
            kind,
            rip,
            where,
            instruction.text if instruction is not None else "",
            registers=regs,
            stack=self._return_addresses(regs["rbp"]),
            **more,
        )

    def _return_addresses(self, rbp: int) -> tuple[int, ...]:
        found: list[int] = []
        while len(found) < _MOST_FRAMES and rbp % 8 == 0:
            frame = self.read(rbp, 16)
            if len(frame) < 16:
                break
            above, address = struct.unpack("<QQ", frame)
            if at.STUB_GVA <= address < at.STUB_GVA + 2 * at.PAGE:
                break  # who called it from outside
            found.append(address)
            if above <= rbp:
                break
            rbp = above
        return tuple(found)

    def read(self, gva: int, length: int) -> bytes:
        """The target's memory (guest-virtual) as it is now; shorter where it ends."""
        out = b""
        while length > 0:
            here = min(length, at.PAGE - gva % at.PAGE)
            offset = gva - at.SHARED_GVA
            if offset >= 0 and offset + here <= self.shared.size:
                out += bytes(self.shared.view[offset : offset + here])
            elif (gpa := self._space.gpa(gva)) is not None:
                out += bytes(self.ram.view[gpa : gpa + here])
            else:
                break
            gva, length = gva + here, length - here
        return out

    def _text(self, gva: int) -> str:
        return self.read(gva, _MESSAGE).split(b"\0")[0].decode("utf-8", "backslashreplace")

    # -- life ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends the VM. Twice is harmless."""
        if hasattr(self, "coverage"):
            self.coverage.release()
        self._kvm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


_NAMES = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "rflags",
)  # fmt: skip
