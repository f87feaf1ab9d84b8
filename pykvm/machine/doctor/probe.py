"""A VM for experiments: some bytes of code in one of the CPU's modes, and what became of them.

The code ends with `DONE` (OUT to port 0xe0). Every vector of its IDT, or IVT, leads to a stub that
writes the vector's number to port 0xe1. So each end is told apart: done, an exception that the
guest saw, an instruction that KVM refused, a debug exit, a halt, a triple fault, an endless loop.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType

from pykvm._native import lib
from pykvm.arch import presets
from pykvm.arch.descriptors import Gate
from pykvm.arch.state import CpuState
from pykvm.kvm import CpuidEntry, Kvm, Vcpu, Vm, exits
from pykvm.kvm.errors import KvmError
from pykvm.typed import Any, Literal, Self

CODE = 0x1000  # guest-physical; everything is identity-mapped
SCRATCH = 0x6000  # page-aligned, zeroed before each run; RDI points there
STUBS = 0x8000  # 4 bytes a vector
TABLES = 0x10000
STACK = 0x60000
KERNEL_STACK = 0x70000
MEMORY = 0x80000  # bytes
MAPPED = 2 << 20  # identity-mapped bytes

DONE_PORT, VECTOR_PORT = 0xE0, 0xE1
DONE = b"\xe6\xe0"  # out 0xe0, al: the same bytes in every mode
SYSTEM_CALL = 0x80

Mode = Literal["real", "protected", "pae", "long", "ring3"]
Kind = Literal[
    "done", "vector", "refused", "debug", "halt", "shutdown", "timeout", "failed", "other"
]


@dataclass(frozen=True, slots=True)
class End:
    """How an experiment ended. `vector` is the exception or interrupt that the guest saw."""

    kind: Kind
    text: str
    vector: int | None = None
    exit: Any = None


class Probe:
    """One VM with one vCPU, for any number of experiments."""

    def __init__(
        self,
        kvm: Kvm,
        *,
        setup: Callable[[Vm], object] | None = None,
        log_dirty: bool = False,
        cpuid: Iterable[CpuidEntry] | None = None,
    ) -> None:
        self.vm: Vm = kvm.create_vm()
        try:
            with contextlib.suppress(KvmError):  # only some VMX hosts need these
                self.vm.set_identity_map_addr(0xFFFB_C000)
                self.vm.set_tss_addr(0xFFFB_D000)
            if setup is not None:
                setup(self.vm)
            self.memory = self.vm.add_memory(0, MEMORY, log_dirty=log_dirty)
            self.vcpu: Vcpu = self.vm.create_vcpu(0)
            self.vcpu.set_cpuid(kvm.supported_cpuid() if cpuid is None else cpuid)
        except BaseException:
            self.vm.close()
            raise
        stubs = b"".join(bytes((0xB0, n, 0xE6, VECTOR_PORT)) for n in range(256))
        self.memory.write(STUBS, stubs)
        self._states: dict[Mode, CpuState] = {}

    def prepare(
        self,
        mode: Mode,
        code: bytes,
        *,
        change: Callable[[CpuState], object] | None = None,
        **regs: int,
    ) -> None:
        """Puts the code and the CPU in place; `change` may alter the state before."""
        state = self._state(mode).copy()
        state.regs["rdi"] = SCRATCH
        state.regs.update(regs)
        if change is not None:
            change(state)
        self.vcpu.complete()
        self.memory.write(CODE, code)
        self.memory.write(SCRATCH, bytes(4096))
        state.apply(self.vcpu, self.memory)

    def _state(self, mode: Mode) -> CpuState:
        state = self._states.get(mode)
        if state is None:
            state = self._states[mode] = _state(mode)
        return state

    def go(self, seconds: float = 0.5) -> End:
        """Runs until the code ends in one way or another, at most `seconds`."""
        with Watch(self.vcpu, seconds) as watch:
            while True:
                exit_ = self.vcpu.run()
                end = judge(exit_)
                if watch.expired and (end is None or end.kind == "other"):
                    return End("timeout", f"still running after {seconds} s")
                if end is not None:
                    return end

    def close(self) -> None:
        """Gives the VM back."""
        self.vm.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _state(mode: Mode) -> CpuState:
    if mode == "real":
        state = presets.real_mode(CODE, stack=0x5000)
        ivt = b"".join((STUBS + 4 * n).to_bytes(4, "little") for n in range(256))
        state.memory = [(0, ivt)]
        return state
    handlers: dict[int, int | Gate] = {n: STUBS + 4 * n for n in range(256)}
    for vector in (3, SYSTEM_CALL):  # ring 3 may call these with INT
        handlers[vector] = Gate(STUBS + 4 * vector, presets.KERNEL_CODE, dpl=3)
    common: dict[str, Any] = {
        "stack": STACK,
        "tables": TABLES,
        "handlers": handlers,
        "kernel_stack": KERNEL_STACK,
    }
    if mode == "protected":
        return presets.protected32(CODE, **common)
    common["identity"] = MAPPED
    if mode == "pae":
        return presets.pae32(CODE, **common)
    if mode == "long":
        return presets.long64(CODE, **common)
    # Ring 3 gets its code, data and stack, not the handlers: entering ring 0 must really happen.
    # It may use our two ports, so that it can say that it is done.
    user = [(CODE, 0x7000), (STACK - 0x8000, 0x8000)]
    ports = (DONE_PORT, VECTOR_PORT)
    return presets.ring3_64(CODE, user=user, page_size=0x1000, io_ports=ports, **common)


def judge(exit_: exits.Exit) -> End | None:
    """What an exit means for the experiment; None: it goes on."""
    if isinstance(exit_, exits.IoExit):
        if exit_.is_write and exit_.port == DONE_PORT:
            return End("done", "it worked", exit=exit_)
        if exit_.is_write and exit_.port == VECTOR_PORT:
            vector = exit_.value & 0xFF
            return End("vector", f"vector {vector} ({vector_name(vector)})", vector, exit_)
        return None
    if isinstance(exit_, exits.IntrExit | exits.IrqWindowOpenExit):
        return None
    if isinstance(exit_, exits.DebugExit):
        return End("debug", "a debug exit", exit=exit_)
    kinds: dict[type[exits.Exit], Kind] = {
        exits.InternalErrorExit: "refused",
        exits.HltExit: "halt",
        exits.ShutdownExit: "shutdown",
        exits.FailEntryExit: "failed",
    }
    return End(kinds.get(type(exit_), "other"), str(exit_), exit=exit_)


_VECTORS = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC",
    19: "#XM", 20: "#VE", 21: "#CP",
}  # fmt: skip


def vector_name(vector: int) -> str:
    """The manuals' name of an exception ("#UD"), or "interrupt"."""
    return _VECTORS.get(vector, "interrupt")


class Watch:
    """Gets a vCPU of this thread out of the guest when its time is up."""

    def __init__(self, vcpu: Vcpu, seconds: float) -> None:
        self._vcpu = vcpu
        self._nanoseconds = round(seconds * 1e9)
        self._deadline = time.monotonic_ns() + self._nanoseconds

    @property
    def expired(self) -> bool:
        return time.monotonic_ns() >= self._deadline

    def __enter__(self) -> Self:
        result = lib.pykvm_watch(self._vcpu._native, self._nanoseconds, 0)
        if result < 0:
            raise KvmError("timer_create", -result)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lib.pykvm_unwatch(self._vcpu._native)
        lib.pykvm_unkick(self._vcpu._native)
