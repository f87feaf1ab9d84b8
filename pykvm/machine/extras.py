"""Entropy, balloon, consoles, memory devices, input and display on a machine.

`Extras` is the part of `Machine` that adds them; nothing is imported before it is asked for.
"""

from __future__ import annotations

from pykvm.machine.result import MachineError
from pykvm.typed import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from pykvm.devices.chardev import Chardev
    from pykvm.devices.uart16550 import Uart16550
    from pykvm.devices.virtio import VirtioDevice
    from pykvm.devices.virtio.balloon import VirtioBalloon
    from pykvm.devices.virtio.console import VirtioConsole
    from pykvm.devices.virtio.gpu import VirtioGpu
    from pykvm.devices.virtio.input import VirtioKeyboard, VirtioMouse, VirtioTablet
    from pykvm.devices.virtio.mem import VirtioMem
    from pykvm.devices.virtio.pmem import VirtioPmem
    from pykvm.devices.virtio.rng import VirtioRng
    from pykvm.machine.machine import Machine

    _Made = TypeVar("_Made")
    _Device = TypeVar("_Device", bound=VirtioDevice)


class Extras:
    """Adding the smaller paravirtual devices; before `load()`, as `add_virtio`.

    What was added last of a kind is the attribute of its name. `MachineError` is raised for what
    cannot be.
    """

    rng: VirtioRng | None = None
    balloon: VirtioBalloon | None = None
    console: VirtioConsole | None = None
    memory_device: VirtioMem | None = None
    pmem: VirtioPmem | None = None
    gpu: VirtioGpu | None = None
    virtio_keyboard: VirtioKeyboard | None = None
    pointer: VirtioMouse | VirtioTablet | None = None

    @property
    def _self(self) -> Machine:
        return cast("Machine", self)

    def statistics(self) -> dict[str, dict[str, Any]]:
        """What every virtio device did so far, by device name (a second one has "-1" behind it).

        Plain values; may be called while the guest runs.
        """
        found: dict[str, dict[str, Any]] = {}
        for device in self._self.virtio:
            counters = getattr(device, "statistics", None)
            if counters is not None:
                name, n = device.name, 0
                while name in found:
                    n += 1
                    name = f"{device.name}-{n}"
                found[name] = counters.as_dict()
        return found

    def add_rng(
        self, source: str | os.PathLike[str] = "", *, rate: int | None = None, **options: Any
    ) -> VirtioRng:
        """Random numbers for the guest: the host kernel's, or those of a file; see `VirtioRng`.

        `rate`: bytes a second at most. `options` are those of `add_virtio`, here and below.
        """
        from pykvm.devices.virtio.rng import VirtioRng

        machine = self._self
        self.rng = VirtioRng(source, rate=rate, clock=machine.clock)
        return _added(machine, self.rng, options)

    def add_balloon(
        self, target: int | str = 0, *, period: float = 0, deflate_on_oom: bool = True,
        must_tell_host: bool = False, hinting: bool = True, reporting: bool = True, **options: Any,
    ) -> VirtioBalloon:  # fmt: skip
        """A memory balloon of `target` bytes ("64M"); see `VirtioBalloon`.

        `m.balloon.target = "128M"` changes it at run time, `m.balloon.actual` is how far it is.
        """
        from pykvm.devices.virtio.balloon import VirtioBalloon

        machine = self._self
        made = _made(
            lambda: VirtioBalloon(
                target, period=period, deflate_on_oom=deflate_on_oom,
                must_tell_host=must_tell_host, hinting=hinting, reporting=reporting,
                clock=machine.clock,
            )
        )  # fmt: skip
        self.balloon = _added(machine, made, options)
        return made

    def add_console(
        self, where: str | Chardev | None = None, *, ports: int = 8,
        size: tuple[int, int] | None = None, **options: Any,
    ) -> VirtioConsole:  # fmt: skip
        """A virtio console (Linux: `console=hvc0`); see `VirtioConsole`.

        `where`: as `--serial` has it ("stdio", "file:LOG", "unix:PATH,server"); or a back end,
        which is the caller's to start and close.
        """
        from pykvm.devices.virtio.console import VirtioConsole

        machine = self._self
        backend = _opened(where)
        made = _made(lambda: VirtioConsole(backend, ports=ports, size=size, clock=machine.clock))
        self.console = _added(machine, made, options)
        if isinstance(where, str) and backend is not None:
            _own(machine, backend)
        return made

    def add_port(self, name: str, where: str | Chardev | None = None) -> int:
        """A named port on the console device, which is added if there is none; its number.

        Programs in the guest find it as /dev/virtio-ports/NAME. Also while the guest runs.
        """
        console = self.console if self.console is not None else self.add_console()
        backend = _opened(where)
        number = _made(lambda: console.add_port(name, backend))
        if isinstance(where, str) and backend is not None:
            _own(self._self, backend)
        return number

    def add_serial2(self, where: str | Chardev) -> Uart16550:
        """COM2 at 0x2f8, interrupt 3 (Linux: ttyS1), on the pc board; `where` as `add_console`."""
        from pykvm.devices.uart16550 import Uart16550
        from pykvm.machine.boards import layout

        machine = self._self
        if machine.board.name != "pc":
            raise MachineError(f'the {machine.board.name} board has no COM2; use board="pc"')
        backend = _opened(where)
        uart = Uart16550(machine.wiring.line(layout.COM2_IRQ), name="COM2")
        if backend is not None:
            uart.connect(backend)
        machine.add_device(uart, pio=layout.COM2, length=8)
        machine.board.legacy_devices.append("com2")
        if isinstance(where, str) and backend is not None:
            _own(machine, backend)
        return uart

    def add_virtio_mem(
        self, size: int | str, *, requested: int | str = 0, block_size: int | str = "2M",
        node: int | None = None, **options: Any,
    ) -> VirtioMem:  # fmt: skip
        """Memory that can grow to `size` while the guest runs; see `VirtioMem`.

        `m.memory_device.requested = "512M"` says how much of it the guest shall have.
        """
        from pykvm.devices.virtio.mem import VirtioMem
        from pykvm.machine.extra_memory import ExtraMemory
        from pykvm.machine.sizes import parse_size

        machine = self._self
        memory = ExtraMemory(machine, parse_size(size), name="pykvm-memory-device")
        block = parse_size(block_size, "block size")
        try:
            made = _made(lambda: VirtioMem(memory.region, requested, block_size=block, node=node))
            self.memory_device = _added(machine, made, options)
        except BaseException:
            memory.close()
            raise
        machine.devices.insert(0, memory)  # reset before the device, closed after it
        return made

    def add_pmem(
        self, path: str | os.PathLike[str], *, readonly: bool = False, snapshot: bool = False,
        **options: Any,
    ) -> VirtioPmem:  # fmt: skip
        """A host file as persistent memory: /dev/pmem0 in Linux; see `VirtioPmem`.

        Its size is a multiple of 2 MiB. `readonly`: guest writes go nowhere. `snapshot`: they are
        thrown away at the end.
        """
        from pykvm.machine.extra_memory import add_pmem

        self.pmem = add_pmem(self._self, path, readonly, snapshot, options)
        return self.pmem

    def add_keyboard(self, **options: Any) -> VirtioKeyboard:
        """A virtio keyboard: `type_text`, `tap("ctrl-alt-delete")`."""
        from pykvm.devices.virtio.input import VirtioKeyboard

        self.virtio_keyboard = _added(self._self, VirtioKeyboard(), options)
        return self.virtio_keyboard

    def add_pointer(self, kind: str = "tablet", **options: Any) -> VirtioMouse | VirtioTablet:
        """A virtio "tablet" (`point(x, y)`) or "mouse" (`move_mouse(dx, dy)`)."""
        from pykvm.devices.virtio.input import VirtioMouse, VirtioTablet

        if kind not in ("tablet", "mouse"):
            raise MachineError(f"a pointer is a tablet or a mouse, not {kind!r}")
        made = VirtioTablet() if kind == "tablet" else VirtioMouse()
        self.pointer = _added(self._self, made, options)
        return self.pointer

    def add_gpu(
        self, width: int = 1024, height: int = 768, *, outputs: int = 1,
        limit: int | str = "256M", **options: Any,
    ) -> VirtioGpu:  # fmt: skip
        """A display adapter; `m.gpu.screen().save_png(path)` shows it; see `VirtioGpu`."""
        from pykvm.devices.virtio.gpu import VirtioGpu

        made = _made(lambda: VirtioGpu(width, height, outputs=outputs, limit=limit))
        self.gpu = _added(self._self, made, options)
        return made


def _made(make: Callable[[], _Made]) -> _Made:
    """What `make` gives; its `ValueError` about an argument is a `MachineError` here."""
    try:
        return make()
    except ValueError as error:
        raise MachineError(str(error)) from None


def _added(machine: Machine, device: _Device, options: dict[str, Any]) -> _Device:
    """Puts it on the board; where that fails, it is closed."""
    try:
        machine.add_virtio(device, **options)
    except BaseException:
        device.close()
        raise
    return device


def _opened(where: str | Chardev | None) -> Chardev | None:
    if not isinstance(where, str):
        return where
    from pykvm.devices.chardev import open_chardev

    return open_chardev(where)


def _own(machine: Machine, backend: Chardev) -> None:
    """The machine starts it now, and closes it at its end."""
    backend.start()
    machine.devices.append(backend)
