"""Packet capture: pcapng files with nanosecond times, both directions told apart.

Format: draft-ietf-opsawg-pcapng. Each frame is one write(2), so that the file is whole after every
frame and the native data path can write into the same one. Frames are as the guest's driver gives
and gets them: with checksum offload, checksums that are still to be filled in look wrong.
"""

from __future__ import annotations

import os
import struct
import time

from pykvm.devices.net.backend import NetError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

INBOUND, OUTBOUND = 1, 2  # epb_flags: for the guest, from the guest
_SHB = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
_PACKET = struct.Struct("<IIIIIII")


def _option(code: int, data: bytes) -> bytes:
    return struct.pack("<HH", code, len(data)) + data + bytes(-len(data) % 4)


def _interface(name: str) -> bytes:
    """The description block: Ethernet, no limit, times in units of 10**-9 s."""
    options = _option(2, name.encode()[:200]) + _option(9, b"\x09") + bytes(4)
    length = 20 + len(options)
    return struct.pack("<IIHHI", 1, length, 1, 0, 0) + options + struct.pack("<I", length)


class PcapWriter:
    """A capture file, made anew. `fd` is open for appending. Raises `NetError`."""

    def __init__(self, path: str | os.PathLike[str], name: str = "net0") -> None:
        self.path = os.fspath(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        try:
            self.fd = os.open(path, flags, 0o600)
            os.write(self.fd, _SHB + _interface(name))
        except OSError as error:
            raise NetError(
                f"the capture file {self.path} cannot be written: {error.strerror}"
            ) from error

    def frame(self, parts: Sequence[memoryview | bytes], direction: int) -> None:
        """Appends a frame (without virtio-net header), with the time of now."""
        data = b"".join(parts)
        size = len(data)
        padding = -size % 4
        total = 28 + size + padding + 12 + 4
        now = time.time_ns()
        head = _PACKET.pack(6, total, 0, now >> 32, now & 0xFFFF_FFFF, size, size)
        tail = bytes(padding) + struct.pack("<HHIII", 2, 4, direction, 0, total)
        if self.fd >= 0:
            try:
                os.writev(self.fd, [head, data, tail])
            except OSError:  # the disk is full: the network goes on
                self.close()

    def close(self) -> None:
        """Closes the file. Twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
