"""ATA disks and bus-master DMA, driven by a host that knows only registers."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from ide_host import BSY, DRDY, DRQ, ERR, TABLE, Host

from pykvm.devices.block import BlockError, MemoryDisk
from pykvm.devices.ide import AtaDisk, MediumError

SECTORS = 300
IMAGE = b"".join(struct.pack("<I", n) * 128 for n in range(SECTORS))


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host(IMAGE)
    yield made
    made.close()


def sectors(first: int, count: int) -> bytes:
    return IMAGE[512 * first : 512 * (first + count)]


def identify(host: Host) -> tuple[int, ...]:
    assert host.command(0xEC) & DRQ
    return struct.unpack("<256H", host.read_data(512))


def test_identify(host: Host) -> None:
    words = identify(host)
    model = struct.pack(">20H", *words[27:47]).decode()
    assert model.strip() == "PYKVM HARDDISK"
    assert words[60] | words[61] << 16 == SECTORS
    assert words[100] == SECTORS
    assert words[83] & 0x0400  # 48-bit addresses
    data = struct.pack("<256H", *words)
    assert data[510] == 0xA5
    assert sum(data) & 0xFF == 0


def test_a_read_interrupts_once_a_sector(host: Host) -> None:
    assert host.command(0x20, 7, 2) & DRQ
    assert host.irq.level
    assert host.acknowledge() & DRQ
    assert not host.irq.level
    assert host.read_data(512) == sectors(7, 1)
    assert host.irq.level
    assert host.read_data(512, width=4) == sectors(8, 1)
    assert host.irq.edges == 2
    assert not host.status() & (DRQ | BSY | ERR)


@pytest.mark.parametrize("nien", [False, True])
def test_interrupts_can_be_disabled(host: Host, nien: bool) -> None:
    host.channel.control.write(0, 1, 2 if nien else 0)
    host.command(0x20, 0, 1)
    assert host.irq.level is not nien
    host.channel.control.write(0, 1, 0)
    assert host.irq.level  # pending ones come then


def test_multiple_moves_several_sectors_for_an_interrupt(host: Host) -> None:
    host.registers(count=4)
    host.command(0xC6)
    edges = host.irq.edges
    host.command(0xC4, 10, 6)
    assert host.read_data(512 * 6) == sectors(10, 6)
    host.acknowledge()
    assert host.irq.edges - edges <= 3
    assert identify(host)[59] == 0x104
    host.registers(count=3)
    assert host.command(0xC6) & ERR
    host.registers(count=0)
    host.command(0xC6)
    assert host.command(0xC4, 0, 1) & ERR


def test_writes_reach_the_disk(host: Host) -> None:
    data = bytes(range(256)) * 4
    assert host.command(0x30, 5, 2) & DRQ
    assert not host.irq.level  # none before the first sector
    host.write_data(data[:512])
    assert host.irq.level
    host.write_data(data[512:], width=4)
    assert host.status() & DRDY
    assert host.disk.read(5 * 512, 1024) == data
    assert host.disk.read(7 * 512, 512) == sectors(7, 1)


def test_rep_instructions_move_the_same(host: Host) -> None:
    host.command(0x20, 3, 4)
    assert host.channel.read_block(0, 2, 300) == sectors(3, 4)[:600]
    assert host.channel.read_block(0, 4, 362) == sectors(3, 4)[600:]
    host.command(0x30, 0, 3)
    host.channel.write_block(0, 2, sectors(10, 3))
    assert host.disk.read(0, 1536) == sectors(10, 3)
    assert host.channel.read_block(7, 1, 2) == bytes([host.status()] * 2)


def test_48_bit_addresses(host: Host) -> None:
    assert host.command48(0x24, 290, 10) & DRQ
    assert host.read_data(5120) == sectors(290, 10)
    assert host.command48(0x24, 1 << 40, 1) & ERR
    host.channel.write(3, 1, 0x11)
    host.channel.write(3, 1, 0x22)
    host.channel.control.write(0, 1, 0x80)
    assert host.channel.read(3, 1) == 0x11
    host.channel.control.write(0, 1, 0)
    assert host.channel.read(3, 1) == 0x22


def test_count_zero_is_256_sectors(host: Host) -> None:
    host.command(0x20, 1, 256)
    assert host.read_data(512 * 256) == sectors(1, 256)
    assert not host.status() & DRQ


def test_chs_addresses(host: Host) -> None:
    host.registers(count=16, device=0xA0 | 3)
    assert not host.command(0x91) & ERR  # four heads of 16 sectors
    host.registers(count=1, low=5, mid=2, high=0, device=0xA0 | 1)
    host.command(0x20)
    assert host.read_data(512) == sectors((2 * 4 + 1) * 16 + 4, 1)
    host.registers(count=1, low=0)
    assert host.command(0x20) & ERR
    host.registers(count=1, low=17)
    assert host.command(0x20) & ERR


@pytest.mark.parametrize(("lba", "count"), [(299, 2), (300, 1), (0x0FFFFFFF, 1), (45, 256)])
@pytest.mark.parametrize("command", [0x20, 0x30, 0xC8, 0xCA, 0x40])
def test_nothing_beyond_the_end(host: Host, command: int, lba: int, count: int) -> None:
    assert host.command(command, lba, count) & (ERR | DRQ) == ERR
    assert host.channel.read(1, 1) == 0x10  # IDNF
    assert bytes(host.disk.data) == IMAGE


def test_a_read_only_disk(host: Host) -> None:
    host.disk.read_only = True
    assert host.command(0x30, 0, 1) & ERR
    assert host.channel.read(1, 1) == 0x04
    host.command(0x20, 0, 1)
    assert host.read_data(512) == sectors(0, 1)
    assert not host.command(0xE7) & ERR


def test_flush_and_fua(host: Host) -> None:
    host.command(0xE7)
    host.command(0xEA)
    assert host.disk.flushes == 2
    host.command48(0xCE, 0, 1)
    host.write_data(bytes(512))
    assert host.disk.flushes == 3
    host.registers(feature=0x82)
    host.command(0xEF)
    host.command(0x30, 0, 1)
    host.write_data(bytes(512))
    assert host.disk.flushes == 5


def test_an_error_of_the_host_is_a_bad_sector(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(offset: int, *rest: object) -> bytes:
        raise BlockError("the disk is on fire")

    monkeypatch.setattr(host.disk, "read", broken)
    monkeypatch.setattr(host.disk, "write", broken)
    assert host.command(0x20, 0, 1) & ERR
    assert host.channel.read(1, 1) == 0x40
    host.command(0x30, 0, 1)
    host.write_data(bytes(512))
    assert host.status() & ERR
    host.command(0xC8, 0, 1)
    host.dma([(0x2000, 512)], to_memory=True)
    assert host.status() & ERR


@pytest.mark.parametrize("command", [0x00, 0xA0, 0xA1, 0xB0, 0xF5, 0x08, 0xFF])
def test_what_a_disk_does_not_know(host: Host, command: int) -> None:
    assert host.command(command) & ERR
    assert host.channel.read(1, 1) == 0x04


@pytest.mark.parametrize("command", [0x10, 0x70, 0x90, 0xE0, 0xE1, 0xE2, 0xE3, 0xE5, 0xE6])
def test_what_just_succeeds(host: Host, command: int) -> None:
    assert host.command(command) & (ERR | DRDY) == DRDY


def test_native_max_and_transfer_modes(host: Host) -> None:
    host.command(0xF8)
    assert host.channel.read(3, 1) | host.channel.read(4, 1) << 8 == SECTORS - 1
    host.registers(feature=3, count=0x45)
    host.command(0xEF)
    assert identify(host)[88] == 0x203F
    host.registers(feature=0x77)
    assert host.command(0xEF) & ERR


def test_no_drive_is_silent(host: Host) -> None:
    host.use(1)
    assert host.status() == 0
    host.registers(count=0x55)
    assert host.channel.read(2, 1) == 0
    host.channel.write(7, 1, 0xEC)
    host.channel.write(0, 2, 0)
    assert host.channel.read(0, 2) == 0


def test_soft_reset_forgets_the_transfer(host: Host) -> None:
    host.command(0x20, 0, 4)
    host.channel.control.write(0, 1, 4)
    host.channel.control.write(0, 1, 0)
    assert not host.irq.level
    assert host.status() == DRDY | 0x10
    assert [host.channel.read(i, 1) for i in (1, 2, 3, 4, 5)] == [1, 1, 1, 0, 0]


# -- DMA -------------------------------------------------------------------------------------


def test_dma_read_scatters(host: Host) -> None:
    host.command(0xC8, 20, 4)
    status = host.dma([(0x2000, 512), (0x8002, 1024), (0x4000, 512)], to_memory=True)
    assert status & 0x07 == 0x04  # not active, no error, interrupt
    data = sectors(20, 4)
    assert host.memory.read(0x2000, 512) == data[:512]
    assert host.memory.read(0x8002, 1024) == data[512:1536]
    assert host.memory.read(0x4000, 512) == data[1536:]
    assert host.irq.level
    host.controller.masters[0].write(2, 1, 0x04)
    assert host.controller.masters[0].read(2, 1) & 4 == 0


def test_dma_started_before_the_command(host: Host) -> None:
    assert host.dma([(0x2000, 512)], to_memory=True) & 0x07 == 0x01
    host.command(0x25, 0)
    host.command48(0x25, 9, 1)
    assert host.memory.read(0x2000, 512) == sectors(9, 1)


def test_dma_write(host: Host) -> None:
    host.memory.write(0x3000, bytes(range(256)) * 4)
    host.command(0xCA, 2, 2)
    assert host.dma([(0x3000, 0x10000)], to_memory=False) & 0x07 == 0x05  # table was longer
    assert host.disk.read(1024, 1024) == bytes(range(256)) * 4


def test_dma_table_that_is_too_short(host: Host) -> None:
    host.command(0xC8, 0, 4)
    assert host.dma([(0x2000, 512)], to_memory=True) & 0x07 == 0
    assert host.status() & DRQ
    assert not host.irq.level
    assert host.dma([(0x4000, 1536)], to_memory=True) & 0x07 == 0x04
    assert host.memory.read(0x4000, 1536) == sectors(1, 3)


@pytest.mark.parametrize("region", [(0xFFFFFFFE, 512), (0x3FF00, 512), (0x50000, 2)])
def test_dma_outside_memory(host: Host, region: tuple[int, int]) -> None:
    host.command(0xC8, 0, 1)
    assert host.dma([region], to_memory=True) & 0x03 == 0x02
    assert host.status() & ERR
    host.command(0xCA, 0, 1)
    assert host.dma([region], to_memory=False) & 0x03 == 0x02
    assert bytes(host.disk.data) == IMAGE


def test_dma_table_without_an_end(host: Host) -> None:
    host.memory.write(0x2000, struct.pack("<II", 0x30000, 2) * 8192)
    master = host.controller.masters[0]
    host.command48(0x25, 0, 100)
    master.write(4, 4, 0x2000)
    master.write(0, 1, 0x09)
    assert master.read(2, 1) & 0x03 == 0x02
    assert host.status() & ERR
    master.write(0, 1, 0)
    master.write(4, 4, 0xFFFFFFFF)
    host.command(0xC8, 0, 1)
    master.write(0, 1, 0x09)
    assert master.read(2, 1) & 0x03 == 0x02
    assert master.read(4, 4) == 0xFFFFFFFC


def test_dma_in_the_wrong_direction(host: Host) -> None:
    host.command(0xCA, 0, 1)
    assert host.dma([(0x2000, 512)], to_memory=True) & 0x02
    assert host.status() & ERR
    assert bytes(host.disk.data) == IMAGE


def test_dma_waits_for_bus_mastering(host: Host) -> None:
    host.controller.write(4, 2, 1)
    host.command(0xC8, 6, 1)
    assert host.dma([(0x2000, 512)], to_memory=True) & 0x01
    assert host.memory.read(0x2000, 512) == bytes(512)
    host.controller.write(4, 2, 5)
    assert host.memory.read(0x2000, 512) == sectors(6, 1)


# -- the controller --------------------------------------------------------------------------


def test_pci_function(host: Host) -> None:
    controller = host.controller
    assert controller.read(0, 4) == 0x70108086
    assert controller.read(8, 4) >> 8 == 0x010180
    assert controller.read(0x40, 4) == 0x80008000
    controller.write(0x20, 4, 0xFFFFFFFF)
    assert controller.read(0x20, 4) == 0xFFFFFFF1
    places = {(port, length) for port, length, _ in controller.legacy_ranges()}
    assert places == {(0x1F0, 8), (0x3F6, 1), (0x170, 8), (0x376, 1)}
    registers = controller.bars[4]
    assert registers is not None
    assert registers.device is not None
    registers.device.write(0x0C, 4, TABLE)
    assert controller.masters[1].table == TABLE


def test_drives_have_their_places(host: Host) -> None:
    with pytest.raises(MediumError, match="is there already"):
        host.controller.add_drive(0, AtaDisk(MemoryDisk(bytes(512))))
    with pytest.raises(MediumError, match="drives 0 to 3"):
        host.controller.add_drive(4, AtaDisk(MemoryDisk(bytes(512))))
    with pytest.raises(MediumError, match="at least one sector"):
        AtaDisk(MemoryDisk())
    assert len(host.controller.drives) == 2


def test_power_on_again(host: Host) -> None:
    host.command(0x20, 0, 2)
    host.channel.reset()
    host.controller.reset()
    assert not host.irq.level
    assert host.status() == DRDY | 0x10
