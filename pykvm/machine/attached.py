"""What is on a machine: its parts by name, handlers, and devices that are added."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from pykvm.bus import BusDevice, MmioBus, PioBus, Range
from pykvm.kvm import Kvm, Vcpu, Vm
from pykvm.machine.extras import Extras
from pykvm.machine.irq import Wiring
from pykvm.machine.result import MachineError, RunResult, Status
from pykvm.machine.unclaimed import Unclaimed
from pykvm.memory import GuestMemory
from pykvm.typed import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    import os

    from pykvm.boot import LoadedImage
    from pykvm.datapath.loop import IoThread
    from pykvm.devices.block import BlockBackend
    from pykvm.devices.block.backend import Cache
    from pykvm.devices.clock import MonotonicClock
    from pykvm.devices.display import Screen
    from pykvm.devices.net.backend import NetBackend
    from pykvm.devices.pc import I8042, AcpiPm
    from pykvm.devices.virtio import VirtioDevice, VirtioMmio, VirtioPci
    from pykvm.devices.virtio.device import Queues
    from pykvm.devices.virtio.net import VirtioNet
    from pykvm.kvm.accounting import TraceRecord
    from pykvm.kvm.exits import Exit
    from pykvm.machine.assist import Assist
    from pykvm.machine.boards import Board
    from pykvm.machine.boards.standard import Standard
    from pykvm.machine.control import Control
    from pykvm.machine.cpus import Cpus
    from pykvm.machine.debugging import Debugger
    from pykvm.machine.disks import Interface
    from pykvm.machine.firmware import Roms
    from pykvm.machine.hooks import Handler, Hook
    from pykvm.machine.machine import Machine
    from pykvm.machine.routes import Routes
    from pykvm.machine.shares import ShareKind
    from pykvm.machine.snapshot import Restored
    from pykvm.machine.snapshot.operate import Keeper
    from pykvm.machine.userchips import UserChips
    from pykvm.machine.vcpu_reset import ResetImage
    from pykvm.machine.virtio import TransportKind
    from pykvm.machine.windows import InterruptWindows

Irqchip = Literal["kernel", "split", "none"]
HOOK_LAYER = 1  # handlers cover devices


class Attached(Extras):
    """The parts of a machine, and putting more on it. `Machine` is made of this."""

    kvm: Kvm
    vm: Vm
    vcpus: list[Vcpu]
    memory: GuestMemory
    pio: PioBus
    mmio: MmioBus
    wiring: Wiring
    board: Board
    standard: Standard | None
    devices: list[Any]
    irqchip: Irqchip
    cpus: Cpus | None
    """The CPU model; None while the vCPUs show what the host's KVM supports."""
    cmdline: str
    triple_fault: str
    acpi: bool
    assist: Assist | None = None
    """What completed refused instructions, once there was one; see `assist.counts`."""
    assist_mode: str = "auto"

    unclaimed: Unclaimed
    image: LoadedImage | None
    exit_handlers: dict[int, Callable[[Exit], bool]]
    debugger: Debugger | None = None
    """Whoever sees every exit while it steers the run; the lab. None costs nothing."""
    on_trace: Callable[[list[TraceRecord]], None] | None
    control: Control
    crash_reason: str
    reset_image: ResetImage | None
    has_run: bool
    _status: Status
    _local: threading.local
    _memory_size: int
    _thread: threading.Thread | None
    _result: RunResult | None
    _failure: BaseException | None
    _running: threading.Lock
    keeper: Keeper | None = None
    """What snapshots need, from the first one on."""
    last_restore: Restored | None = None
    """Times and pages of the last `restore()`."""
    _roms: Roms | None = None
    _clock: MonotonicClock | None = None
    _screen: Screen | None = None
    interrupt_windows = False
    """Whether real-mode code that polls is stepped through for its interrupts (experimental)."""
    windows: InterruptWindows | None = None
    chips: UserChips | None
    """PIC, IOAPIC and PIT, where they are not KVM's (irqchip="split")."""
    virtio_mmio: list[tuple[int, int]]
    """virtio-mmio devices: (guest-physical address, GSI)."""
    virtio: list[VirtioDevice]
    """All virtio devices, on whatever transport."""
    io_threads: list[IoThread]
    """Threads that work for devices; they pause and end with the machine."""
    _io_thread: IoThread | None = None
    _routes: Routes | None = None

    def _prepare_assist(self, mode: str) -> None:
        """Refused instructions shall exit; with "on" ring 3 is watched from the start."""
        if mode == "off":
            return
        if self.vm.check_extension("KVM_CAP_EXIT_ON_EMULATION_FAILURE"):
            self.vm.exit_on_emulation_failure()  # ring 3's too
        if mode == "on":
            from pykvm.machine.assist import Assist

            self.assist = Assist(self.whole)

    @property
    def whole(self) -> Machine:
        """This machine, as type checkers shall see it in here."""
        return cast("Machine", self)

    @property
    def memory_size(self) -> int:
        """Guest RAM in bytes, as it was asked for; a PC's VGA window hides 128 KiB of it."""
        return self._memory_size

    @property
    def serial(self) -> Any:
        """COM1, a `Uart16550`. Raises `MachineError` on a machine without devices."""
        if self.standard is None:
            raise MachineError(
                "this machine has no serial port: it is bare, or was made with devices=False"
            )
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

    def on_pio(self, port: int, size: int | None = None) -> Callable[[Handler], Hook]:
        """Decorator: the function handles `size` ports from `port`.

        Without `size` it gets every access that starts at `port`, of any width. With it, wider
        or straddling accesses are split at the border. Handlers cover devices, not each other.
        """

        def register(function: Handler) -> Hook:
            from pykvm.machine.hooks import Hook

            hook = Hook(self.whole, "pio", port, function)
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

            hook = Hook(self.whole, "mmio", gpa, function)
            read, write = hook.callables()
            hook.range = self.mmio.add(
                hook.__name__, gpa, length, read, write, layer=HOOK_LAYER, device=hook
            )
            return hook

        return register

    def on_exit(self, reason: int, handler: Callable[[Exit], bool]) -> None:
        """`handler(exit)` sees exits of a `KVM_EXIT_*` number first; True means it is done."""
        self.exit_handlers[reason] = handler

    @property
    def handling(self) -> Vcpu | None:
        """The vCPU whose loop the calling thread is in, if any."""
        return getattr(self._local, "vcpu", None)

    @property
    def clock(self) -> MonotonicClock:
        """The clock of this machine's devices."""
        if self._clock is None:
            from pykvm.devices.clock import MonotonicClock

            self._clock = MonotonicClock()
        return self._clock

    @property
    def screen(self) -> Screen:
        """What the VGA shows: text, PNG. Raises `MachineError` on boards without one."""
        if self._screen is None:
            raise MachineError(f'the {self.board.name} board has no screen; use board="pc"')
        return self._screen

    @screen.setter
    def screen(self, screen: Screen) -> None:
        self._screen = screen

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
            device.irq = self.wiring.line(irq)
        if pio is not None:
            claimed = self.pio.add_device(device, pio, length)
        else:
            assert mmio is not None
            claimed = self.mmio.add_device(device, mmio, length)
        self.devices.append(device)
        return claimed

    def add_ranges(self, device: Any, ranges: Iterable[Any] | None = None) -> list[Range]:
        """Puts a device that knows its places on the buses: `device.ranges()`, or those given."""
        claimed = self.claim(device.ranges() if ranges is None else ranges)
        self.devices.append(device)
        return claimed

    def claim(self, ranges: Iterable[Any]) -> list[Range]:
        """Claims (kind, address, length, device) ranges, all or none. Raises `BusError`."""
        claimed: list[Range] = []
        try:
            for kind, address, length, device in ranges:
                bus = self.pio if kind == "pio" else self.mmio
                claimed.append(bus.add_device(device, address, length))
        except BaseException:
            for taken in claimed:
                taken.remove()
            raise
        return claimed

    def add_disk(
        self,
        image: str | os.PathLike[str] | bytes | BlockBackend,
        *,
        readonly: bool = False,
        snapshot: bool = False,
        serial: str = "",
        interface: Interface = "virtio",
        format: str = "auto",
        cache: Cache = "writeback",
        overlay: str | os.PathLike[str] | None = None,
        queues: int = 1,
        iops: int = 0,
        bps: int = 0,
    ) -> Any:
        """Adds a disk; before `load()`, whose tables tell the kernel of it.

        `image`: an image file of any format, a block device, an NBD URI, bytes, or a
        `pykvm.devices.block` back end. `snapshot`: writes go to a throw-away overlay. `interface`:
        "virtio" (on PCI, or on MMIO on the microvm board), "ide" or "cdrom" (pc board only).
        `format`, `cache`, and `overlay`, a qcow2 file that keeps the writes: docs/disks.md.
        `queues`, and `iops` and `bps` (requests and bytes a second, 0: no limit) are for virtio.
        Returns the device; a virtio disk has `resize(bytes)`. Raises `MachineError`, `BlockError`.
        """
        from pykvm.machine.disks import add_disk

        self._check_open()
        return add_disk(
            self.whole, image, readonly=readonly, snapshot=snapshot, serial=serial,
            interface=interface, format=format, cache=cache, overlay=overlay, queues=queues,
            iops=iops, bps=bps,
        )  # fmt: skip

    def add_virtio(
        self,
        device: VirtioDevice,
        *,
        io_thread: IoThread | bool | None = None,
        vectors: int | None = None,
        legacy: bool = False,
        transport: TransportKind = "auto",
        direct: bool = True,
        queues: Queues | None = None,
        features_off: int = 0,
    ) -> VirtioMmio | VirtioPci:
        """Puts a virtio device on the board; before `load()`, whose tables tell the kernel of it.

        It is a PCI function on the pc board, and a virtio-mmio device on the microvm board; the
        result is that transport. The machine's I/O thread works for it; `io_thread`: True gives it
        one of its own, False none (the vCPU's thread does the work). `vectors`: MSI-X vectors, one
        a queue and one more unless given. `legacy`: drivers from before VIRTIO 1.0 can use it, too
        (PCI). `direct`: kicks and interrupts bypass this process where KVM can. `queues`: "native"
        or "reference" walks the rings; `features_off`: bits that are not offered. Raises
        `MachineError`.
        """
        from pykvm.machine.virtio import add_virtio

        self._check_open()
        device.use(queues=queues, features_off=features_off)
        return add_virtio(
            self.whole, device, io_thread=io_thread, vectors=vectors, legacy=legacy,
            transport=transport, direct=direct,
        )  # fmt: skip

    def add_net(
        self,
        backend: NetBackend | str,
        *,
        mac: str | bytes | None = None,
        queues: int | None = None,
        mtu: int | None = None,
        pcap: str | os.PathLike[str] | None = None,
        iops: int = 0,
        bps: int = 0,
        native: bool = True,
        io_thread: IoThread | bool | None = None,
    ) -> VirtioNet:
        """Adds a network card; before `load()`, whose tables tell the kernel of it.

        `backend`: "user", "tap=NAME", "hub=PATH", "stream=ADDRESS" or "none", with the properties
        of `--net` (docs/networks.md), or a `pykvm.devices.net` back end. `mac`: an address; else
        one that no other device of this host has. `pcap`: a file for all frames. `iops`, `bps`:
        frames and bytes a second, each way. `native=False` moves frames in Python. Returns the
        device. Raises `MachineError`.
        """
        from pykvm.machine.nets import add_net

        self._check_open()
        return add_net(
            self.whole, backend, mac=mac, queues=queues, mtu=mtu, pcap=pcap, iops=iops, bps=bps,
            native=native, io_thread=io_thread,
        )  # fmt: skip

    def add_share(
        self,
        path: str | os.PathLike[str],
        tag: str = "share",
        *,
        kind: ShareKind = "auto",
        readonly: bool = False,
    ) -> Any:
        """Shares a directory, which the guest mounts by `tag`; before `load()`. The device.

        `kind`: "fs" (virtio-fs, by virtiofsd), "9p" (by diod), or "auto", the first that this host
        has. Raises `MachineError`, `ShareError`.
        """
        from pykvm.machine.shares import add_share

        self._check_open()
        return add_share(self.whole, path, tag, kind, readonly)

    def add_vsock(self, cid: int, path: str | os.PathLike[str]) -> Any:
        """Sockets between the host and the guest, whose address is `cid`; before `load()`.

        Programs of the host connect to the Unix socket `path` and write `CONNECT port`; what the
        guest connects to at CID 2, port N, is served at `path_N`. Raises `VsockError`.
        """
        from pykvm.machine.shares import add_vsock

        self._check_open()
        return add_vsock(self.whole, cid, path)

    def add_vhost_user(
        self, path: str | os.PathLike[str], device: str | int, **options: Any
    ) -> Any:
        """A device that another process runs, which listens at `path`; before `load()`.

        `device`: "blk", "net", "fs", or a device type's number; `options` as `VhostUserDevice`
        takes them. Raises `BackendError`.
        """
        from pykvm.machine.shares import add_vhost_user

        self._check_open()
        return add_vhost_user(self.whole, path, device, options)

    @property
    def io_thread(self) -> IoThread:
        """The thread that works for the devices; there is one from the first use on."""
        if self._io_thread is None:
            from pykvm.datapath.loop import IoThread

            self._check_open()
            self._io_thread = IoThread()
            self.io_threads.append(self._io_thread)
        return self._io_thread

    @property
    def routes(self) -> Routes:
        """Where KVM leads interrupts."""
        if self._routes is None:
            from pykvm.machine.routes import Routes

            self._routes = Routes(self.vm)
        return self._routes

    @property
    def keyboard(self) -> I8042:
        """The keyboard: `type_text`, `tap("ctrl-alt-delete")`. Raises `MachineError` without."""
        keyboard: I8042 | None = getattr(self.board, "keyboard", None)
        if keyboard is None:
            raise MachineError(f'the {self.board.name} board has no keyboard; use board="pc"')
        return keyboard

    def press_power_button(self) -> bool:
        """Presses the power button; False if the guest does not listen to it (yet)."""
        pm: AcpiPm | None = getattr(self.board, "pm", None)
        if pm is None:
            raise MachineError(f'the {self.board.name} board has no power button; use board="pc"')
        return pm.press_power_button()

    def place_roms(self, loaded: LoadedImage) -> None:
        """Exactly the ROMs of this image from now on."""
        if self._roms is None:
            if not loaded.roms:
                return
            from pykvm.machine.firmware import Roms

            self._roms = Roms(self.whole)
        self._roms.place(loaded)

    def _check_open(self) -> None:
        if self._status is Status.CLOSED:
            raise MachineError("the machine is closed; make a new one")

    def _check_usable(self, what: str) -> None:
        self._check_open()
        if self._status is Status.CRASHED:
            raise MachineError(
                f"cannot {what}: the machine crashed ({self.crash_reason}); reset() or restore() it"
            )
