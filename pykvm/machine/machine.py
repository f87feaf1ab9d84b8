"""`Machine`: VM, vCPUs, memory, buses and devices put together, and their life."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from pykvm.bus import BusDevice, MmioBus, PioBus, Range
from pykvm.kvm import Kvm, Vcpu
from pykvm.machine import board
from pykvm.machine.control import Control
from pykvm.machine.loop import drive
from pykvm.machine.result import (
    MachineError,
    Outcome,
    RunResult,
    Status,
    Stop,
    StopReason,
)
from pykvm.machine.sizes import memory_size
from pykvm.machine.unclaimed import POLICIES, Policy, Unclaimed
from pykvm.memory import GuestMemory
from pykvm.typed import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from pykvm.boot import LoadedImage
    from pykvm.kvm.accounting import TraceRecord
    from pykvm.kvm.exits import Exit
    from pykvm.machine.hooks import Handler, Hook
    from pykvm.machine.vcpu_reset import ResetImage

Irqchip = Literal["kernel", "split", "none"]
HOOK_LAYER = 1  # handlers cover devices
MAX_CPUS = 64
RECENT_EXITS = 64  # exits kept for crash reports


class Machine:
    """A virtual machine with its devices.

    - `memory`: guest RAM, "64M" or bytes; RAM above 3 GiB continues at 4 GiB.
    - `cpus`: 1 to 64 vCPUs; more than one needs an irqchip (INIT-SIPI goes through the LAPIC).
    - `irqchip`: "kernel" (PIC, IOAPIC, LAPIC and PIT in KVM), "split" (LAPIC only) or "none".
    - `serial`: a `pykvm.devices.chardev` back end, or a callable that takes bytes, for COM1;
      output is also kept for `RunResult.serial`.
    - `debugcon`: the same for the debug console at port 0xe9 (output only).
    - `unclaimed`: what an access that nobody owns does: "ones" (reads all-ones, writes go
      nowhere, as on a PC bus), "ignore" (reads 0), "log" (as "ones", and logged), or "stop".
    - `trace`: entries of the trace ring per vCPU (a power of two); 64 recent exits are always
      kept for reports.
    - `huge_pages`: "2M", "1G" or "thp" for guest RAM.
    - `devices`: False leaves out COM1, debug-exit, debugcon and the POST port.

    Raises `KvmUnavailable` without a usable /dev/kvm, `MachineError` for impossible arguments.
    """

    def __init__(
        self,
        memory: str | int = "64M",
        cpus: int = 1,
        *,
        irqchip: Irqchip = "kernel",
        serial: Any = None,
        debugcon: Any = None,
        unclaimed: Policy = "ones",
        trace: int = 0,
        huge_pages: str | None = None,
        devices: bool = True,
        kvm: Kvm | None = None,
    ) -> None:
        size = memory_size(memory)
        if not 1 <= cpus <= MAX_CPUS:
            raise MachineError(f"{cpus} vCPUs are not possible; choose 1 to {MAX_CPUS}")
        if irqchip not in ("kernel", "split", "none"):
            raise MachineError(
                f'irqchip {irqchip!r} does not exist; use "kernel", "split" or "none"'
            )
        if cpus > 1 and irqchip == "none":
            raise MachineError(
                f'{cpus} vCPUs need an interrupt controller to start; use irqchip="kernel"'
            )
        if unclaimed not in POLICIES:
            raise MachineError(
                f"unclaimed={unclaimed!r} is not a policy; use ones, ignore, log or stop"
            )
        self.irqchip: Irqchip = irqchip
        self.unclaimed = Unclaimed(unclaimed)
        self.exit_handlers: dict[int, Callable[[Exit], bool]] = {}
        self.crash_reason = ""
        self.image: LoadedImage | None = None
        self.on_trace: Callable[[list[TraceRecord]], None] | None = None
        self._status = Status.EMPTY
        self._owns_kvm = kvm is None
        self._thread: threading.Thread | None = None
        self._result: RunResult | None = None
        self._failure: BaseException | None = None
        self._running = threading.Lock()
        self._local = threading.local()
        self.devices: list[Any] = []
        self.reset_image: ResetImage | None = None
        self.has_run = False
        self.vcpus: list[Vcpu] = []
        self.kvm = kvm or Kvm()
        try:
            self.vm = self.kvm.create_vm()
            self.memory: GuestMemory = board.add_ram(self.vm, size, huge_pages)
            board.add_irqchip(self.vm, irqchip)
            lock = threading.RLock() if cpus > 1 else None
            self.pio = PioBus(self.unclaimed.access, lock)
            self.mmio = MmioBus(self.unclaimed.access, lock)
            self.vcpus = board.make_vcpus(self.vm, cpus, self.kvm)
            for vcpu in self.vcpus:
                vcpu.enable_trace(trace or RECENT_EXITS, lossless=bool(trace))
            self.control = Control(self.vcpus)
            self.standard: board.Standard | None = None
            if devices:
                self.standard = board.add_standard_devices(self, serial, debugcon)
        except BaseException:
            self.close()
            raise

    # -- contents ------------------------------------------------------------------------------

    @property
    def memory_size(self) -> int:
        """Guest RAM in bytes."""
        return sum(r.size for r in self.memory.regions)

    @property
    def serial(self) -> Any:
        """COM1, a `Uart16550`. Raises `MachineError` on a machine without devices."""
        if self.standard is None:
            raise MachineError("this machine was made with devices=False and has no serial port")
        return self.standard.uart

    @property
    def unclaimed_counts(self) -> dict[tuple[str, int], int]:
        """Accesses that nobody owned, by (bus, address)."""
        return self.unclaimed.counts

    @property
    def post_codes(self) -> list[tuple[int, int]]:
        """What was written to the POST port 0x80, oldest first: (ns since power-on, code)."""
        return [] if self.standard is None else self.standard.post.codes

    @property
    def current_vcpu(self) -> Vcpu:
        """The vCPU whose exit the calling thread is handling."""
        vcpu: Vcpu | None = getattr(self._local, "vcpu", None)
        if vcpu is None:
            raise MachineError("no vCPU is being handled in this thread; ask inside a handler")
        return vcpu

    def load(
        self,
        image: str | os.PathLike[str] | bytes,
        *,
        load: int | None = None,
        entry: int | None = None,
        mode: str | None = None,
        format: str = "auto",
        modules: tuple[Any, ...] | list[Any] = (),
        cmdline: str = "",
    ) -> LoadedImage:
        """Puts an image into guest memory and its entry state into vCPU 0.

        `image` is a path, the bytes themselves, or the name of a guest that pykvm ships
        ("hello64"). The format is found by looking. `load` and `entry` are guest-physical
        addresses for flat images, `mode` is "real", "protected" or "long". Raises `ImageError`.
        """
        from pykvm.machine.loading import load_into

        self._check_usable("load an image")
        self.image = load_into(
            self, image, load=load, entry=entry, mode=mode, format=format,
            modules=tuple(modules), cmdline=cmdline,
        )  # fmt: skip
        self._status = Status.READY
        return self.image

    def on_pio(self, port: int, size: int | None = None) -> Callable[[Handler], Hook]:
        """Decorator: the function handles `size` ports from `port`.

        Without `size` it gets every access that starts at `port`, of any width. With it, wider
        or straddling accesses are split at the border. Handlers cover devices, not each other.
        """

        def register(function: Handler) -> Hook:
            from pykvm.machine.hooks import Hook

            hook = Hook(self, "pio", port, function)
            read, write = hook.callables()
            hook.range = self.pio.add(
                hook.__name__, port, size or 1, read, write,
                layer=HOOK_LAYER, device=hook, any_width=size is None,
            )  # fmt: skip
            return hook

        return register

    def on_mmio(self, gpa: int, length: int) -> Callable[[Handler], Hook]:
        """Decorator: the function handles `length` bytes from guest-physical `gpa`.

        The range must not be backed by memory. KVM splits accesses at page borders, so sizes of
        1 to 8 bytes, also odd ones, arrive.
        """
        for overlap in self.memory.regions:
            if not (gpa < overlap.end and overlap.gpa < gpa + length):
                continue
            raise MachineError(
                f"{gpa:#x} + {length:#x} is guest RAM ({overlap.gpa:#x}..{overlap.end - 1:#x}), "
                "which never exits; choose an address above it"
            )

        def register(function: Handler) -> Hook:
            from pykvm.machine.hooks import Hook

            hook = Hook(self, "mmio", gpa, function)
            read, write = hook.callables()
            hook.range = self.mmio.add(
                hook.__name__, gpa, length, read, write, layer=HOOK_LAYER, device=hook
            )
            return hook

        return register

    def on_exit(self, reason: int, handler: Callable[[Exit], bool]) -> None:
        """`handler(exit)` sees exits of a `KVM_EXIT_*` number first; True means it is done."""
        self.exit_handlers[reason] = handler

    def add_device(
        self,
        device: BusDevice,
        *,
        pio: int | None = None,
        mmio: int | None = None,
        length: int = 1,
        irq: int | None = None,
    ) -> Range:
        """Puts a device on the port or the MMIO bus, and connects its interrupt to GSI `irq`."""
        if (pio is None) == (mmio is None):
            raise MachineError(f"say where {device.name} goes: either pio=PORT or mmio=ADDRESS")
        if irq is not None:
            if not hasattr(device, "irq"):
                raise MachineError(f"{device.name} has no interrupt; leave out irq={irq}")
            device.irq = board.line(self, irq)
        if pio is not None:
            claimed = self.pio.add_device(device, pio, length)
        else:
            assert mmio is not None
            claimed = self.mmio.add_device(device, mmio, length)
        self.devices.append(device)
        return claimed

    # -- running ---------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """What the machine is doing; a crashed one says so until it is reset or restored."""
        if self._status is Status.RUNNING and self.control.pausing:
            return Status.PAUSED
        return self._status

    def run(self, timeout: float | None = None) -> RunResult:
        """Runs the guest in this thread (and one per vCPU when there are several) until it stops.

        `timeout` is in seconds. An exception in a handler stops every vCPU, keeps the exit as
        `exception.exit`, and is raised here; so is `KeyboardInterrupt`. Raises `MachineError` on
        a crashed, closed or already running machine.
        """
        self._check_usable("run")
        if timeout is not None and timeout < 0:
            raise MachineError(f"timeout={timeout} is negative; use None for no limit")
        if not self._running.acquire(blocking=False):
            raise MachineError("the machine is running already; stop() it first")
        try:
            self._status = Status.RUNNING
            self.has_run = True
            started = time.monotonic()
            marks = self._output_marks()
            try:
                outcome = self._run_vcpus(timeout)
            except BaseException:
                self._status = Status.READY
                raise
            elapsed = time.monotonic() - started
            return self._finish(outcome, elapsed, marks)
        finally:
            self.control.begin()
            self._running.release()

    def _run_vcpus(self, timeout: float | None) -> Outcome:
        from pykvm.machine import threads

        if timeout is not None and timeout == 0:
            return Outcome(StopReason.TIMEOUT, 0)
        if len(self.vcpus) == 1:
            return threads.run_here(self, self.vcpus[0], timeout)
        return threads.run_many(self, timeout)

    def _finish(self, outcome: Outcome, elapsed: float, marks: tuple[int, int]) -> RunResult:
        reason = outcome.reason
        result = RunResult(outcome, elapsed, self.exit_counts())
        if self.standard is not None:
            result.serial = self.standard.captured.since(marks[0])
            result.debugcon = self.standard.debugcon_captured.since(marks[1])
        if reason.is_crash:
            from pykvm.machine.report import crash_report

            self._status = Status.CRASHED
            self.crash_reason = outcome.detail or str(reason)
            result.last_exits = self.vcpus[outcome.vcpu].last_exits()
            if reason is not StopReason.HANDLER_ERROR:
                result.report = crash_report(self, outcome, result.last_exits)
        else:
            ended = reason in (StopReason.HALTED, StopReason.POWER_OFF, StopReason.RESET)
            self._status = Status.HALTED if ended else Status.READY
        self._result = result
        if outcome.exception is not None and reason is StopReason.HANDLER_ERROR:
            raise outcome.exception
        return result

    def drive_vcpu(self, vcpu: Vcpu) -> Outcome:
        """One vCPU's loop in the calling thread."""
        self._local.vcpu = vcpu
        try:
            return drive(self, vcpu)
        finally:
            self._local.vcpu = None

    def start(self, timeout: float | None = None) -> None:
        """Runs the guest in the background; see `wait()`, `pause()`, `stop()`."""
        self._check_usable("start")
        if self._thread is not None:
            raise MachineError("the machine was started already; wait() for it first")
        self._result = self._failure = None

        def body() -> None:
            try:
                self.run(timeout)
            except BaseException as error:
                self._failure = error

        self._status = Status.RUNNING
        self._thread = threading.Thread(target=body, name="pykvm-run", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> RunResult | None:
        """Waits for a started run; None if it still runs after `timeout` seconds.

        Raises what the run raised.
        """
        thread = self._thread
        if thread is None:
            raise MachineError("the machine was not started; call start() or run()")
        thread.join(timeout)
        if thread.is_alive():
            return None
        self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return self._result

    def stop(self) -> None:
        """Ends the run, from any thread or handler; it returns with reason "stopped".

        Between runs it is remembered: the next run returns at once, so that no stop is lost.
        """
        self.control.post(Outcome(StopReason.STOPPED, 0))

    def pause(self) -> None:
        """Parks every vCPU at a clean point: outside the guest, with no exit half-handled."""
        self._check_open()
        if self._status is Status.RUNNING:
            self.control.pause()

    def resume(self) -> None:
        """Lets a paused machine go on."""
        self._check_open()
        self.control.resume()

    def request_stop(self, reason: StopReason, value: int | None = None, detail: str = "") -> None:
        """For devices: ends the run. Raises `Stop` in a vCPU's thread; posts it from others."""
        vcpu = getattr(self._local, "vcpu", None)
        if vcpu is not None:
            raise Stop(reason, value, detail)
        self.control.post(Outcome(reason, 0, value, detail))

    def reset(self) -> None:
        """Back to how it was after `load()`: RAM, vCPUs, interrupt controllers, devices."""
        from pykvm.machine.vcpu_reset import reset_machine

        self._check_open()
        if not self._running.acquire(blocking=False):
            raise MachineError("the machine is running; stop() it before reset()")
        try:
            reset_machine(self)
            self.crash_reason = ""
            self._status = Status.READY if self.image is not None else Status.EMPTY
        finally:
            self._running.release()

    # -- what the loop calls ---------------------------------------------------------------------

    def drain_trace(self, vcpu: Vcpu) -> None:
        """A lossless trace ring is full: its records go to `on_trace`."""
        records = vcpu.trace_records()
        if self.on_trace is not None:
            self.on_trace(records)

    def drain_coalesced(self) -> None:
        """Writes that KVM batched happen before the exit that came after them."""
        for access in self.vm.drain_coalesced():
            bus = self.pio if access.is_pio else self.mmio
            bus.write(access.address, len(access.data), int.from_bytes(access.data, "little"))

    # -- statistics --------------------------------------------------------------------------------

    def exit_counts(self) -> dict[str, int]:
        """Exits by `KVM_EXIT_*` name over all vCPUs."""
        total: dict[str, int] = {}
        for vcpu in self.vcpus:
            for name, n in vcpu.exit_counts().items():
                total[name] = total.get(name, 0) + n
        return total

    def _output_marks(self) -> tuple[int, int]:
        if self.standard is None:
            return 0, 0
        return self.standard.captured.total, self.standard.debugcon_captured.total

    # -- life --------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._status is Status.CLOSED:
            raise MachineError("the machine is closed; make a new one")

    def _check_usable(self, what: str) -> None:
        self._check_open()
        if self._status is Status.CRASHED:
            raise MachineError(
                f"cannot {what}: the machine crashed ({self.crash_reason}); reset() or restore() it"
            )

    def close(self) -> None:
        """Stops the guest, gives back every fd, thread and mapping. Twice is harmless."""
        if self._status is Status.CLOSED:
            return
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self.control.resume()
            self.stop()
            thread.join()
            self._thread = None
        self._status = Status.CLOSED
        for device in reversed(self.devices):
            close = getattr(device, "close", None)
            if close is not None:
                close()
        self.devices.clear()
        if hasattr(self, "vm"):
            self.vm.close()
        if hasattr(self, "memory"):
            self.memory.close()
        if self._owns_kvm and hasattr(self, "kvm"):
            self.kvm.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._status is Status.CLOSED:
            return "<Machine closed>"
        return f"<Machine {self.memory_size >> 20}M, {len(self.vcpus)} vCPU, {self.status}>"
