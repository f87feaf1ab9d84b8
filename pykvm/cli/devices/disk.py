"""`--disk` and `--cdrom`."""

from __future__ import annotations

import os

from pykvm.cli.common import Parser, UsageError, printable
from pykvm.cli.devices.properties import (
    count,
    one_of,
    properties,
    switch,
    text,
    words,
    wrong,
)
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
    format: str = "auto"
    overlay: str | None = None
    cache: str = "writeback"
    queues: int = 1
    iops: int = 0
    bps: int = 0


def _format(name: str, value: str) -> str:
    from pykvm.devices.block.images_detect import FORMATS

    return one_of(*FORMATS, "vpc")(name, value)


def _cache(name: str, value: str) -> str:
    from pykvm.devices.block.backend import CACHES

    return one_of(*CACHES)(name, value)


_KNOWN = {
    "format": _format, "readonly": switch, "snapshot": switch, "overlay": text, "cache": _cache,
    "serial": text, "if": one_of("virtio", "ide", "cdrom"), "queues": count, "iops": count,
    "bps": count,
}  # fmt: skip


def disk(text: str) -> DiskOption:
    """`FILE[,PROPERTY…]`; see `_KNOWN`."""
    path, *rest = words(text)
    if not path:
        raise wrong("the disk has no name; write it like --disk FILE,readonly")
    found = properties("a disk", rest, _KNOWN)
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
        help="an image (raw, qcow2, vmdk, vdi, vhd, vhdx), a block device, or nbd://HOST/EXPORT; "
        "options: format=FORMAT, readonly, snapshot (writes are thrown away), overlay=FILE (a "
        "qcow2 that keeps the writes), cache=writeback|none|writethrough|directsync|unsafe, "
        "serial=TEXT, if=virtio|ide, queues=N, iops=N, bps=N; a comma in a name is typed twice; "
        "may be given several times",
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
        if "://" not in d.path and not os.path.exists(d.path):
            raise UsageError(f"there is no disk image {printable(d.path)}; check the path")
        machine.add_disk(
            d.path,
            readonly=d.readonly,
            snapshot=d.snapshot or options.snapshot,
            serial=d.serial,
            interface=d.interface,
            format=d.format,
            cache=d.cache,
            overlay=d.overlay,
            queues=d.queues,
            iops=d.iops,
            bps=d.bps,
        )
