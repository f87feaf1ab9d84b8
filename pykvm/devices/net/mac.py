"""Ethernet addresses: text, and addresses for devices that got none.

`take_mac` numbers the network devices of this host from 1, the lowest free number first, so that
the same commands give the same addresses and no two devices alive have the same one.
"""

from __future__ import annotations

import os
import socket
import zlib

from pykvm.devices.net.backend import NetError

_PREFIX = b"\x02\x70\x6b"  # locally administered
_MOST = 4096


def parse_mac(text: str) -> bytes:
    """`52:54:00:12:34:56` as six bytes. Raises `NetError`."""
    pieces = text.replace("-", ":").split(":")
    try:
        address = bytes(int(piece, 16) for piece in pieces if 1 <= len(piece) <= 2)
    except ValueError:
        address = b""
    if len(address) != 6 or len(pieces) != 6:
        raise NetError(f"{text[:40]!r} is no MAC address; write six bytes as 02:00:00:00:00:01")
    if address[0] & 1 or not any(address):
        raise NetError(f"{text} is the address of a group or of nobody; a device needs its own")
    return address


def format_mac(address: bytes) -> str:
    """Six bytes as text."""
    return address.hex(":")


class MacLease:
    """An address that is ours until `release`."""

    def __init__(self, address: bytes, holder: socket.socket) -> None:
        self.address = address
        self._holder = holder

    def release(self) -> None:
        """Others may have the number."""
        self._holder.close()


def take_mac() -> MacLease:
    """The next free address of this host (of this network namespace). Raises `NetError`."""
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for number in range(1, _MOST):
        try:
            holder.bind(f"\0pykvm-net-{number}")  # gone with the process, whatever happens to it
        except OSError:
            continue
        return MacLease(_PREFIX + bytes([_namespace()]) + number.to_bytes(2, "big"), holder)
    holder.close()
    raise NetError(f"{_MOST} network devices are there already; give this one mac=ADDRESS")


def _namespace() -> int:
    """0 in the host's own network namespace; others are told apart by a byte."""
    try:
        here = os.stat("/proc/self/ns/net").st_ino
        first = os.stat("/proc/1/ns/net").st_ino
    except OSError:
        return 0
    return 0 if here == first else zlib.crc32(str(here).encode()) & 0xFF or 1
