"""Options of `run` and `trace` that say what a machine boots from: kernels, firmware, CPUs.

What is made of them is imported only where they are used.
"""

from __future__ import annotations

from pykvm.cli import devices
from pykvm.cli.common import Parser, UsageError, number, printable
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.machine import Machine

BOARDS = ("microvm", "pc", "bare")
_KERNELS = {"bzimage", "packed", "linux64", "linux32", "pvh", "multiboot2"}
_SMALL, _LARGE = "64M", "256M"  # RAM for small guests, and for kernels and the pc board


class CpuCount(NamedTuple):
    """`--cpus`: how many, and the topology in words ("" for one socket of cores)."""

    vcpus: int
    topology: str


def cpu_count(text: str) -> CpuCount:
    """`4` or `4,sockets=1,cores=2,threads=2`. For argparse's `type=`."""
    count, _, topology = text.partition(",")
    return CpuCount(number(count), topology)


def add_kernel_options(parser: Parser) -> None:
    """Kernels and firmware."""
    group = parser.add_argument_group("kernels and firmware")
    group.add_argument(
        "--kernel", metavar="FILE", help="the same as IMAGE; with --firmware, what it starts first"
    )
    group.add_argument(
        "--initrd", metavar="FILE", help="the initial RAM disk of a Linux kernel, or a module"
    )
    group.add_argument(
        "--fast-boot",
        action="store_true",
        help="unpack a compressed Linux on the host, so that no decompressor runs in the guest",
    )
    group.add_argument(
        "--boot-protocol",
        choices=("auto", "64", "32", "16", "pvh"),
        default="auto",
        help="which entry of a Linux kernel is used (default: the best that it has)",
    )
    group.add_argument(
        "--firmware",
        metavar="NAME|FILE",
        help="start firmware at the reset vector: seabios, ovmf or a file; needs no IMAGE",
    )
    group.add_argument("--boot-menu", action="store_true", help="the firmware offers its boot menu")
    group.add_argument(
        "--symbols",
        metavar="FILE",
        help="a vmlinux or System.map: its names are used in reports",
    )


def check(options: Namespace) -> None:
    """Options that contradict each other. Raises `UsageError`."""
    if options.kernel is not None and options.firmware is None:
        if options.image is not None:
            raise UsageError("give IMAGE or --kernel, not both")
        options.image = options.kernel
    if options.firmware is not None and options.image is not None:
        raise UsageError(
            "--firmware starts the machine itself; give it disks with --disk, and leave "
            f"{printable(options.image)} out"
        )
    if options.image is None and options.firmware is None:
        raise UsageError(
            "say which image to run, or --firmware seabios to boot from a disk; "
            "`pykvm guests` lists the guests that are there"
        )
    if options.boot_menu and options.firmware is None:
        raise UsageError("--boot-menu is about firmware; add --firmware seabios")


def choose_board(options: Namespace, guest: Any) -> str:
    """`--machine`, or the board that the image wants: pc for Linux, kernels and firmware."""
    if options.machine is not None:
        return str(options.machine)
    if options.firmware is not None or wants_screen(options) or devices.needs_pc(options):
        return "pc"
    if guest is not None:
        return "microvm"
    return "pc" if kind_of(options) in _KERNELS else "microvm"


def wants_screen(options: Namespace) -> bool:
    """Whether an option needs a VGA or a keyboard."""
    names = ("screenshot", "type")
    return getattr(options, "display", None) == "text" or any(
        getattr(options, name, None) for name in names
    )


def kind_of(options: Namespace) -> str:
    """The kind of image; "" where it cannot be told (loading it will say why)."""
    if options.format != "auto":
        return str(options.format)
    from pykvm.boot.detect import detect
    from pykvm.boot.errors import ImageError
    from pykvm.boot.source import open_source

    try:
        source = open_source(options.image)
        kind = detect(source.name, source.data)
        if kind == "elf" and options.load is None and options.entry is None:
            from pykvm.boot.elf import ElfImage
            from pykvm.boot.environment import BootEnvironment
            from pykvm.boot.kernels import kind_of_elf

            elf = ElfImage(source.name, source.data, None)
            if elf.note_ranges or elf.is_higher_half:
                return str(kind_of_elf(elf, BootEnvironment(protocol=options.boot_protocol)))
        return str(kind)
    except ImageError:
        return ""


def memory_for(options: Namespace, board: str, guest: Any) -> Any:
    """`--memory`, or what is usual for the board and the image."""
    if options.memory is not None:
        return options.memory
    large = board == "pc" or (guest is None and kind_of(options) in _KERNELS)
    return _LARGE if large else _SMALL


def use_symbols(machine: Machine, options: Namespace) -> None:
    """`--symbols`: the names in reports come from there."""
    if options.symbols is not None and machine.image is not None:
        from pykvm.boot.system_map import read_symbols

        machine.image.symbol_table = read_symbols(options.symbols)
