"""The packet commands of a CD-ROM drive: what each answers (MMC-3, SPC-2)."""

from __future__ import annotations

import struct
from collections.abc import Callable

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.devices.ide.atapi import AtapiCdrom

SECTOR = 2048
_CD_SECTORS = 80 * 60 * 75  # more than that is a DVD
_PROFILE_CD, _PROFILE_DVD = 0x08, 0x10
# Bytes, a range of the medium as (offset, length), or nothing to send.
Result = bytes | tuple[int, int] | None


class Sense:
    """(sense key, additional code, qualifier)."""

    NONE = (0x0, 0x00, 0x00)
    NO_MEDIUM = (0x2, 0x3A, 0x00)
    READ_ERROR = (0x3, 0x11, 0x00)
    BAD_COMMAND = (0x5, 0x20, 0x00)
    OUT_OF_RANGE = (0x5, 0x21, 0x00)
    BAD_FIELD = (0x5, 0x24, 0x00)
    LOCKED = (0x5, 0x53, 0x02)
    MEDIUM_CHANGED = (0x6, 0x28, 0x00)


class CheckCondition(Exception):
    """A packet command that ends with CHECK CONDITION and this sense."""

    def __init__(self, sense: tuple[int, int, int]) -> None:
        super().__init__(f"sense {sense[0]:x}/{sense[1]:02x}/{sense[2]:02x}")
        self.sense = sense


def execute(drive: AtapiCdrom, packet: bytes) -> Result:
    """Runs the twelve bytes of `packet`. Raises `CheckCondition`."""
    entry = _COMMANDS.get(packet[0])
    if entry is None:
        raise CheckCondition(Sense.BAD_COMMAND)
    handler, needs_medium, waits = entry
    if waits and drive.attention is not None:
        attention, drive.attention = drive.attention, None
        raise CheckCondition(attention)
    if needs_medium and drive.medium is None:
        raise CheckCondition(Sense.NO_MEDIUM)
    return handler(drive, packet)


def _word(packet: bytes, at: int) -> int:
    return packet[at] << 8 | packet[at + 1]


def _test_unit_ready(drive: AtapiCdrom, packet: bytes) -> Result:
    return None


def _request_sense(drive: AtapiCdrom, packet: bytes) -> Result:
    sense = drive.sense
    if drive.attention is not None and sense == Sense.NONE:
        sense, drive.attention = drive.attention, None
    drive.sense = Sense.NONE
    data = bytearray(18)
    data[0], data[2], data[7], data[12], data[13] = 0x70, sense[0], 10, sense[1], sense[2]
    return bytes(data[: packet[4]])


def _inquiry(drive: AtapiCdrom, packet: bytes) -> Result:
    if packet[1] & 1:  # vital product data: none
        raise CheckCondition(Sense.BAD_FIELD)
    vendor, _, product = drive.model.partition(" ")
    data = bytes([5, 0x80, 0, 0x21, 31, 0, 0, 0])
    data += vendor.encode("ascii", "replace")[:8].ljust(8)
    data += product.encode("ascii", "replace")[:16].ljust(16) + b"1.0 "
    return data[: _word(packet, 3)]


def _range(drive: AtapiCdrom, lba: int, count: int) -> Result:
    if lba + count > drive.blocks:
        raise CheckCondition(Sense.OUT_OF_RANGE)
    return (lba * SECTOR, count * SECTOR) if count else None


def _read10(drive: AtapiCdrom, packet: bytes) -> Result:
    return _range(drive, int.from_bytes(packet[2:6]), _word(packet, 7))


def _read12(drive: AtapiCdrom, packet: bytes) -> Result:
    count = int.from_bytes(packet[6:10])
    if count > 0x1_0000:
        raise CheckCondition(Sense.BAD_FIELD)
    return _range(drive, int.from_bytes(packet[2:6]), count)


def _read_cd(drive: AtapiCdrom, packet: bytes) -> Result:
    """Only the 2048 bytes of user data are there: no headers, no sub-channel."""
    parts = packet[9] & 0xF8
    if parts == 0:
        return None
    if parts != 0x10 or packet[10] & 7:
        raise CheckCondition(Sense.BAD_FIELD)
    return _range(drive, int.from_bytes(packet[2:6]), int.from_bytes(packet[6:9]) & 0xFFFF)


def _seek(drive: AtapiCdrom, packet: bytes) -> Result:
    _range(drive, int.from_bytes(packet[2:6]), 1)
    return None


def _capacity(drive: AtapiCdrom, packet: bytes) -> Result:
    if not drive.blocks:
        raise CheckCondition(Sense.NO_MEDIUM)
    return struct.pack(">II", drive.blocks - 1, SECTOR)


def _address(lba: int, msf: int) -> bytes:
    if not msf:
        return struct.pack(">I", lba)
    frames = min(lba + 150, 255 * 60 * 75)
    return bytes([0, frames // (60 * 75), frames // 75 % 60, frames % 75])


def _toc(drive: AtapiCdrom, packet: bytes) -> Result:
    msf, kind = packet[1] & 2, packet[2] & 0x0F or packet[9] >> 6
    first = packet[6]
    if kind == 0:
        if first > 1 and first != 0xAA:
            raise CheckCondition(Sense.BAD_FIELD)
        body = b"" if first == 0xAA else bytes([0, 0x14, 1, 0]) + _address(0, msf)
        body += bytes([0, 0x16, 0xAA, 0]) + _address(drive.blocks, msf)
        data = struct.pack(">HBB", len(body) + 2, 1, 1) + body
    elif kind == 1:
        data = struct.pack(">HBB", 10, 1, 1) + bytes([0, 0x14, 1, 0]) + _address(0, msf)
    elif kind == 2:
        rows = [(0xA0, _point(1)), (0xA1, _point(1)), (0xA2, _address(drive.blocks, 2)[1:])]
        rows.append((1, _address(0, 2)[1:]))
        body = b"".join(
            bytes([1, 0x14, 0, point, 0, 0, 0, 0]) + where for point, where in rows
        )  # fmt: skip
        data = struct.pack(">HBB", len(body) + 2, 1, 1) + body
    else:
        raise CheckCondition(Sense.BAD_FIELD)
    return data[: _word(packet, 7)]


def _point(track: int) -> bytes:
    return bytes([track, 0, 0])


def _event_status(drive: AtapiCdrom, packet: bytes) -> Result:
    if not packet[1] & 1:  # only polling
        raise CheckCondition(Sense.BAD_FIELD)
    if not packet[4] & 0x10:  # only media events are told
        return struct.pack(">HBB", 2, 0x80, 0x10)[: _word(packet, 7)]
    event, drive.event = drive.event, 0
    present = 2 if drive.medium is not None else 0
    return (struct.pack(">HBB", 6, 4, 0x10) + bytes([event, present, 0, 0]))[: _word(packet, 7)]


def _configuration(drive: AtapiCdrom, packet: bytes) -> Result:
    current = 0
    if drive.medium is not None:
        current = _PROFILE_DVD if drive.blocks > _CD_SECTORS else _PROFILE_CD
    profiles = b"".join(
        struct.pack(">HBB", profile, profile == current, 0)
        for profile in (_PROFILE_DVD, _PROFILE_CD)
    )
    features = [
        (0, 0x03, profiles),
        (1, 0x0B, bytes([0, 0, 0, 2, 1, 0, 0, 0])),  # core: ATAPI
        (3, 0x03, bytes([0x29, 0, 0, 0])),  # removable, tray, can be locked and ejected
        (0x10, 0x01 if current else 0, struct.pack(">IHBB", SECTOR, 1, 0, 0)),  # random readable
        (0x1E, 0x01 if current == _PROFILE_CD else 0, bytes(4)),  # CD read
        (0x1F, 0x01 if current == _PROFILE_DVD else 0, bytes(4)),  # DVD read
    ]
    kind, start = packet[1] & 3, _word(packet, 2)
    body = b""
    for code, flags, data in features:
        wanted = code == start if kind == 2 else code >= start and (kind == 0 or flags & 1)
        if wanted:
            body += struct.pack(">HBB", code, flags, len(data)) + data
    return (struct.pack(">IHH", len(body) + 4, 0, current) + body)[: _word(packet, 7)]


def _mode_pages(drive: AtapiCdrom, page: int) -> bytes:
    pages = {
        0x01: bytes([0x01, 6, 0, 5, 0, 0, 0, 0]),  # read error recovery
        0x2A: bytes([0x2A, 18, 0x3B, 0, 0x70, 0, 0x29 | (2 if drive.locked else 0), 0])
        + struct.pack(">HHHHHH", 706, 2, 512, 706, 0, 0),
    }
    if page == 0x3F:
        return b"".join(pages.values())
    if page not in pages:
        raise CheckCondition(Sense.BAD_FIELD)
    return pages[page]


def _mode_sense(drive: AtapiCdrom, packet: bytes) -> Result:
    if packet[2] >> 6 == 3:  # saved values: none
        raise CheckCondition((0x5, 0x39, 0x00))
    pages = _mode_pages(drive, packet[2] & 0x3F)
    medium = 0x70 if drive.medium is None else 0x01
    if packet[0] == 0x1A:
        return (bytes([len(pages) + 3, medium, 0, 0]) + pages)[: packet[4]]
    return (struct.pack(">HBxxxxx", len(pages) + 6, medium) + pages)[: _word(packet, 7)]


def _start_stop(drive: AtapiCdrom, packet: bytes) -> Result:
    """Spinning up and down does nothing; the guest may open the tray, but the disc stays."""
    if packet[4] & 3 == 2 and drive.locked:
        raise CheckCondition(Sense.LOCKED)
    return None


def _prevent(drive: AtapiCdrom, packet: bytes) -> Result:
    drive.locked = bool(packet[4] & 1)
    return None


def _disc_information(drive: AtapiCdrom, packet: bytes) -> Result:
    data = bytearray(34)
    data[1], data[2] = 32, 0x0E  # finalized, last session complete
    data[3] = data[4] = data[5] = data[6] = 1
    data[7] = 0x20  # unrestricted use
    return bytes(data[: _word(packet, 7)])


def _mechanism(drive: AtapiCdrom, packet: bytes) -> Result:
    return bytes([0, 0, 0, 0, 0, 1, 0, 0])[: _word(packet, 8)]


# command: (function, needs a medium, tells of a changed medium first)
_COMMANDS: dict[int, tuple[Callable[[AtapiCdrom, bytes], Result], bool, bool]] = {
    0x00: (_test_unit_ready, True, True),
    0x03: (_request_sense, False, False),
    0x12: (_inquiry, False, False),
    0x1A: (_mode_sense, False, True),
    0x1B: (_start_stop, False, True),
    0x1E: (_prevent, False, True),
    0x25: (_capacity, True, True),
    0x28: (_read10, True, True),
    0x2B: (_seek, True, True),
    0x43: (_toc, True, True),
    0x46: (_configuration, False, False),
    0x4A: (_event_status, False, False),
    0x51: (_disc_information, True, True),
    0x5A: (_mode_sense, False, True),
    0xA8: (_read12, True, True),
    0xBD: (_mechanism, False, True),
    0xBE: (_read_cd, True, True),
}
