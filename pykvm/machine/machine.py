"""`Machine`: VM, vCPUs, memory, buses and devices put together, and their life."""

from __future__ import annotations

import os
import threading
from types import TracebackType

from pykvm.bus import MmioBus, PioBus
from pykvm.kvm import Kvm
from pykvm.machine.attached import Irqchip
from pykvm.machine.boards import make_board, parts
from pykvm.machine.control import Control
from pykvm.machine.irq import Wiring
from pykvm.machine.result import MachineError, Status
from pykvm.machine.running import Running
from pykvm.machine.sizes import memory_size
from pykvm.machine.unclaimed import POLICIES, Policy, Unclaimed
from pykvm.typed import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pykvm.boot import LoadedImage
    from pykvm.machine.snapshot import Snapshot

MAX_CPUS = 64
RECENT_EXITS = 64  # exits kept for crash reports


class Machine(Running):
    """A virtual machine with its devices.

    - `memory`: guest RAM, "64M" or bytes; RAM above 3 GiB continues at 4 GiB.
    - `cpus`: 1 to 64 vCPUs; more than one needs an irqchip (INIT-SIPI goes through the LAPIC).
    - `board`: "microvm" (serial port, debug devices; disks are virtio-mmio), "pc" (PCI, ACPI,
      legacy devices) or "bare" (nothing but what you add). See `pykvm.machine.boards`.
    - `irqchip`: "kernel" (PIC, IOAPIC, LAPIC and PIT in KVM), "split" (LAPIC in KVM, the others
      in this process) or "none"; unless given, "none" on a bare board, else "kernel".
    - `serial`: a `pykvm.devices.chardev` back end, or a callable that takes bytes, for COM1;
      output is also kept for `RunResult.serial`.
    - `debugcon`: the same for the debug console at port 0xe9 (output only).
    - `unclaimed`: what an access that nobody owns does: "ones" (reads all-ones, writes go
      nowhere, as on a PC bus), "ignore" (reads 0), "log" (as "ones", and logged), or "stop".
    - `trace`: entries of the trace ring per vCPU (a power of two); 64 recent exits are always
      kept for reports.
    - `huge_pages`: "2M", "1G" or "thp" for guest RAM.
    - `devices`: False leaves out COM1, debug-exit, debugcon and the POST port.
    - `triple_fault`: "stop" reports it as a crash, "reset" takes it as the reset that it is on a
      PC; "auto" does so if a Linux command line asks for it (`reboot=t`).
    - `cpu`: a CPU model with wishes, "host,-avx2" (models: host, portable, minimal; see
      `pykvm.arch.cpumodel`). Unless given, small guests see what the host's KVM supports, and
      kernels the model "host". `topology`: "sockets=1,cores=2,threads=2"; one socket of cores
      unless given.
    - `acpi`: False leaves the ACPI tables out.
    - `assist`: "off" lets an instruction that KVM's emulator refuses end the run; "auto" and "on"
      complete it in user space (`pykvm.machine.assist`), at no cost until there is one.

    Raises `KvmUnavailable` without a usable /dev/kvm, `MachineError` for impossible arguments.
    """

    def __init__(
        self,
        memory: str | int = "64M",
        cpus: int = 1,
        *,
        board: str = "microvm",
        irqchip: Irqchip | None = None,
        serial: Any = None,
        debugcon: Any = None,
        unclaimed: Policy = "ones",
        trace: int = 0,
        huge_pages: str | None = None,
        devices: bool = True,
        triple_fault: Literal["auto", "stop", "reset"] = "auto",
        acpi: bool = True,
        assist: Literal["auto", "on", "off"] = "auto",
        cpu: str | None = None,
        topology: str = "",
        kvm: Kvm | None = None,
    ) -> None:
        size = self._memory_size = memory_size(memory)
        if not 1 <= cpus <= MAX_CPUS:
            raise MachineError(f"{cpus} vCPUs are not possible; choose 1 to {MAX_CPUS}")
        self.board = make_board(self, board)
        self.irqchip: Irqchip = irqchip or self.board.default_irqchip
        if self.irqchip not in ("kernel", "split", "none"):
            raise MachineError(
                f'irqchip {irqchip!r} does not exist; use "kernel", "split" or "none"'
            )
        if cpus > 1 and self.irqchip == "none":
            raise MachineError(
                f'{cpus} vCPUs need an interrupt controller to start; use irqchip="kernel"'
            )
        if board == "pc" and not devices:
            raise MachineError('a pc board without devices is none; use board="bare"')
        if unclaimed not in POLICIES:
            raise MachineError(
                f"unclaimed={unclaimed!r} is not a policy; use ones, ignore, log or stop"
            )
        if triple_fault not in ("auto", "stop", "reset"):
            raise MachineError(f"triple_fault={triple_fault!r} is not auto, stop or reset")
        self.triple_fault = triple_fault
        if assist not in ("auto", "on", "off"):
            raise MachineError(f"assist={assist!r} is not auto, on or off")
        self.assist_mode = assist
        self.cmdline = ""
        self.acpi = acpi
        self.unclaimed = Unclaimed(unclaimed)
        self.exit_handlers = {}
        self.crash_reason = ""
        self.image = None
        self.on_trace = None
        self._status = Status.EMPTY
        self._owns_kvm = kvm is None
        self._thread = None
        self._result = None
        self._failure = None
        self._running = threading.Lock()
        self._local = threading.local()
        self.devices = []
        self.virtio_mmio = []
        self.virtio = []
        self.io_threads = []
        self.standard = None
        self.chips = None
        self.cpus = None
        self.reset_image = None
        self.has_run = False
        self.vcpus = []
        self.kvm = kvm or Kvm()
        try:
            self.vm = self.kvm.create_vm()
            self.memory = parts.add_ram(self.vm, size, huge_pages, vga_window=self.board.vga_window)
            parts.add_irqchip(self.vm, self.irqchip, cpus)
            lock = threading.RLock() if cpus > 1 else None
            self.pio = PioBus(self.unclaimed.access, lock)
            self.mmio = MmioBus(self.unclaimed.access, lock)
            self.wiring = self._wiring()
            self.cpu_spec = cpu, topology
            if cpu is not None or topology or self.board.name == "pc":
                self._choose_cpu(cpus)
            self.vcpus = parts.make_vcpus(self.vm, cpus, self.kvm, self.cpus)
            self._prepare_assist(assist)
            for vcpu in self.vcpus:
                vcpu.enable_trace(trace or RECENT_EXITS, lossless=bool(trace))
            self.control = Control(self.vcpus)
            if self.chips is not None:
                self.chips.populate()
            if devices:
                self.board.populate(serial, debugcon)
        except BaseException:
            self.close()
            raise

    def _wiring(self) -> Wiring:
        if self.irqchip == "kernel":
            return Wiring(self.vm.irq_line)
        if self.irqchip == "none" or self.board.name == "bare":
            return Wiring(None)
        from pykvm.machine.userchips import UserChips

        self.chips = UserChips(self)
        return Wiring(self.chips.drive)

    def _choose_cpu(self, count: int) -> None:
        from pykvm.machine.cpus import Cpus

        model, topology = self.cpu_spec
        self.cpus = Cpus(self.kvm, count, model or "host", topology, self.irqchip != "none")
        self.cpus.set_policy(self.vm)

    def use_cpu_model(self) -> None:
        """For `load()`: vCPUs that have not run yet get the CPU model, if they have none."""
        if self.cpus is None and not self.vcpus_have_run:
            self._choose_cpu(len(self.vcpus))
            assert self.cpus is not None
            for vcpu in self.vcpus:
                self.cpus.apply(vcpu)
            self.reset_image = None

    # -- contents ------------------------------------------------------------------------------

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
        initrd: str | os.PathLike[str] | bytes | None = None,
        fast_boot: bool = False,
        protocol: str = "auto",
        boot_menu: bool = False,
        boot_order: Sequence[str] | None = None,
        serial_console: bool = True,
        kernel: str | os.PathLike[str] | bytes | None = None,
    ) -> LoadedImage:
        """Puts an image into guest memory and its entry state into vCPU 0.

        `image` is a path, the bytes themselves, or the name of a guest that pykvm ships
        ("hello64"). The format is found by looking. `load` and `entry` are guest-physical
        addresses for flat images, `mode` is "real", "protected" or "long". For kernels:
        `cmdline`, `initrd` (a path or bytes), `modules`; `fast_boot` unpacks a compressed Linux
        on the host, `protocol` chooses its entry ("auto", "64", "32", "16", "pvh").

        Firmware (`load("seabios", format="firmware")`, or a path; pc board) finds the disks that
        were added; `boot_menu` makes it ask, `boot_order` are Open Firmware paths, best first,
        `serial_console` lets SeaBIOS show its screen on COM1, too; a Linux `kernel` (with `initrd`
        and `cmdline`) is what it starts first. Raises `ImageError`, `MachineError`.
        """
        from pykvm.machine.loading import load_into

        self._check_usable("load an image")
        self.image = load_into(
            self, image, load=load, entry=entry, mode=mode, format=format,
            modules=tuple(modules), cmdline=cmdline, initrd=initrd, fast_boot=fast_boot,
            protocol=protocol, boot_menu=boot_menu, boot_order=boot_order,
            serial_console=serial_console, kernel=kernel,
        )  # fmt: skip
        self._status = Status.READY
        return self.image

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

    # -- snapshots -----------------------------------------------------------------------------

    def snapshot(self, *, disks: Literal["refuse", "ignore"] = "refuse") -> Snapshot:
        """Everything of the machine at this moment, for `restore()`: docs/snapshots.md.

        Between runs, while paused, or from another thread during a run, which stands still
        meanwhile. A disk that is written in place cannot be put back: that is refused unless
        `disks` is "ignore". Raises `SnapshotError`.
        """
        from pykvm.machine.snapshot.operate import take

        return take(self, disks)

    def restore(self, snapshot: Snapshot, *, verify: bool = False) -> None:
        """The machine is as it was when `snapshot` was taken; a crashed one can run again.

        From where `snapshot()` can be called. `last_restore` has the times. `verify` compares
        everything afterwards (slow). Raises `SnapshotError`.
        """
        from pykvm.machine.snapshot.operate import restore

        restore(self, snapshot, verify=verify)

    @classmethod
    def from_snapshot(
        cls,
        path: str | os.PathLike[str],
        prepare: Callable[[Machine], object] | None = None,
        *,
        lazy: bool = False,
        **options: Any,
    ) -> Machine:
        """A machine made as the file says, in the state that it says.

        `prepare(machine)` adds the disks, devices and handlers that the one before had, in the same
        order; `options` are this class's for what a file cannot keep (`serial`, `debugcon`).
        `lazy` as for `Snapshot.load`. Raises `SnapshotError`.
        """
        from pykvm.machine.snapshot.make import make_machine

        return make_machine(cls, path, prepare, lazy, options)

    # -- life --------------------------------------------------------------------------------------

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
        for io_thread in self.io_threads:
            io_thread.stop()
        if self._clock is not None:
            self._clock.close()
        if self.assist is not None:
            self.assist.close()
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
