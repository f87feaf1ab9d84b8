"""What `run` and `trace` share: the options that say which image runs in which machine."""

from __future__ import annotations

import os

from pykvm.cli import devices
from pykvm.cli.boot_options import (
    BOARDS,
    add_kernel_options,
    check,
    choose_board,
    cpu_count,
    memory_for,
    use_symbols,
)
from pykvm.cli.common import Parser, UsageError, memory, near, number, printable, seconds
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.images import GuestImage
    from pykvm.machine import Machine


IMAGE_FORMATS = (
    "auto", "flat", "elf", "multiboot", "multiboot2", "bzimage", "pvh", "linux64", "linux32",
)  # fmt: skip


def add_image_options(parser: Parser, format_option: str = "--format") -> None:
    """The image, and how it is loaded."""
    parser.add_argument(
        "image",
        nargs="?",
        metavar="IMAGE",
        help="a file, or the name of a guest (`pykvm guests` lists them)",
    )
    group = parser.add_argument_group("loading")
    group.add_argument(
        format_option,
        dest="format",
        choices=IMAGE_FORMATS,
        default="auto",
        help="kind of image; found by looking at it unless given",
    )
    group.add_argument(
        "--load",
        type=number,
        metavar="ADDR",
        help="where a flat image goes (default 0x1000, a boot sector 0x7c00)",
    )
    group.add_argument(
        "--entry", type=number, metavar="ADDR", help="where to start, unless the image says"
    )
    group.add_argument(
        "--mode",
        choices=("real", "protected", "long"),
        help="the CPU's mode at the entry (default for flat images: real)",
    )
    group.add_argument(
        "--cmdline",
        "--append",
        default="",
        metavar="TEXT",
        help="the command line of a kernel",
    )
    group.add_argument(
        "--module",
        action="append",
        default=[],
        metavar='"FILE ARGS"',
        help="a module for a multiboot kernel; may be given several times",
    )
    group.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a parameter of a shipped guest (`pykvm guests NAME` lists them)",
    )


def add_machine_options(parser: Parser) -> None:
    """The machine, and when it ends."""
    add_kernel_options(parser)
    devices.add_options(parser)
    group = parser.add_argument_group("machine")
    group.add_argument(
        "--machine",
        choices=BOARDS,
        help="the board: microvm (serial port, virtio-mmio disks), pc (PCI, ACPI, legacy devices) "
        "or bare (nothing). Default: pc for Linux and other kernels that pykvm knows, for "
        "firmware, IDE and a screen; else microvm",
    )
    group.add_argument(
        "--memory",
        "-m",
        type=memory,
        metavar="SIZE",
        help="RAM (default 64M, for kernels and on the pc board 256M)",
    )
    group.add_argument(
        "--cpus",
        type=cpu_count,
        metavar="N[,TOPOLOGY]",
        help="vCPUs (default 1), as in 4 or 4,sockets=1,cores=2,threads=2",
    )
    group.add_argument(
        "--cpu",
        metavar="MODEL[,+F,-F]",
        help="CPU model: host, portable or minimal, with features added or taken away",
    )
    group.add_argument("--no-acpi", action="store_true", help="no ACPI tables")
    group.add_argument(
        "--assist",
        choices=("auto", "on", "off"),
        default="auto",
        help="complete instructions that the host's KVM refuses (default: auto)",
    )
    group.add_argument(
        "--irqchip",
        choices=("kernel", "split", "none"),
        help="interrupt controllers: in the kernel (default), only the local APIC, or none",
    )
    group.add_argument(
        "--unclaimed",
        choices=("ones", "ignore", "log", "stop"),
        default="ones",
        help="what an access does that no device answers (default: reads all ones)",
    )
    group.add_argument(
        "--huge-pages", choices=("2M", "1G", "thp"), help="back the RAM with huge pages"
    )
    group.add_argument(
        "--timeout", type=seconds, metavar="S", help="stop the guest after S seconds (exit 124)"
    )
    group.add_argument(
        "--no-reboot",
        action="store_true",
        help="end when the guest resets itself, instead of starting it again",
    )


def add_serial_options(parser: Parser, default: str) -> None:
    """Where the guest's characters go."""
    group = parser.add_argument_group("serial port (COM1)")
    group.add_argument(
        "--serial",
        metavar="WHERE",
        help=f"stdio, file:PATH, unix:PATH, tcp:HOST:PORT, pty or null (default {default}); "
        "on a terminal Ctrl-A x ends the guest",
    )
    group.add_argument(
        "--debugcon", metavar="WHERE", help="the same for the debug console at port 0xe9"
    )


def find_guest(name: str) -> GuestImage | None:
    """The shipped guest that IMAGE names; None if it is a file. Raises `UsageError` for neither."""
    if os.path.exists(name):
        if os.path.isdir(name):
            raise UsageError(f"{printable(name)} is a directory; give an image in it")
        return None
    folder, base = os.path.split(name)
    if not folder:
        from pykvm import images

        if name in images.names():
            return images.find(name)
        raise UsageError(_not_found("file or guest", name, [*images.names(), *_files(".")]))
    close = [os.path.join(folder, n) for n in near(base, _files(folder))]
    raise UsageError(_not_found("file", name, close))


def _files(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry, _ in zip(entries, range(10_000), strict=False)]
    except OSError:
        return []


def _not_found(kind: str, name: str, known: list[str]) -> str:
    text = f"there is no {kind} {printable(name)}"
    close = near(name, known)
    if close:
        return f"{text}; did you mean {' or '.join(map(printable, close))}?"
    if kind == "file":
        return f"{text}; check the path"
    return f"{text}; `pykvm guests` lists the guests"


def make_machine(
    options: Namespace, *, serial: Any, debugcon: Any = None, trace: int = 0
) -> Machine:
    """The machine that the options ask for, with the image in it. Raises `PykvmError`."""
    from pykvm.machine import Machine

    check(options)
    guest = None if options.image is None else find_guest(options.image)
    params = _params(guest, options)
    cpus, topology = options.cpus or (guest.cpus if guest else 1, "")
    board = choose_board(options, guest)
    machine = Machine(
        memory=memory_for(options, board, guest),
        cpus=cpus,
        board=board,
        irqchip=options.irqchip or _irqchip(guest, cpus, board),
        serial=serial,
        debugcon=debugcon,
        unclaimed=options.unclaimed,
        trace=trace,
        huge_pages=options.huge_pages,
        acpi=not options.no_acpi,
        assist=options.assist,
        cpu=options.cpu,
        topology=topology,
    )
    try:
        devices.apply(machine, options)
        if options.firmware is not None:
            machine.load(
                options.firmware,
                format="firmware",
                boot_menu=options.boot_menu,
                kernel=options.kernel,
                initrd=options.initrd,
                cmdline=options.cmdline,
            )
        else:
            machine.load(
                options.image,
                load=options.load,
                entry=options.entry,
                mode=options.mode,
                format=options.format,
                modules=options.module,
                cmdline=options.cmdline,
                initrd=options.initrd,
                fast_boot=options.fast_boot,
                protocol=options.boot_protocol,
            )
        if guest is not None and params:
            guest.patch(machine.memory, **params)
        if options.symbols is not None:
            use_symbols(machine, options)
    except BaseException:
        machine.close()
        raise
    return machine


def _irqchip(guest: GuestImage | None, cpus: int, board: str) -> Any:
    if guest is None or cpus > 1:
        return "none" if board == "bare" and cpus == 1 else "kernel"
    return guest.irqchip


def _params(guest: GuestImage | None, options: Namespace) -> dict[str, int | bytes]:
    """The `--param` settings; a value that is no number is taken as text."""
    settings: dict[str, int | bytes] = {}
    for text in options.param:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--param {printable(text)} has no value; write it like count=1000")
        if guest is None:
            raise UsageError(
                f"{printable(options.image)} is a file, and has no parameters; leave --param out"
            )
        try:
            settings[name] = int(value, 0)
        except ValueError:
            settings[name] = value.encode()
    return settings
