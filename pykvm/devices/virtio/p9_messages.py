"""What the 9p device has to know of 9P2000.L messages: little; the server knows the rest."""

from __future__ import annotations

import struct

HEAD = struct.Struct("<IBH")  # size of all of it, type, tag
MESSAGE_LIMIT = 1 << 20
TVERSION, TATTACH, TFLUSH, RFLUSH, RLERROR = 100, 104, 108, 109, 7
_FIDS = struct.Struct("<II")
_LENGTH = struct.Struct("<H")
_USER = struct.Struct("<I")
ANONYMOUS = 0xFFFF_FFFF  # P9_NONUNAME: a user without a number
_NAME_LIMIT = 4096


def error_reply(tag: int, number: int) -> bytes:
    """Rlerror with a Linux errno."""
    return HEAD.pack(HEAD.size + 4, RLERROR, tag) + _USER.pack(number)


def flushed_tag(body: bytes) -> int | None:
    """The tag that a Tflush is about; None where the message is too short to say."""
    return int.from_bytes(body, "little") if len(body) == 2 else None


def pack_attach(tag: int, body: bytes, aname: bytes, user: int | None) -> bytes | None:
    """Tattach to `aname` instead of what its body says, and as `user` if that is not None.

    A name without a number, as Linux mounts with ("nobody"), is a name of the guest's: it means
    the server's own user, root, whom the guest's root can attach as anyway.
    None where the body is not that of a Tattach.
    """
    if len(body) > 2 * _NAME_LIMIT:
        return None
    try:
        fids, at = body[: _FIDS.size], _FIDS.size
        (length,) = _LENGTH.unpack_from(body, at)
        uname, at = body[at + 2 : at + 2 + length], at + 2 + length
        (skipped,) = _LENGTH.unpack_from(body, at)
        (number,) = _USER.unpack_from(body, at + 2 + skipped)
    except struct.error:
        return None
    if user is None and number == ANONYMOUS:
        user = 0
    if user is not None:
        uname, number = b"", user
    new = fids + _LENGTH.pack(len(uname)) + uname + _LENGTH.pack(len(aname)) + aname
    new += _USER.pack(number)
    return HEAD.pack(HEAD.size + len(new), TATTACH, tag) + new
