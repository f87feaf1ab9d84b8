"""EDID: what a monitor says of itself (VESA E-EDID standard, release A.2, EDID 1.4)."""

from __future__ import annotations

import struct


def edid(width: int, height: int, *, name: str = "pykvm", refresh: int = 60) -> bytes:
    """The 128 bytes of a monitor whose preferred mode is `width` x `height` pixels.

    The mode is there as far as a detailed timing can say it: up to 4095 pixels each way; a larger
    one is cut to that, and what the display is set to comes by the device's own commands.
    """
    width, height = min(width, 4095), min(height, 4095)
    block = bytearray(128)
    block[0:8] = b"\x00\xff\xff\xff\xff\xff\xff\x00"
    block[8:10] = struct.pack(">H", 16 << 10 | 11 << 5 | 22)  # the maker: "PKV", A is 1
    block[10:16] = struct.pack("<HI", 1, 1)  # product, serial number
    block[16:20] = bytes((255, 35, 1, 4))  # model year 2025, EDID 1.4
    # Digital, 8 bits a colour; size for 96 dots an inch; gamma 2.2; sRGB, preferred timing first.
    centimetres = [max(1, min(255, round(n * 2.54 / 96))) for n in (width, height)]
    block[20:25] = bytes((0xA0, *centimetres, 120, 0x06))
    block[25:35] = bytes.fromhex("ee91a3544c99260f5054")  # chromaticity of sRGB
    block[38:54] = b"\x01\x01" * 8  # no standard timings
    block[54:72] = _timing(width, height, refresh, centimetres)
    block[72:90] = _text(0xFC, name)
    block[90:108] = _text(0xFF, "0")
    block[108:126] = b"\x00\x00\x00\x10" + bytes(14)  # nothing
    block[127] = -sum(block) & 0xFF
    return bytes(block)


def _timing(width: int, height: int, refresh: int, centimetres: list[int]) -> bytes:
    """A detailed timing descriptor with reduced blanking."""
    across, down = 160, 30
    clock = min((width + across) * (height + down) * refresh // 10_000, 0xFFFF)
    millimetres = [min(n * 10, 4095) for n in centimetres]
    return struct.pack(
        "<H12B4x",
        clock,
        width & 0xFF, across & 0xFF, width >> 8 << 4 | across >> 8,
        height & 0xFF, down & 0xFF, height >> 8 << 4 | down >> 8,
        48, 32, 3 << 4 | 5, 0,  # front porches and widths of the syncs
        millimetres[0] & 0xFF, millimetres[1] & 0xFF,
    )[:14] + bytes((millimetres[0] >> 8 << 4 | millimetres[1] >> 8, 0, 0, 0x1E))  # fmt: skip


def _text(tag: int, text: str) -> bytes:
    raw = text.encode("ascii", "replace")[:13]
    if len(raw) < 13:
        raw = (raw + b"\n").ljust(13)
    return bytes((0, 0, 0, tag, 0)) + raw
