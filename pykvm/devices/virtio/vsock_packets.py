"""Packets of virtio sockets (VIRTIO 1.2, section 5.10.6)."""

from __future__ import annotations

import struct

from pykvm.typed import NamedTuple

HEADER = struct.Struct("<QQIIIHHIII")
HEADER_SIZE = HEADER.size  # 44
STREAM, SEQPACKET = 1, 2

REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
SHUT_RECEIVE, SHUT_SEND = 1, 2  # flags of SHUTDOWN: the sender will not receive, not send

HOST_CID = 2
PAYLOAD_LIMIT = 64 << 10  # of one packet, as drivers and other devices have it
MASK32 = 0xFFFF_FFFF


class Header(NamedTuple):
    """`struct virtio_vsock_hdr`."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int

    def pack(self) -> bytes:
        """The 44 bytes."""
        return HEADER.pack(*self)


def unpack(data: bytes) -> Header:
    """The header in 44 bytes."""
    return Header(*HEADER.unpack(data))
