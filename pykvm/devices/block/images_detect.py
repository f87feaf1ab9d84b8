"""Which format a disk image has, by its bytes.

The same signs as QEMU goes by. What has none is raw, and that is where care is needed: a guest
writes what it likes to a raw disk, also the header of another format (see `looks_like`).
"""

from __future__ import annotations

import os
import stat
import struct

from pykvm.devices.block.backend import BlockError, host_error

#: Our names of the formats -> QEMU's drivers.
DRIVERS = {
    "raw": "raw", "qcow2": "qcow2", "qcow": "qcow", "qed": "qed", "vmdk": "vmdk", "vdi": "vdi",
    "vhd": "vpc", "vhdx": "vhdx", "parallels": "parallels",
}  # fmt: skip
FORMATS = ("auto", *DRIVERS)
PROBED = 512  # bytes of the head that are looked at, as QEMU does
FOOTER = 512  # bytes of the end: a fixed VHD has nothing but a footer

_VHD_COOKIE, _VHD_FIXED = b"conectix", 2


def driver_of(format: str) -> str:
    """QEMU's name of a format. Raises `BlockError` for what is none."""
    if format == "vpc":  # what QEMU's users call it
        return "vpc"
    if format not in DRIVERS:
        raise BlockError(f"format={format!r} is no disk format; use {', '.join(FORMATS)}")
    return DRIVERS[format]


def looks_like(head: bytes, footer: bytes = b"") -> str:
    """The format that the first and the last bytes of a file stand for; "raw" for none.

    `footer`: the last 512 bytes, looked at for the only format that has its header there.
    """
    if head[:4] == b"QFI\xfb" and len(head) >= 8:
        return {1: "qcow", 2: "qcow2", 3: "qcow2"}.get(struct.unpack_from(">I", head, 4)[0], "raw")
    if head[:4] in (b"KDMV", b"COWD") or _is_vmdk_text(head):
        return "vmdk"
    if head[0x40:0x44] == b"\x7f\x10\xda\xbe":
        return "vdi"
    if head[:8] == b"vhdxfile":
        return "vhdx"
    if head[:8] == _VHD_COOKIE:
        return "vhd"
    if head[:4] == b"QED\0":
        return "qed"
    if head[:16] in (b"WithoutFreeSpace", b"WithouFreSpacExt"):
        return "parallels"
    return "vhd" if _is_vhd_footer(footer) else "raw"


def _is_vmdk_text(head: bytes) -> bool:
    """A VMDK descriptor: comments and blank lines, then "version=1" to 3 (as QEMU's probe)."""
    for line in head.split(b"\n"):
        line = line.rstrip(b"\r ")
        if line.startswith(b"version="):
            return line in (b"version=1", b"version=2", b"version=3")
        if line and not line.startswith(b"#"):
            return False
    return False


def _is_vhd_footer(footer: bytes) -> bool:
    if footer[:8] != _VHD_COOKIE or len(footer) != FOOTER:
        return False
    kind, checksum = struct.unpack_from(">II", footer, 60)
    without = sum(footer) - sum(footer[64:68])
    return bool(kind == _VHD_FIXED and checksum == ~without & 0xFFFFFFFF)


def detect(path: str) -> str:
    """The format of the image at `path`. Raises `BlockError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise cannot_open(path, error) from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise BlockError(f"{path} is not a disk: give a regular file or a block device", 15)
        return detect_fd(fd)
    except OSError as error:
        raise host_error(path, "looking at its format", error) from error
    finally:
        os.close(fd)


def detect_fd(fd: int) -> str:
    """The format of an open image. Raises `OSError`."""
    size = os.lseek(fd, 0, os.SEEK_END)
    head = os.pread(fd, PROBED, 0)
    footer = os.pread(fd, FOOTER, size - FOOTER) if size >= 2 * FOOTER else b""
    return looks_like(head, footer)


def cannot_open(path: str, error: OSError) -> BlockError:
    """The sentence for an image that cannot be opened."""
    why = os.strerror(error.errno or 0)
    return BlockError(f"the disk {path} cannot be opened: {why}", error.errno or 5)
