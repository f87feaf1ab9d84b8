"""A host for IDE tests: a controller on memory, and a driver that does what drivers do."""

from __future__ import annotations

import struct

from pykvm.devices import RecordingIrqLine
from pykvm.devices.block import MemoryDisk
from pykvm.devices.ide import AtaDisk, AtapiCdrom, IdeController
from pykvm.memory import GuestMemory

BSY, DRDY, DRQ, ERR = 0x80, 0x40, 0x08, 0x01
TABLE = 0x1000  # where tests put the bus master's table, guest-physical


class Host:
    """A controller with a disk (drive 0) and a CD-ROM (drive 2), and 64 KiB of memory."""

    def __init__(self, disk: bytes = b"", cdrom: bytes | None = None) -> None:
        self.memory = GuestMemory.anonymous([(0, 0x40000)])
        self.irqs = (RecordingIrqLine(), RecordingIrqLine())
        self.controller = IdeController(self.memory, self.irqs)
        self.disk = MemoryDisk(disk or bytes(512 * 64))
        self.controller.add_drive(0, AtaDisk(self.disk))
        self.cdrom = AtapiCdrom(None if cdrom is None else MemoryDisk(cdrom))
        self.controller.add_drive(2, self.cdrom)
        self.controller.write(4, 2, 0x05)  # I/O ports, bus master
        self.use(0)

    def use(self, index: int) -> None:
        """Selects a drive; `lba` addresses from here on."""
        self.channel = self.controller.channels[index // 2]
        self.irq = self.irqs[index // 2]
        self.base = 0xE0 | (index & 1) << 4
        self.channel.write(6, 1, self.base)

    def status(self) -> int:
        """The alternate status, which leaves the interrupt alone."""
        return self.channel.control.read(0, 1)

    def registers(self, **values: int) -> None:
        """Task-file registers by name."""
        names = ("", "feature", "count", "low", "mid", "high", "device")
        for name, value in values.items():
            self.channel.write(names.index(name), 1, value)

    def command(self, command: int, lba: int | None = None, count: int = 1) -> int:
        """A command with a 28-bit address; the status after it."""
        if lba is not None:
            self.registers(count=count & 0xFF, low=lba & 0xFF, mid=lba >> 8 & 0xFF)
            self.registers(high=lba >> 16 & 0xFF, device=self.base | lba >> 24 & 0x0F)
        self.channel.write(7, 1, command)
        return self.status()

    def command48(self, command: int, lba: int, count: int = 1) -> int:
        """A command with a 48-bit address; the status after it."""
        for shift in (24, 0):
            self.registers(
                count=count >> (shift // 3) & 0xFF, low=lba >> shift & 0xFF,
                mid=lba >> shift + 8 & 0xFF, high=lba >> shift + 16 & 0xFF,
            )  # fmt: skip
        self.registers(device=self.base)
        self.channel.write(7, 1, command)
        return self.status()

    def read_data(self, length: int, width: int = 2) -> bytes:
        """Bytes from the data register."""
        words = [self.channel.read(0, width) for _ in range(length // width)]
        return b"".join([word.to_bytes(width, "little") for word in words])

    def write_data(self, data: bytes, width: int = 2) -> None:
        """Bytes to the data register."""
        for at in range(0, len(data), width):
            self.channel.write(0, width, int.from_bytes(data[at : at + width], "little"))

    def acknowledge(self) -> int:
        """The status register, which takes the interrupt back."""
        return self.channel.read(7, 1)

    def packet(self, *values: int, limit: int = 0xFFFE, dma: bool = False) -> int:
        """A packet command; the status after its twelve bytes."""
        self.registers(feature=dma, mid=limit & 0xFF, high=limit >> 8)
        self.channel.write(7, 1, 0xA0)
        assert self.status() & DRQ
        self.write_data(bytes([*values, *[0] * (12 - len(values))]))
        return self.status()

    def reply(self, *values: int) -> bytes:
        """A packet command's data, block by block as the byte count says."""
        self.packet(*values)
        data = b""
        while self.status() & DRQ:
            length = self.channel.read(4, 1) | self.channel.read(5, 1) << 8
            data += self.read_data(length + (length & 1))[:length]
        return data

    def sense(self) -> tuple[int, int, int]:
        """REQUEST SENSE: key, additional code, qualifier."""
        data = self.reply(0x03, 0, 0, 0, 18)
        return data[2], data[12], data[13]

    def dma(self, regions: list[tuple[int, int]], *, to_memory: bool) -> int:
        """Programs and starts the bus master; its status after that."""
        table = b""
        for i, (address, size) in enumerate(regions):
            last = 0x80000000 if i == len(regions) - 1 else 0
            table += struct.pack("<II", address, size & 0xFFFF | last)
        self.memory.write(TABLE, table)
        master = self.controller.masters[self.controller.channels.index(self.channel)]
        master.write(4, 4, TABLE)
        master.write(0, 1, 0x08 if to_memory else 0)
        master.write(0, 1, 0x09 if to_memory else 1)
        return master.read(2, 1)

    def close(self) -> None:
        """Gives the memory back."""
        self.controller.close()
        self.memory.close()
