"""`--disk` and `--cdrom`."""

from __future__ import annotations

import os

from pykvm.cli.common import Parser, UsageError, printable
from pykvm.cli.devices.properties import one_of, properties, switch, text, words, wrong
from pykvm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.machine import Machine


class DiskOption(NamedTuple):
    """One `--disk` or `--cdrom`."""

    path: str
    readonly: bool = False
    snapshot: bool = False
    serial: str = ""
    interface: str = "virtio"


def _format(name: str, value: str) -> str:
    if value == "raw":
        return value
    raise wrong(
        f"disks of format {printable(value)} are not read yet; convert it: "
        "qemu-img convert -O raw FILE disk.img"
    )


_KNOWN = {
    "readonly": switch, "snapshot": switch, "serial": text,
    "if": one_of("virtio", "ide", "cdrom"), "format": _format,
}  # fmt: skip


def disk(text: str) -> DiskOption:
    """`FILE[,readonly][,snapshot][,serial=TEXT][,if=virtio|ide][,format=raw]`."""
    path, *rest = words(text)
    found = properties("a disk", rest, _KNOWN)
    found.pop("format", None)
    if "if" in found:
        found["interface"] = found.pop("if")
    return DiskOption(path, **found)


def cdrom(text: str) -> DiskOption:
    """`FILE`."""
    return DiskOption(text, readonly=True, interface="cdrom")


def add_options(parser: Parser) -> None:
    """Disks."""
    group = parser.add_argument_group("disks")
    group.add_argument(
        "--disk",
        action="append",
        type=disk,
        default=[],
        metavar="FILE[,OPTION…]",
        help="a raw image or block device; options: readonly, snapshot (writes are thrown away), "
        "serial=TEXT, if=virtio (default) or if=ide; may be given several times",
    )
    group.add_argument(
        "--cdrom", action="append", type=cdrom, default=[], metavar="FILE", help="a CD image (IDE)"
    )
    group.add_argument(
        "--snapshot",
        action="store_true",
        help="no disk is changed: what is written to any of them is thrown away",
    )


def needs_pc(options: Namespace) -> bool:
    """Whether IDE is asked for."""
    return bool(options.cdrom) or any(d.interface != "virtio" for d in options.disk)


def apply(machine: Machine, options: Namespace) -> None:
    """The disks, in the order of the command line, CDs last."""
    for d in [*options.disk, *options.cdrom]:
        if not os.path.exists(d.path):
            raise UsageError(f"there is no disk image {printable(d.path)}; check the path")
        machine.add_disk(
            d.path, readonly=d.readonly, snapshot=d.snapshot or options.snapshot,
            serial=d.serial, interface=d.interface,
        )  # fmt: skip
