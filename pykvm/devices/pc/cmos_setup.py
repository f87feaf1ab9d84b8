"""What firmware expects in CMOS RAM: memory sizes, equipment, boot order, checksum.

Sources: Ralf Brown's interrupt list, CMOS.LST (IBM AT locations 0x0e-0x31); SeaBIOS,
src/hw/rtc.h, and QEMU, hw/i386/pc.c, for what virtual machines add (0x34, 0x35, 0x38, 0x3d,
0x5b-0x5d).
"""

from __future__ import annotations

EQUIPMENT = 0x14
BASE_MEMORY = 0x15  # KiB, two bytes
EXTENDED_MEMORY = (0x17, 0x30)  # KiB above 1 MiB, two bytes, at both places
CHECKSUM = 0x2E  # of 0x10 to 0x2d, high byte first
MEMORY_ABOVE_16M = 0x34  # 64 KiB units, two bytes
BOOT_THIRD, BOOT_FIRST_TWO = 0x38, 0x3D
MEMORY_ABOVE_4G = 0x5B  # 64 KiB units, three bytes

_BOOT_CODES = {"a": 1, "c": 2, "d": 3, "n": 4}
_EQUIPMENT = 0x06  # a floating-point unit and a PS/2 mouse; an EGA or VGA screen


def setup_bytes(ram_below_4g: int, ram_above_4g: int, boot_order: str) -> dict[int, int]:
    """CMOS location → byte, for RAM sizes in bytes and a boot order such as "cda".

    Raises `ValueError` for a boot order that cannot be stored.
    """
    if len(boot_order) > 3 or any(letter not in _BOOT_CODES for letter in boot_order):
        raise ValueError(
            f"boot order {boot_order!r} is not possible; use up to three of a (floppy), c (disk), "
            "d (CD-ROM), n (network)"
        )
    extended = min(max(0, ram_below_4g - (1 << 20)) >> 10, 0xFFFF)
    above_16m = min(max(0, ram_below_4g - (16 << 20)) >> 16, 0xFFFF)
    found: dict[int, int] = {EQUIPMENT: _EQUIPMENT}
    _put(found, BASE_MEMORY, min(640, ram_below_4g >> 10), 2)
    for at in EXTENDED_MEMORY:
        _put(found, at, extended, 2)
    _put(found, MEMORY_ABOVE_16M, above_16m, 2)
    _put(found, MEMORY_ABOVE_4G, min(ram_above_4g >> 16, 0xFF_FFFF), 3)
    first, second, third = ([_BOOT_CODES[letter] for letter in boot_order] + [0, 0, 0])[:3]
    found[BOOT_FIRST_TWO] = second << 4 | first
    found[BOOT_THIRD] = third << 4
    total = sum(value for at, value in found.items() if 0x10 <= at < CHECKSUM)
    found[CHECKSUM], found[CHECKSUM + 1] = total >> 8 & 0xFF, total & 0xFF
    return found


def _put(found: dict[int, int], at: int, value: int, size: int) -> None:
    for i, byte in enumerate(value.to_bytes(size, "little")):
        found[at + i] = byte
