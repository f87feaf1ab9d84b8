"""Random traffic at the registers of IDE and VGA: never an exception, never outside the image."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ide_host import Host

from pykvm.devices import DeviceStateError
from pykvm.devices.block import MemoryDisk
from pykvm.devices.display import Screen, Vga
from pykvm.devices.ide import AtaDisk, AtapiCdrom

_COMMANDS = [
    0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x3D, 0x40, 0x42, 0x90, 0x91, 0xA0, 0xA1, 0xC4,
    0xC5, 0xC6, 0xC8, 0xCA, 0xCE, 0xE7, 0xEC, 0xEF, 0xF8, 0x08, 0x27,
]  # fmt: skip
_PACKETS = [
    0x00, 0x03, 0x12, 0x1A, 0x1B, 0x1E, 0x25, 0x28, 0x2B, 0x43, 0x46, 0x4A, 0x51, 0x5A, 0xA8, 0xBD,
    0xBE, 0xFF,
]  # fmt: skip


class Guarded(MemoryDisk):
    """A disk that takes every access outside of it as a failed test, not as an error."""

    def check(self, offset: int, length: int, *, writing: bool = False) -> None:
        assert 0 <= offset <= offset + length <= self.size
        super().check(offset, length, writing=writing)


class Traffic:
    """A guest that does whatever comes to mind, more often what leads somewhere."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.host = Host()
        for channel in self.host.controller.channels:
            channel.drives[:] = [None, None]
        disk = AtaDisk(Guarded(bytes(512 * self.chance.randrange(1, 300))))
        self.host.controller.add_drive(0, disk)
        self.host.controller.add_drive(1, AtapiCdrom(Guarded(bytes(2048 * 5 + 512))))
        self.host.use(0)

    def step(self) -> None:
        chance, host = self.chance, self.host
        kind = chance.randrange(13)
        byte = chance.choice([0, 1, 2, 0x40, 0x80, 0xFF, chance.randrange(256)])
        if kind < 4:
            host.channel.write(chance.randrange(1, 7), chance.choice([1, 1, 2, 4]), byte)
        elif kind == 4:
            host.channel.write(6, 1, chance.choice([0xA0, 0xE0, 0xB0, 0xF0]) | byte & 0x0F)
        elif kind == 5:
            host.channel.write(7, 1, chance.choice(_COMMANDS))
        elif kind == 6:
            packet = bytes(
                [chance.choice(_PACKETS), *(chance.choice([0, 0, 1, 9, byte]) for _ in range(11))]
            )
            host.channel.write_block(0, 2, packet)
        elif kind == 7:
            count = chance.choice([1, 3, 128, 256, 4096])
            width = chance.choice([1, 2, 4])
            assert len(host.channel.read_block(0, width, count)) == width * count
        elif kind == 8:
            host.channel.write_block(0, 2, bytes(chance.choice([2, 12, 512, 1000])))
        elif kind == 9:
            value = host.channel.read(chance.randrange(8), chance.choice([1, 2, 4]))
            assert 0 <= value < 1 << 32
        elif kind == 10:
            regions = [
                (chance.choice([0, 0x2000, 0x3FFFE, 0xFFFFFFFF, chance.randrange(1 << 32)]),
                 chance.choice([0, 2, 512, 0xFFFE]))
                for _ in range(chance.randrange(1, 4))
            ]  # fmt: skip
            host.dma(regions, to_memory=chance.random() < 0.7)
        elif kind == 11:
            host.use(chance.randrange(2))
            host.command(
                chance.choice([0x20, 0x30, 0xC8, 0xCA]), byte & 0x0F, chance.choice([1, 3])
            )
        else:
            host.channel.control.write(0, 1, chance.choice([0, 0, 2, 4, 0x80, byte]))


@pytest.mark.parametrize("part", range(10))
def test_random_traffic(part: int) -> None:
    for seed in range(part * 20, part * 20 + 20):
        traffic = Traffic(seed)
        for _ in range(150):
            traffic.step()
        traffic.host.close()


def test_the_traffic_gets_somewhere() -> None:
    """Otherwise the test above would prove nothing."""
    phases = set()
    written = False
    for seed in range(60):
        traffic = Traffic(seed)
        disk = traffic.host.controller.drives[0].medium
        assert isinstance(disk, Guarded)
        for _ in range(150):
            traffic.step()
            phases |= {drive.phase for drive in traffic.host.controller.drives}
        written = written or any(traffic.host.memory.read(0x2000, 512)) or disk.flushes > 0
        traffic.host.close()
    assert phases == set(range(6))
    assert written


def junk() -> st.SearchStrategy[object]:
    leaf = st.one_of(st.none(), st.booleans(), st.integers(-9, 1 << 70), st.text(max_size=3))
    return st.one_of(leaf, st.integers(0, 600), st.lists(st.integers(0, 300), max_size=20))


@pytest.mark.parametrize("kind", [AtaDisk, AtapiCdrom])
def test_a_saved_drive_may_say_anything(kind: type[AtaDisk] | type[AtapiCdrom]) -> None:
    """It is taken whole or refused whole, and what is taken stays inside the image."""

    def make() -> AtaDisk | AtapiCdrom:
        return kind(Guarded(bytes(2048 * 3)))

    names = sorted(make().save())

    @settings(max_examples=400, deadline=None)
    @given(changes=st.dictionaries(st.sampled_from([*names, "alien"]), junk(), max_size=5))
    def check(changes: dict[str, object]) -> None:
        drive = make()
        before = drive.save()
        try:
            drive.load({**before, **changes})
        except DeviceStateError:
            assert drive.save() == before
        for _ in range(4):
            drive.take(700)
            drive.put(bytes(700))
            if drive.phase in (3, 4) and drive.left:
                (
                    drive.dma_in(512)
                    if drive.phase == 3
                    else drive.dma_out(bytes(min(512, drive.left)))
                )
        for offset in range(8):
            drive.read(offset, 1)

    check()


def test_random_vga_traffic() -> None:
    chance = random.Random(4)
    vga = Vga(vram_size=1 << 20)
    screen = Screen(vga)
    for i in range(6000):
        kind = chance.randrange(6)
        value = chance.randrange(1 << 16)
        if kind == 0:
            vga.write(chance.randrange(0x30), chance.choice([1, 2]), value)
        elif kind == 1:
            assert 0 <= vga.read(chance.randrange(0x30), chance.choice([1, 2])) < 1 << 16
        elif kind == 2:
            size = chance.choice([1, 2, 4, 8])
            offset = chance.randrange(0x20000)
            vga.window.write(offset, size, value)
            assert 0 <= vga.window.read(offset, size) < 1 << 8 * size
        elif kind == 3:
            vga.dispi_ports.write(0, 2, chance.randrange(12))
            vga.dispi_ports.write(
                chance.randrange(3), 2, chance.choice([value, value & 0x7F, 0x41])
            )
        elif kind == 4:
            vga.mmio.write(chance.randrange(0x1000), chance.choice([1, 2, 4]), value)
            assert 0 <= vga.mmio.read(chance.randrange(0x1000), 4) < 1 << 32
        elif i % 10 == 0:
            screen.text()
            width, height = screen.size
            if width * height <= 400_000:
                picture = screen.picture()
                assert struct.calcsize("B") * len(picture.data) > 0
    other = Vga(vram_size=1 << 20)
    other.load(vga.save())
    assert other.save() == vga.save()
    other.close()
    vga.close()
