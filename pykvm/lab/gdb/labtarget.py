"""The lab as a debuggee of GDB: `LabTarget` over a `pykvm.lab.Lab`.

GDB's addresses are linear, of the vCPU whose thread it has selected.
"""

from __future__ import annotations

from pykvm.errors import PykvmError
from pykvm.lab.gdb.descriptions import Arch, Description, describe
from pykvm.lab.gdb.registers import RegisterFile, has_avx
from pykvm.lab.gdb.target import (
    SIGINT,
    SIGSEGV,
    SIGTRAP,
    GdbError,
    How,
    Point,
    Resume,
    Stop,
)
from pykvm.typed import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu
    from pykvm.machine import Machine, RunResult
    from pykvm.machine.result import StopReason

_PAGE = 0x1000
_LMA = 1 << 10
_TOP = 1 << 64
_PLAIN = frozenset(("step", "breakpoint", "watchpoint", "interrupted"))


class Event(Protocol):
    """What the lab's run verbs return, as far as it matters here."""

    @property
    def kind(self) -> str:
        """ "step", "breakpoint", "watchpoint", "interrupted", "ended", "crashed" …"""

    @property
    def vcpu(self) -> int:
        """The vCPU that it happened on."""

    @property
    def rip(self) -> int:
        """Its RIP."""

    @property
    def detail(self) -> str:
        """What the user should know; often empty."""

    @property
    def breakpoint(self) -> Any:
        """What was hit."""

    @property
    def result(self) -> RunResult | None:
        """The run's result, once it has ended."""


class Lab(Protocol):
    """What is used of `pykvm.lab.Lab`. Addresses are guest-virtual, unless they say physical."""

    @property
    def machine(self) -> Machine:
        """The machine."""

    @property
    def vcpu(self) -> Vcpu:
        """The selected vCPU."""

    @property
    def symbols(self) -> Any:
        """Names: `resolve(where)`."""

    @property
    def recording(self) -> Any:
        """None, or what is recorded."""

    def select(self, index: int) -> object:
        """The vCPU that is meant from now on."""

    def reset(self) -> object:
        """The machine as after loading."""

    def step(self) -> Event:
        """One instruction of the selected vCPU."""

    def cont(self) -> Event:
        """All vCPUs, until something happens."""

    def interrupt(self) -> object:
        """From another thread: what runs is to stop."""

    def break_at(self, where: int, *, kind: str = "auto") -> Any:
        """A breakpoint; it has `delete()`."""

    def watch(self, where: int, length: int, *, access: str = "write") -> Any:
        """A watchpoint; it has `delete()`."""

    def read(self, gva: int, n: int) -> bytes:
        """Memory."""

    def write(self, gva: int, data: bytes) -> object:
        """Sets memory."""

    def read_physical(self, gpa: int, n: int) -> bytes:
        """Guest-physical memory."""

    def write_physical(self, gpa: int, data: bytes) -> object:
        """Sets guest-physical memory."""


class LabTarget:
    """A machine under the lab.

    `arch` fixes how GDB sees the CPUs; unless given, a new connection is told by what the image
    is and by the mode that the CPU is in. `reboot`: a guest that resets its machine starts again.
    """

    def __init__(self, lab: Lab, *, arch: Arch | None = None, reboot: bool = True) -> None:
        self.lab = lab
        self.machine: Machine = lab.machine
        self.arch = arch
        self.physical = False
        """Memory packets mean guest-physical addresses."""
        self.linear_pc = True
        """EIP is shown with CS.base added; see `RegisterFile`."""
        self.result: RunResult | None = None
        """How the guest ended, once it has."""
        self.snapshots: dict[str, Any] = {}
        self.killed = False
        self._reboot = reboot
        self._told = Arch.X86_64  # to the GDB that is connected
        self._points: dict[tuple[Point, int, int], Any] = {}
        self.stop = Stop(SIGTRAP, lab.vcpu.id)
        if self.machine.status == "crashed":
            self.stop = Stop(SIGSEGV, lab.vcpu.id, text=self._crash_text(), crashed=True)

    # -- what there is -------------------------------------------------------------------------

    @property
    def cpus(self) -> int:
        """vCPUs, which are GDB's threads 1 to n."""
        return len(self.machine.vcpus)

    @property
    def can_reverse(self) -> bool:
        """Whether a recording is on."""
        return self.lab.recording is not None

    def describe(self) -> Description:
        """The registers as a GDB that connects now is to see them."""
        vcpu = self.machine.vcpus[self.stop.cpu]
        self._told = self.arch or choose_arch(self.machine, vcpu)
        return describe(self._told, has_avx(vcpu))

    def cpu_text(self, cpu: int) -> str:
        """For `info threads`: `CPU#0 [halted] 64-bit, ring 0`."""
        vcpu = self.machine.vcpus[cpu]
        return f"CPU#{cpu} [{_activity(self.machine, vcpu)}] {mode_text(vcpu)}"

    def registers(self, cpu: int) -> RegisterFile:
        """A vCPU's registers."""
        return RegisterFile(self.machine.vcpus[cpu], self._told, linear_pc=self.linear_pc)

    # -- memory --------------------------------------------------------------------------------

    def read(self, cpu: int, address: int, length: int) -> bytes:
        """Bytes up to the first page that is not there. Raises `PykvmError` for none at all."""
        self.lab.select(cpu)
        read = self.lab.read_physical if self.physical else self.lab.read
        length = min(length, _TOP - address)
        out = bytearray()
        while length:
            piece = min(length, _PAGE - address % _PAGE)
            try:
                out += read(address, piece)
            except PykvmError:
                if not out:
                    raise
                break
            address += piece
            length -= piece
        return bytes(out)

    def write(self, cpu: int, address: int, data: bytes) -> None:
        """Writes bytes. Raises `PykvmError` where they cannot all be written."""
        if address + len(data) > _TOP:
            raise GdbError(f"{len(data)} bytes at {address:#x} go beyond the last address")
        self.lab.select(cpu)
        write = self.lab.write_physical if self.physical else self.lab.write
        write(address, data)

    # -- breakpoints ---------------------------------------------------------------------------

    def insert(self, cpu: int, point: Point, address: int, length: int) -> None:
        """A breakpoint or watchpoint. Raises `PykvmError` where the lab cannot set it."""
        key = point, address, length
        if key in self._points:
            return
        self.lab.select(cpu)
        if point is Point.SOFTWARE:
            self._points[key] = self.lab.break_at(address)
        elif point is Point.HARDWARE:
            self._points[key] = self.lab.break_at(address, kind="hardware")
        else:
            access = "write" if point is Point.WRITE else "access"
            self._points[key] = self.lab.watch(address, length, access=access)

    def remove(self, point: Point, address: int, length: int) -> None:
        """Takes one away."""
        found = self._points.pop((point, address, length), None)
        if found is not None:
            found.delete()

    def remove_all(self) -> None:
        """Takes away what GDB has set."""
        for found in self._points.values():
            found.delete()
        self._points.clear()

    # -- running -------------------------------------------------------------------------------

    def resume(self, resume: Resume) -> Stop:
        """Lets the guest go on; see `Target.resume`."""
        if self.stop.crashed or self.stop.exit_code is not None:
            return self.stop
        self.lab.select(resume.cpu)
        if resume.how is How.STEP_RANGE:
            event = self._step_range(resume)
        elif resume.how is How.STEP:
            event = self.lab.step()
        elif resume.how is How.STEP_BACK:
            event = self._recorded().step_back()
        elif resume.how is How.BACK:
            event = self._recorded().reverse_continue()
        elif resume.only and self.cpus > 1:
            raise GdbError("one vCPU alone can only be stepped; set scheduler-locking step")
        else:
            event = self.lab.cont()
            while self._restarts(event):
                event = self.lab.cont()
        self.stop = self._stop(event)
        return self.stop

    def _restarts(self, event: Event) -> bool:
        """A guest that resets its machine starts again, if it may."""
        if event.result is None or str(event.result.reason) != "reset" or not self._reboot:
            return False
        self.lab.reset()
        return True

    def _recorded(self) -> Any:
        """The lab, which can go back while it records."""
        if not self.can_reverse:
            raise GdbError("nothing is being recorded, so there is no way back")
        return self.lab

    def interrupt(self) -> None:
        """From another thread."""
        self.lab.interrupt()

    def _step_range(self, resume: Resume) -> Event:
        while True:
            event = self.lab.step()
            if str(event.kind) != "step" or event.detail:
                return event
            if not resume.start <= event.rip < resume.end:
                return event

    def _stop(self, event: Event) -> Stop:
        kind, cpu = str(event.kind), event.vcpu
        text = event.detail if kind not in _PLAIN or kind == "step" else ""
        if kind == "interrupted":
            return Stop(SIGINT, cpu)
        if kind in ("breakpoint", "watchpoint"):
            return Stop(SIGTRAP, cpu, self._reason(event), text)
        if kind in ("crashed", "exception"):
            self.result = event.result
            return Stop(SIGSEGV, cpu, text=self._crash_text(), crashed=True)
        if kind == "ended":
            return self._ended(event)
        return Stop(SIGTRAP, cpu, text=text)

    def _ended(self, event: Event) -> Stop:
        if self._restarts(event):  # by a step
            return Stop(SIGTRAP, text="the guest has reset the machine")
        self.result = event.result
        code = 0 if event.result is None else event.result.exit_code
        return Stop(SIGTRAP, event.vcpu, text=str(event), exit_code=code)

    def _reason(self, event: Event) -> str:
        """As it stands in a stop reply, for a point that GDB has set."""
        hit = event.breakpoint
        for (point, address, _), found in self._points.items():
            if found is hit:
                if point is Point.SOFTWARE:
                    return "swbreak:"
                if point is Point.HARDWARE:
                    return "hwbreak:"
                word = {Point.WRITE: "watch", Point.READ: "rwatch", Point.ACCESS: "awatch"}[point]
                return f"{word}:{address:x}"
        return ""

    def _crash_text(self) -> str:
        return f"the guest crashed: {self.machine.crash_reason}"

    def reset(self) -> None:
        """The machine as it was after loading."""
        self.lab.reset()
        self.result = None
        self.stop = Stop(SIGTRAP)

    def take_snapshot(self, name: str) -> None:
        """Keeps the machine as it is now, under a name."""
        self.snapshots[name] = self.machine.snapshot(), self.stop

    def restore_snapshot(self, name: str) -> None:
        """Goes back to what `take_snapshot` kept."""
        snapshot, stop = self.snapshots[name]
        self.machine.restore(snapshot)
        self.stop = stop

    def end_result(self, reason: StopReason) -> RunResult:
        """How the run ended; with `reason` if somebody ended it before the guest did."""
        if self.result is not None:
            return self.result
        from pykvm.machine.result import Outcome, RunResult

        result = RunResult(Outcome(reason, 0), 0.0, self.machine.exit_counts())
        if self.machine.standard is not None:
            result.serial = self.machine.standard.captured.since(0)
            result.debugcon = self.machine.standard.debugcon_captured.since(0)
        return result

    def monitor(self, cpu: int, line: str) -> str:
        """A `monitor` command."""
        from pykvm.lab.gdb.monitor import run

        self.lab.select(cpu)
        return run(self, cpu, line)


def choose_arch(machine: Machine, vcpu: Vcpu) -> Arch:
    """How GDB is to see a CPU that is in this mode and runs this image.

    64-bit where it is in long mode, or where the image will get it there: then GDB has a 64-bit
    file. A GDB that was told i8086 or i386 has to connect anew when the guest has gone on to
    long mode; its register packets have one shape for a connection.
    """
    image = machine.image
    head = bytes(image.sources[0].data[:5]) if image is not None and image.sources else b""
    is_elf = head[:4] == b"\x7fELF"
    if vcpu.sregs.efer & _LMA or (image is not None and image.mode == "long"):
        return Arch.X86_64
    if is_elf:
        return Arch.X86_64 if head[4] == 2 else Arch.I386
    return Arch.I386 if vcpu.sregs.cr0 & 1 else Arch.I8086


def mode_text(vcpu: Vcpu) -> str:
    """The mode that a vCPU is in: `64-bit, ring 3`."""
    sregs = vcpu.sregs
    if not sregs.cr0 & 1:
        return "real mode"
    bits = 64 if sregs.efer & _LMA and sregs.cs.l else 32 if sregs.cs.db else 16
    return f"{bits}-bit, ring {sregs.ss.dpl}"


def _activity(machine: Machine, vcpu: Vcpu) -> str:
    if machine.irqchip == "none":
        return str(machine.status)
    state = vcpu.get_mp_state()
    return str(getattr(state, "name", state)).lower().replace("_", " ")
