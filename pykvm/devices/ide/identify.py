"""The 512 bytes of IDENTIFY DEVICE and IDENTIFY PACKET DEVICE (ATA/ATAPI-7, 6.17 and 6.18)."""

from __future__ import annotations

import struct

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.devices.ide.ata import AtaDisk
    from pykvm.devices.ide.atapi import AtapiCdrom

FIRMWARE = "1.0"


def _put(words: list[int], first: int, count: int, text: str) -> None:
    """An ATA string: two characters a word, the first in the high byte, padded with spaces."""
    padded = text.encode("ascii", "replace")[: 2 * count].ljust(2 * count)
    words[first : first + count] = struct.unpack(f">{count}H", padded)


def _pack(words: list[int]) -> bytes:
    data = bytearray(struct.pack("<256H", *words))
    data[510] = 0xA5
    data[511] = -sum(data) & 0xFF
    return bytes(data)


def _dma_modes(mode: int) -> tuple[int, int]:
    """Words 63 and 88: multiword and ultra DMA modes, with the selected one."""
    multi, ultra = 0x07, 0x3F
    if mode >> 3 == 4:
        multi |= 0x100 << (mode & 7) & 0x0700
    elif mode >> 3 == 8:
        ultra |= 0x100 << (mode & 7) & 0x3F00
    return multi, ultra


def identify_disk(disk: AtaDisk) -> bytes:
    """For a disk."""
    words = [0] * 256
    words[0] = 0x0040
    words[1], words[3], words[6] = disk.cylinders, 16, 63
    _put(words, 10, 10, disk.serial)
    _put(words, 23, 4, FIRMWARE)
    _put(words, 27, 20, disk.model)
    words[47] = 0x8000 | 128
    words[48] = 1  # 32-bit accesses to the data register
    words[49] = 0x0F00  # DMA, LBA, IORDY
    words[50] = 0x4000
    words[51] = words[52] = 0x0200
    words[53] = 7  # words 54-58, 64-70 and 88 are valid
    cylinders = max(1, min(disk.sectors // (disk.heads * disk.track), 0xFFFF))
    words[54], words[55], words[56] = cylinders, disk.heads, disk.track
    reachable = cylinders * disk.heads * disk.track
    words[57], words[58] = reachable & 0xFFFF, reachable >> 16 & 0xFFFF
    words[59] = 0x100 | disk.multiple if disk.multiple else 0
    short = min(disk.sectors, 0x0FFF_FFFF)
    words[60], words[61] = short & 0xFFFF, short >> 16
    words[63], words[88] = _dma_modes(disk.mode)
    words[64] = 3  # PIO 3 and 4
    words[65:69] = [120] * 4
    words[80], words[81] = 0x00F0, 0x16  # ATA-4 to ATA-7
    words[82] = 0x4020  # NOP, write cache
    words[83] = 0x7400  # 48-bit addresses, FLUSH CACHE and its EXT
    words[84] = 0x4040  # FUA
    words[85] = 0x4000 | (0x20 if disk.write_cache else 0)
    words[86], words[87] = 0x3400, 0x4040
    words[93] = 0x6001  # device 0 passed, 80-conductor cable
    for i in range(4):
        words[100 + i] = disk.sectors >> 16 * i & 0xFFFF
    return _pack(words)


def identify_cdrom(drive: AtapiCdrom) -> bytes:
    """For a CD-ROM."""
    words = [0] * 256
    words[0] = 0x8580  # ATAPI, CD-ROM, removable, DRQ within 50 us, 12-byte packets
    _put(words, 10, 10, drive.serial)
    _put(words, 23, 4, FIRMWARE)
    _put(words, 27, 20, drive.model)
    words[48] = 1
    words[49] = 0x0B00  # DMA, LBA, IORDY
    words[53] = 6
    words[63], words[88] = _dma_modes(drive.mode)
    words[64] = 3
    words[65:69] = [120] * 4
    words[71], words[72] = 30, 30
    words[80], words[81] = 0x00F0, 0x16
    words[82] = words[85] = 0x4210  # NOP, DEVICE RESET, PACKET
    words[83] = words[84] = words[87] = 0x4000
    words[93] = 0x6001
    return _pack(words)
