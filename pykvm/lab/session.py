"""`Lab`: a debugger over a machine. Step, run to a place or an exit, look, change.

```python
with Machine() as m:
    m.load("hello64")
    lab = Lab(m)
    print(lab.step())  # vCPU 0 at 0x100005: step
    print(lab.next_exit(reason="io"))
    lab.break_at("main", condition="rax == 3")
    print(lab.cont())
```

All-stop: between calls every vCPU stands still, and nobody else runs the machine. Addresses are
linear (guest-virtual behind segmentation) of the selected vCPU unless they say physical.
KVM API 4.87 KVM_SET_GUEST_DEBUG; SDM vol. 3, 18; APM vol. 2, 13.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from pykvm.errors import PykvmError
from pykvm.lab import cpu, stepping
from pykvm.lab.conditions import Condition, Expression, condition
from pykvm.lab.events import Event, EventKind, LabError
from pykvm.lab.points import KINDS, LENGTHS, Breakpoint, Points, Watchpoint, check_watch
from pykvm.lab.steering import Filter, Steering
from pykvm.lab.symbols import Symbols
from pykvm.typed import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.machine import Machine

Where = int | str


class Lab:
    """A debugger's session. A machine that runs in the background is stopped and taken over.

    `symbols`: names beside those of the loaded image. Raises `LabError` if another session has
    the machine.
    """

    def __init__(self, machine: Machine, *, symbols: Symbols | None = None) -> None:
        if machine.debugger is not None:
            raise LabError("another lab session has this machine; close() it first")
        if machine._thread is not None:
            machine.stop()
            machine.wait()
        self.machine = machine
        self.points = Points(self)
        self.recording: Any = None
        self._symbols = symbols
        self._selected = 0
        self._steering = Steering(self)
        self.last: Event | None = None
        """The latest stop."""

    # -- who and where -----------------------------------------------------------------------------

    @property
    def vcpu(self) -> Vcpu:
        """The selected vCPU: the one that stopped last, or that `select()` chose."""
        return self.machine.vcpus[self._selected]

    def select(self, index: int) -> Vcpu:
        """Makes vCPU `index` the selected one."""
        if not 0 <= index < len(self.machine.vcpus):
            last = len(self.machine.vcpus) - 1
            raise LabError(f"there is no vCPU {index}; use 0 to {last}")
        self._selected = index
        return self.vcpu

    @property
    def status(self) -> str:
        """ "stopped", or "ended" when the guest's last run was its end."""
        return "ended" if self.last is not None and self.last.ended else "stopped"

    @property
    def address(self) -> int:
        """Where the selected vCPU is: its instruction pointer, linear."""
        return cpu.linear_rip(self.vcpu)

    @property
    def symbols(self) -> Symbols:
        """Names of addresses."""
        if self._symbols is None or not self._symbols.is_of(self.machine):
            self._symbols = Symbols.of(self.machine, self._symbols)
        return self._symbols

    def resolve(self, where: Where) -> int:
        """A linear address from a number, "main", "main+0x10", "0x1000" or "$rip + 2"."""
        if isinstance(where, int):
            return where
        try:
            return self.symbols.resolve(where)
        except LabError:
            if "$" not in where:
                raise
            return Expression(where.replace("$", "")).value(self)

    def lookup(self, name: str) -> int:
        """A register's or a symbol's value. Raises `LabError` if it is neither."""
        registers = self.registers()
        if name.lower() in registers:
            return registers[name.lower()]
        return self.symbols.resolve(name)

    # -- running -----------------------------------------------------------------------------------

    def step(self, count: int = 1, *, interrupts: bool = True) -> Event:
        """`count` instructions of the selected vCPU; the others stand still.

        An instruction that exits is answered by its device and counts as one. `interrupts=False`
        keeps them away meanwhile, where the host can. Ends early at the end of the guest, at a
        watchpoint, and at `interrupt()`.
        """
        return self._now(stepping.steps(self, self._steering, count, interrupts))

    def step_over(self) -> Event:
        """One instruction; a call, a repeated or a system call instruction as a whole."""
        return self._now(stepping.over(self, self._steering))

    def step_out(self) -> Event:
        """Until the current function has returned."""
        return self._now(stepping.out(self, self._steering))

    def until(self, where: Where, timeout: float | None = None) -> Event:
        """Runs to a place, once. `timeout` is in seconds."""
        address = self.resolve(where)
        point = self.break_at(address, temporary=True)
        try:
            return self.cont(timeout)
        finally:
            point.delete()

    def cont(self, timeout: float | None = None) -> Event:
        """All vCPUs, until something happens. `timeout` is in seconds."""
        return self._now(self._steering.go(timeout))

    def next_exit(
        self,
        reason: str | None = None,
        *,
        port: int | None = None,
        gpa: int | None = None,
        write: bool | None = None,
        vcpu: int | None = None,
        timeout: float | None = None,
    ) -> Event:
        """All vCPUs, until an exit to user space that fits has been answered and completed.

        `reason`: "io", "mmio", "hlt" …, or a `KVM_EXIT_*` name; `port`; `gpa`: a guest-physical
        address of an MMIO access; `write`; `vcpu`: whose. A breakpoint may come first.
        """
        wanted = Filter(reason, port, gpa, write, vcpu)
        return self._now(self._steering.go(timeout, wanted))

    def run_until(
        self, predicate: Callable[[Lab], object], every: int = 1, max_steps: int | None = None
    ) -> Event:
        """Steps the selected vCPU until `predicate(lab)`, asked every `every` instructions.

        Raises `LabError` when `max_steps` were not enough.
        """
        if every < 1:
            raise LabError(f"every={every} is not possible; use 1 or more")
        done = 0
        while True:
            if max_steps is not None and done >= max_steps:
                raise LabError(f"it has not come true in {done} steps; allow more, or change it")
            batch = every if max_steps is None else min(every, max_steps - done)
            event = self.step(batch)
            done += event.steps
            if event.kind is not EventKind.STEP or predicate(self):
                return event

    def interrupt(self) -> None:
        """Stops what runs, from any thread; what is started next if nothing does."""
        self.machine.stop()

    def reset(self) -> None:
        """The machine as after `load()`; breakpoints stay."""
        self.machine.reset()
        self._steering.forget()
        self.last = None

    def _now(self, event: Event) -> Event:
        self._selected = event.vcpu
        self.last = event
        return event

    # -- breakpoints and watchpoints ---------------------------------------------------------------

    @property
    def breakpoints(self) -> list[Breakpoint | Watchpoint]:
        """All that are set, watchpoints too."""
        return list(self.points.all)

    def break_at(
        self,
        where: Where,
        *,
        condition: Condition | str | None = None,
        temporary: bool = False,
        kind: str = "auto",
        ignore: int = 0,
    ) -> Breakpoint:
        """Stops before the instruction at `where`.

        `condition`: a function of the lab, or an expression over registers; it is asked with the
        vCPU selected that is there. `temporary`: gone after the first stop; `ignore`: how many
        times to pass. `kind`: "hardware" (a debug register), "software" (INT3, never visible in
        memory that you read), "step" (the guest is stepped); "auto" takes a free register, else
        INT3, and where a host does not show INT3s the guest is stepped. `kind` and `note` of what
        is returned say what it came to.
        """
        if kind not in KINDS:
            raise LabError(f"kind={kind!r} is not possible; use {', '.join(KINDS)}")
        if ignore < 0:
            raise LabError(f"ignore={ignore} is negative; use 0 or more")
        address = self.resolve(where)
        if not 0 <= address < 1 << 64:
            raise LabError(f"{address:#x} is no address")
        if kind == "hardware" and not self.points.room():
            raise LabError('all four debug registers are taken; use kind="software"')
        if kind == "auto":
            kind = "hardware" if self.points.room() else "software"
        fails = cpu.int3_fails() if kind == "software" else ""
        if fails:
            kind = "step"
        point = Breakpoint(
            self, self.points.number(), address, kind, _condition(condition), temporary, ignore
        )
        point.note = f"the guest is stepped: {fails}" if fails else cpu.limits(self.machine, kind)
        self.points.add(point)
        return point

    def watch(
        self,
        where: Where,
        length: int | None = None,
        *,
        access: str = "write",
        physical: bool = False,
        condition: Condition | str | None = None,
        temporary: bool = False,
        ignore: int = 0,
    ) -> Watchpoint:
        """Stops after `length` bytes at `where` were written ("write"), or also read ("access").

        A debug register watches 1, 2, 4 or 8 bytes at an address that is a multiple of it.
        Everything else, and guest-physical addresses (`physical`), is watched by stepping the
        guest and comparing, which is slow and sees changes only. `length`: 8 unless given, or
        what the alignment allows.
        """
        address = self.resolve(where)
        if length is None:
            length = next(n for n in (8, 4, 2, 1) if address % n == 0)
        check_watch(address, length, access)
        blind = cpu.data_watching_fails()
        fits = length in LENGTHS and address % length == 0 and not physical and not blind
        kind = "hardware" if fits and self.points.room() else "step"
        if kind == "step" and access == "access":
            if blind:
                raise LabError(f"reads at {address:#x} cannot be seen: {blind}")
            raise LabError(
                f"reads of {length} bytes at {address:#x} cannot be seen: a debug register takes "
                "1, 2, 4 or 8 aligned bytes of a linear address, and there are four of them"
            )
        point = Watchpoint(
            self, self.points.number(), address, kind, _condition(condition), temporary, ignore,
            length=length, access=access, physical=physical,
        )  # fmt: skip
        point.last = point.look()
        point.note = cpu.limits(self.machine, kind)
        self.points.add(point)
        return point

    # -- state -------------------------------------------------------------------------------------

    def registers(self) -> dict[str, int]:
        """General, segment (selectors, and bases as `fs_base`) and control registers by name."""
        return cpu.registers(self.vcpu)

    def set_register(self, name: str, value: int) -> None:
        """Sets one of `registers()`. Raises `LabError` for other names and values too large."""
        cpu.set_register(self.vcpu, name, value)

    def gpa(self, address: int) -> int | None:
        """The guest-physical address behind a linear one, or None where nothing is mapped."""
        return cpu.translate(self.machine, self.vcpu, address)

    def read(self, address: int, length: int) -> bytes:
        """Guest memory by linear address. Raises `LabError` naming the first byte not there."""
        return cpu.read(self.machine, self.vcpu, address, length, self.points.hide)

    def write(self, address: int, data: bytes) -> None:
        """Sets guest memory by linear address, whatever its page's rights are."""
        cpu.write(self.machine, self.vcpu, address, data)

    def read_physical(self, gpa: int, length: int) -> bytes:
        """Guest memory by guest-physical address."""
        return self.points.hide(gpa, self.machine.memory.read(gpa, length))

    def write_physical(self, gpa: int, data: bytes) -> None:
        """Sets guest memory by guest-physical address."""
        self.machine.memory.write(gpa, data)

    def peek(self, address: int, length: int, *, physical: bool = False) -> bytes:
        """As `read`, and empty where nothing is."""
        try:
            read = self.read_physical if physical else self.read
            return read(address, length)
        except PykvmError:
            return b""

    # -- the end -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Leaves the machine without breakpoints, to run on. Twice is harmless."""
        self._steering.close()
        self.points.all.clear()

    detach = close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Lab {self.machine!r}, {len(self.points.all)} points, {self.last}>"


_condition = condition
