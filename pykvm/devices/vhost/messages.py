"""The messages of vhost-user, as in QEMU's docs/interop/vhost-user.rst: numbers and layouts."""

from __future__ import annotations

import struct

from pykvm.typed import NamedTuple

GET_FEATURES, SET_FEATURES, SET_OWNER = 1, 2, 3
SET_MEM_TABLE = 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
GET_CONFIG, SET_CONFIG = 24, 25

NAMES = {
    number: name
    for name, number in globals().items()
    if name.startswith(("GET_", "SET_")) and isinstance(number, int)
}

VERSION, REPLY, NEED_REPLY = 1, 1 << 2, 1 << 3
VERSION_MASK = 3
F_PROTOCOL_FEATURES = 1 << 30  # among the feature bits of the device
PROTOCOL_MQ, PROTOCOL_REPLY_ACK, PROTOCOL_CONFIG = 1 << 0, 1 << 3, 1 << 9

HEADER = struct.Struct("<III")  # request, flags, payload bytes
PAYLOAD_LIMIT = 4096  # of a reply
REGION_LIMIT = 8  # of a SET_MEM_TABLE
CONFIG_LIMIT = 256
NO_FD = 1 << 8  # in SET_VRING_KICK and _CALL

U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")  # index, number
VRING_ADDRESS = struct.Struct("<IIQQQQ")  # index, flags, descriptors, used, available, log
_REGION = struct.Struct("<QQQQ")  # guest-physical, size, user address, offset in the file
_TABLE = struct.Struct("<II")
_CONFIG = struct.Struct("<III")  # offset, size, flags


class Region(NamedTuple):
    """A piece of guest memory, and the file that it is."""

    gpa: int
    size: int
    offset: int
    fd: int


def memory_table(regions: list[Region]) -> bytes:
    """SET_MEM_TABLE. Our "user addresses" are the guest-physical ones: both sides only compare."""
    table = _TABLE.pack(len(regions), 0)
    return table + b"".join(_REGION.pack(r.gpa, r.size, r.gpa, r.offset) for r in regions)


def config_request(size: int, offset: int = 0) -> bytes:
    """GET_CONFIG: room for `size` bytes."""
    return _CONFIG.pack(offset, size, 0) + bytes(size)


def config_change(offset: int, data: bytes) -> bytes:
    """SET_CONFIG by the driver."""
    return _CONFIG.pack(offset, len(data), 0) + data


def config_reply(payload: bytes, size: int) -> bytes | None:
    """The bytes in the answer to GET_CONFIG; None where it has not as many as asked for."""
    if len(payload) != _CONFIG.size + size or _CONFIG.unpack_from(payload)[1] != size:
        return None
    return payload[_CONFIG.size :]
