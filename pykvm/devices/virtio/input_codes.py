"""Linux's evdev codes (linux/input-event-codes.h), and the keys of a PS/2 keyboard in them.

Codes 1 to 88 are the scan codes of set 1; those with a prefix have a table.
"""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.devices.pc import ps2keys

EV_SYN, EV_KEY, EV_REL, EV_ABS, EV_LED, EV_REP = 0, 1, 2, 3, 0x11, 0x14
REL_X, REL_Y, REL_WHEEL = 0, 1, 8
ABS = (0, 1)  # ABS_X, ABS_Y
BTN_LEFT, BTN_RIGHT, BTN_MIDDLE = 0x110, 0x111, 0x112
LEDS = {"num": 0, "caps": 1, "scroll": 2}
KEY_PAUSE = 119

_EXTENDED = {  # set 1 after 0xE0 -> code
    0x1C: 96, 0x1D: 97, 0x35: 98, 0x37: 99, 0x38: 100, 0x47: 102, 0x48: 103, 0x49: 104, 0x4B: 105,
    0x4D: 106, 0x4F: 107, 0x50: 108, 0x51: 109, 0x52: 110, 0x53: 111, 0x5B: 125, 0x5C: 126,
    0x5D: 127, 0x5E: 116, 0x5F: 142, 0x63: 143,
}  # fmt: skip


def evdev_key(stroke: bytes) -> tuple[int, int]:
    """(code, 1 for down or 0 for up) of the bytes of set 2 that one key sends."""
    up = ps2keys.BREAK in stroke and not stroke.startswith(b"\xe1")
    if b"\xe1" in stroke:  # the pause key
        return KEY_PAUSE, int(stroke.startswith(b"\xe1"))
    plain = bytes(byte for byte in stroke if byte != ps2keys.BREAK)
    if plain[:1] == b"\xe0":
        # Print sends a shift that is none beside its own code 7c.
        code = 0x7C if b"\x7c" in plain else plain[-1]
        return _EXTENDED[ps2keys.TRANSLATION[code]], int(not up)
    return ps2keys.TRANSLATION[plain[-1]], int(not up)


def known_keys() -> list[int]:
    """The codes of every key that has a name."""
    return sorted({evdev_key(down)[0] for down, _ in ps2keys.KEYS.values()})


def bitmap(codes: Sequence[int]) -> bytes:
    """Bits of the codes, the lowest byte first, without zeros behind the last."""
    value = sum(1 << code for code in set(codes))
    return value.to_bytes(-(-value.bit_length() // 8), "little")
