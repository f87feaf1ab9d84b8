"""ATAPI CD-ROM: the packet commands that firmware and drivers send."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from ide_host import DRDY, DRQ, ERR, Host

from pykvm.devices.block import BlockError, MemoryDisk

BLOCKS = 40
IMAGE = b"".join(struct.pack("<I", n) * 512 for n in range(BLOCKS))


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host(cdrom=IMAGE)
    made.use(2)
    yield made
    made.close()


def blocks(first: int, count: int) -> bytes:
    return IMAGE[2048 * first : 2048 * (first + count)]


def read10(lba: int, count: int) -> tuple[int, ...]:
    return (0x28, 0, *lba.to_bytes(4), 0, *count.to_bytes(2))


def test_signature_and_identify(host: Host) -> None:
    assert host.command(0xEC) & ERR
    assert (host.channel.read(4, 1), host.channel.read(5, 1)) == (0x14, 0xEB)
    assert host.command(0xA1) & DRQ
    words = struct.unpack("<256H", host.read_data(512))
    assert words[0] == 0x8580
    assert struct.pack(">20H", *words[27:47]).decode().strip() == "PYKVM CDROM"
    assert not host.status() & DRQ


def test_inquiry(host: Host) -> None:
    data = host.reply(0x12, 0, 0, 0, 36)
    assert len(data) == 36
    assert data[0] == 5
    assert data[8:16] == b"PYKVM   "
    assert host.reply(0x12, 0, 0, 0, 5) == data[:5]
    assert host.packet(0x12, 1, 0, 0, 36) & ERR


def test_interrupt_reasons_of_a_read(host: Host) -> None:
    host.registers(feature=0, mid=0, high=8)
    host.channel.write(7, 1, 0xA0)
    assert host.channel.read(2, 1) & 3 == 1  # the device wants a command
    host.write_data(bytes([*read10(3, 2), 0, 0, 0]))
    for block in (3, 4):
        assert host.irq.take_edge()
        assert host.channel.read(2, 1) & 3 == 2  # data for the host
        assert host.channel.read(5, 1) == 8
        assert host.acknowledge() & DRQ
        assert host.read_data(2048) == blocks(block, 1)
    assert host.irq.take_edge()
    assert host.channel.read(2, 1) & 3 == 3  # done
    assert host.acknowledge() == DRDY | 0x10


@pytest.mark.parametrize("limit", [0, 2, 0x7FF, 0x800, 0x1234, 0xFFFE, 0xFFFF])
def test_any_byte_count_limit(host: Host, limit: int) -> None:
    count = 1 if limit == 2 else 20
    host.packet(*read10(5, count), limit=limit)
    data = b""
    while host.status() & DRQ:
        length = host.channel.read(4, 1) | host.channel.read(5, 1) << 8
        assert 0 < length <= (limit or 0xFFFF)
        data += host.read_data(length)
    assert data == blocks(5, count)


def test_rep_instructions_read_a_block(host: Host) -> None:
    host.packet(*read10(0, 3), limit=2048)
    assert host.channel.read_block(0, 2, 1024) == blocks(0, 1)
    assert host.channel.read_block(0, 4, 1024) == blocks(1, 2)
    assert not host.status() & DRQ


def test_dma(host: Host) -> None:
    assert host.packet(*read10(7, 2), dma=True) & DRQ
    status = host.dma([(0x2000, 2048), (0x6000, 2048)], to_memory=True)
    assert status & 0x07 == 0x04
    assert host.memory.read(0x6000, 2048) == blocks(8, 1)
    assert host.channel.read(2, 1) & 3 == 3
    assert not host.status() & (DRQ | ERR)


def test_dma_of_a_short_reply(host: Host) -> None:
    host.packet(0x25, dma=True)
    host.dma([(0x2000, 8)], to_memory=True)
    assert host.memory.read(0x2000, 8) == struct.pack(">II", BLOCKS - 1, 2048)


def test_read12_and_read_cd(host: Host) -> None:
    assert host.reply(0xA8, 0, 0, 0, 0, 2, 0, 0, 0, 3) == blocks(2, 3)
    assert host.reply(0xBE, 0, 0, 0, 0, 4, 0, 0, 1, 0x10) == blocks(4, 1)
    assert host.packet(0xBE, 0, 0, 0, 0, 4, 0, 0, 1, 0xF8) & ERR
    assert host.packet(0xA8, 0, 0, 0, 0, 2, 0xFF, 0, 0, 3) & ERR


def test_read_of_nothing_is_done_at_once(host: Host) -> None:
    assert not host.packet(*read10(0, 0)) & (ERR | DRQ)
    assert not host.packet(0x2B, 0, 0, 0, 0, 39) & ERR


@pytest.mark.parametrize("packet", [read10(39, 2), read10(0xFFFFFFFF, 1), (0x2B, 0, 0, 0, 1)])
def test_beyond_the_end(host: Host, packet: tuple[int, ...]) -> None:
    assert host.packet(*packet) & (ERR | DRQ) == ERR
    assert host.sense() == (5, 0x21, 0)
    assert host.sense() == (0, 0, 0)


def test_unknown_command(host: Host) -> None:
    assert host.packet(0xFF) & ERR
    assert host.channel.read(1, 1) >> 4 == 5
    assert host.sense() == (5, 0x20, 0)


def test_no_disc(host: Host) -> None:
    host.cdrom.eject()
    for packet in ((0x00,), (0x25,), read10(0, 1), (0x43, 0, 0, 0, 0, 0, 0, 0, 12)):
        assert host.packet(*packet) & ERR
        assert host.sense() == (2, 0x3A, 0)
    assert host.reply(0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8)[4:6] == bytes([3, 0])
    assert host.reply(0x46, 0, 0, 0, 0, 0, 0, 0, 8)[6:8] == bytes(2)


def test_a_new_disc_is_told_once(host: Host) -> None:
    host.cdrom.eject()
    host.cdrom.insert(MemoryDisk(bytes(2048 * 3)))
    assert host.packet(0x00) & ERR
    assert host.sense() == (6, 0x28, 0)
    assert not host.packet(0x00) & ERR
    assert host.reply(0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8)[4:6] == bytes([2, 2])
    assert host.reply(0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8)[4] == 0
    assert host.reply(0x25) == struct.pack(">II", 2, 2048)


def test_a_last_block_that_is_not_whole(host: Host) -> None:
    host.cdrom.medium = MemoryDisk(b"x" * 2560)
    assert host.reply(*read10(1, 1)) == b"x" * 512 + bytes(1536)


def test_toc(host: Host) -> None:
    data = host.reply(0x43, 0, 0, 0, 0, 0, 0, 3, 0)
    assert data[:4] == bytes([0, 18, 1, 1])
    assert data[4:12] == bytes([0, 0x14, 1, 0, 0, 0, 0, 0])
    assert data[12:20] == bytes([0, 0x16, 0xAA, 0, 0, 0, 0, BLOCKS])
    msf = host.reply(0x43, 2, 0, 0, 0, 0, 0xAA, 3, 0)
    assert msf[8:12] == bytes([0, 0, 2, BLOCKS])
    assert host.reply(0x43, 0, 1, 0, 0, 0, 0, 0, 12)[:4] == bytes([0, 10, 1, 1])
    assert len(host.reply(0x43, 2, 2, 0, 0, 0, 0, 1, 0)) == 4 + 4 * 11
    assert host.packet(0x43, 0, 5, 0, 0, 0, 0, 0, 12) & ERR


def test_mode_sense_and_the_door(host: Host) -> None:
    page = host.reply(0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 100)
    assert page[8:10] == bytes([0x2A, 18])
    assert int.from_bytes(page[:2]) == len(page) - 2
    short = host.reply(0x1A, 0, 0x3F, 0, 100)
    assert short[0] == len(short) - 1
    assert host.packet(0x5A, 0, 0x0E, 0, 0, 0, 0, 0, 100) & ERR
    host.packet(0x1E, 0, 0, 0, 1)
    assert host.packet(0x1B, 0, 0, 0, 2) & ERR
    assert host.sense() == (5, 0x53, 2)
    host.packet(0x1E, 0, 0, 0, 0)
    assert not host.packet(0x1B, 0, 0, 0, 2) & ERR


def test_configuration(host: Host) -> None:
    data = host.reply(0x46, 0, 0, 0, 0, 0, 0, 2, 0)
    assert int.from_bytes(data[:4]) == len(data) - 4
    assert int.from_bytes(data[6:8]) == 0x08
    assert host.reply(0x46, 2, 0, 0x10, 0, 0, 0, 2, 0)[8:10] == bytes([0, 0x10])
    assert host.reply(0x51, 0, 0, 0, 0, 0, 0, 0, 34)[1] == 32
    assert len(host.reply(0xBD, 0, 0, 0, 0, 0, 0, 0, 0, 8)) == 8


def test_device_reset_and_other_ata_commands(host: Host) -> None:
    host.channel.write(7, 1, 0xA0)
    host.command(0x08)
    assert host.status() == 0
    assert host.channel.read(5, 1) == 0xEB
    host.registers(feature=3, count=0x22)
    assert not host.command(0xEF) & ERR
    assert not host.command(0xE5) & ERR
    assert host.command(0x30) & ERR


def test_an_error_of_the_host_is_a_read_error(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(offset: int, length: int) -> bytes:
        raise BlockError("scratched")

    medium = host.cdrom.medium
    assert medium is not None
    monkeypatch.setattr(medium, "read", broken)
    assert host.packet(*read10(0, 1)) & ERR
    assert host.sense() == (3, 0x11, 0)
    host.packet(*read10(0, 1), dma=True)
    host.dma([(0x2000, 2048)], to_memory=True)
    assert host.status() & ERR
    assert host.sense() == (3, 0x11, 0)


def test_the_disc_goes_while_it_is_read(host: Host) -> None:
    host.packet(*read10(0, 4), limit=2048)
    host.read_data(1024)
    host.cdrom.eject()
    host.read_data(1024)
    assert host.status() & (ERR | DRQ) == ERR
