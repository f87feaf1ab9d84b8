"""The VGA's registers, memory window, VBE registers and PCI face, driven without a guest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pykvm.devices import DeviceStateError
from pykvm.devices.display import PciVga, Vga, legacy_ranges, read_vgabios
from pykvm.devices.display.pci_vga import VgaRomError

TEXT = 0x18000  # of the window: guest-physical 0xb8000


@pytest.fixture
def vga() -> Iterator[Vga]:
    device = Vga(vram_size=1 << 20)
    yield device
    device.close()


def outb(vga: Vga, port: int, value: int) -> None:
    vga.write(port - 0x3B0, 1, value)


def inb(vga: Vga, port: int) -> int:
    return vga.read(port - 0x3B0, 1)


def outw(vga: Vga, port: int, index: int, value: int) -> None:
    vga.write(port - 0x3B0, 2, value << 8 | index)


def planar(vga: Vga) -> None:
    """Mode 12h's memory: 64 KiB at 0xa0000, four planes."""
    outw(vga, 0x3C4, 4, 0x06)
    outw(vga, 0x3C4, 2, 0x0F)
    outw(vga, 0x3CE, 5, 0x00)
    outw(vga, 0x3CE, 6, 0x05)


# -- registers -------------------------------------------------------------------------------


def test_power_on_is_colour_text(vga: Vga) -> None:
    assert inb(vga, 0x3CC) == 0x67
    outb(vga, 0x3D4, 0x01)
    assert inb(vga, 0x3D5) == 79
    assert not vga.registers.is_graphics
    assert vga.registers.colour(0x3F) == (255, 255, 255)


@pytest.mark.parametrize(
    ("index_port", "index", "mask"),
    [(0x3C4, 1, 0x3D), (0x3C4, 2, 0x0F), (0x3CE, 8, 0xFF), (0x3CE, 6, 0x0F), (0x3D4, 0x0E, 0xFF)],
)
def test_indexed_registers_keep_their_bits(
    vga: Vga, index_port: int, index: int, mask: int
) -> None:
    outb(vga, index_port, index)
    outb(vga, index_port + 1, 0xFF)
    assert inb(vga, index_port + 1) == mask
    outw(vga, index_port, index, 0)
    assert vga.read(index_port - 0x3B0, 2) == index


def test_a_register_that_is_not_there(vga: Vga) -> None:
    outb(vga, 0x3CE, 0x0F)
    outb(vga, 0x3CF, 0xFF)
    assert inb(vga, 0x3CF) == 0
    outb(vga, 0x3D4, 0xEE)
    outb(vga, 0x3D5, 0xFF)
    assert inb(vga, 0x3D5) == 0
    assert inb(vga, 0x3B0) == 0xFF


def test_crtc_moves_with_the_misc_register(vga: Vga) -> None:
    assert inb(vga, 0x3B5) == 0xFF
    outb(vga, 0x3C2, 0x66)
    outb(vga, 0x3B4, 0x0F)
    outb(vga, 0x3B5, 0x12)
    assert inb(vga, 0x3B5) == 0x12
    assert inb(vga, 0x3D5) == 0xFF


def test_crtc_write_protection(vga: Vga) -> None:
    before = vga.registers.crtc[0]
    assert vga.registers.crtc[0x11] & 0x80
    outw(vga, 0x3D4, 0, 0x11)
    outw(vga, 0x3D4, 7, 0x10)
    assert vga.registers.crtc[0] == before
    assert vga.registers.crtc[7] == 0x1F  # bit 4 is line compare: always writable
    outw(vga, 0x3D4, 0x11, 0x0E)
    outw(vga, 0x3D4, 0, 0x11)
    assert vga.registers.crtc[0] == 0x11


def test_attribute_flip_flop(vga: Vga) -> None:
    inb(vga, 0x3DA)
    outb(vga, 0x3C0, 0x02)
    outb(vga, 0x3C0, 0x2A)
    assert vga.registers.attribute[2] == 0x2A
    assert vga.registers.blanked  # bit 5 of the index was clear
    outb(vga, 0x3C0, 0x20)
    inb(vga, 0x3DA)  # the next write is an index again
    outb(vga, 0x3C0, 0x22)
    assert inb(vga, 0x3C1) == 0x2A
    assert not vga.registers.blanked


def test_dac_takes_three_writes(vga: Vga) -> None:
    outb(vga, 0x3C8, 5)
    for value in (0x3F, 0x20, 0xFF, 1, 2, 3):
        outb(vga, 0x3C9, value)
    assert vga.registers.colour(5) == (255, 130, 255)
    assert inb(vga, 0x3C7) == 0
    outb(vga, 0x3C7, 5)
    assert [inb(vga, 0x3C9) for _ in range(6)] == [0x3F, 0x20, 0x3F, 1, 2, 3]
    assert inb(vga, 0x3C7) == 3


def test_a_wait_for_retrace_ends(vga: Vga) -> None:
    seen = {inb(vga, 0x3DA) for _ in range(4)}
    assert seen == {0x00, 0x09}


# -- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_text_memory_reads_back(vga: Vga, size: int) -> None:
    value = int.from_bytes(bytes(range(0x41, 0x41 + size)), "little")
    vga.window.write(TEXT + 8, size, value)
    assert vga.window.read(TEXT + 8, size) == value
    assert vga.vram[16] == 0x41  # character of cell 4, plane 0 of word 4


def test_only_the_mapped_part_answers(vga: Vga) -> None:
    vga.window.write(0, 1, 0x55)
    assert vga.window.read(0, 1) == 0xFF
    assert vga.window.read(TEXT - 1, 2) == 0x00FF
    vga.window.write(TEXT + 0x7FFF, 2, 0x1234)  # the second byte is past the window
    assert vga.window.read(TEXT + 0x7FFF, 1) == 0x34


def test_memory_switched_off(vga: Vga) -> None:
    vga.window.write(TEXT, 2, 0x0741)
    outb(vga, 0x3C2, 0x65)
    assert vga.window.read(TEXT, 2) == 0xFFFF
    vga.window.write(TEXT, 2, 0)
    outb(vga, 0x3C2, 0x67)
    assert vga.window.read(TEXT, 2) == 0x0741


def test_write_mode_0_sets_planes_bits_and_function(vga: Vga) -> None:
    planar(vga)
    vga.window.write(3, 1, 0xFF)
    assert bytes(vga.vram[12:16]) == b"\xff\xff\xff\xff"
    outw(vga, 0x3C4, 2, 0x05)  # planes 0 and 2
    outw(vga, 0x3CE, 8, 0x0F)  # the right four dots
    vga.window.read(3, 1)
    vga.window.write(3, 1, 0x00)
    assert bytes(vga.vram[12:16]) == b"\xf0\xff\xf0\xff"
    outw(vga, 0x3CE, 8, 0xFF)
    outw(vga, 0x3CE, 3, 0x18)  # xor
    outw(vga, 0x3C4, 2, 0x0F)
    vga.window.read(3, 1)
    vga.window.write(3, 1, 0x81)
    assert bytes(vga.vram[12:16]) == b"\x71\x7e\x71\x7e"


def test_set_reset_and_rotation(vga: Vga) -> None:
    planar(vga)
    outw(vga, 0x3CE, 0, 0x0A)  # set/reset value: planes 1 and 3
    outw(vga, 0x3CE, 1, 0x03)  # planes 0 and 1 take it
    outw(vga, 0x3CE, 3, 0x01)  # rotate right by one
    vga.window.write(0, 1, 0x01)
    assert bytes(vga.vram[0:4]) == b"\x00\xff\x80\x80"


def test_write_modes_1_2_and_3(vga: Vga) -> None:
    planar(vga)
    vga.planes.words[7] = 0x44332211
    outw(vga, 0x3CE, 5, 0x01)
    vga.window.read(7, 1)
    vga.window.write(9, 1, 0xEE)
    assert vga.planes.words[9] == 0x44332211
    outw(vga, 0x3CE, 5, 0x02)
    vga.window.write(10, 1, 0x06)  # a colour for all eight dots
    assert vga.planes.words[10] == 0x00FFFF00
    outw(vga, 0x3CE, 5, 0x03)
    outw(vga, 0x3CE, 0, 0x0F)
    outw(vga, 0x3CE, 8, 0xF0)
    vga.window.read(11, 1)
    vga.window.write(11, 1, 0x3C)
    assert vga.planes.words[11] == 0x30303030


def test_read_modes(vga: Vga) -> None:
    planar(vga)
    vga.planes.words[0] = 0x0FF000FF
    outw(vga, 0x3CE, 4, 2)
    assert vga.window.read(0, 1) == 0xF0
    outw(vga, 0x3CE, 5, 0x08)
    outw(vga, 0x3CE, 2, 0x05)  # planes 0 and 2 set, 1 and 3 clear
    outw(vga, 0x3CE, 7, 0x0F)
    assert vga.window.read(0, 1) == 0xF0


def test_chain_4_is_linear(vga: Vga) -> None:
    planar(vga)
    outw(vga, 0x3C4, 4, 0x0E)
    vga.window.write(0, 4, 0x44332211)
    assert bytes(vga.vram[0:4]) == b"\x11\x22\x33\x44"
    outw(vga, 0x3C4, 2, 0x02)
    vga.window.write(0, 4, 0)
    assert bytes(vga.vram[0:4]) == b"\x11\x00\x33\x44"


# -- VBE -------------------------------------------------------------------------------------


def dispi(vga: Vga, index: int, value: int) -> None:
    vga.dispi_ports.write(0, 2, index)
    vga.dispi_ports.write(1, 2, value)


def dispi_read(vga: Vga, index: int) -> int:
    vga.dispi_ports.write(0, 2, index)
    return vga.dispi_ports.read(2, 2)


def set_mode(vga: Vga, width: int, height: int, bpp: int, flags: int = 0x41) -> None:
    for index, value in ((4, 0), (1, width), (2, height), (3, bpp), (4, flags)):
        dispi(vga, index, value)


def test_vbe_identifies_itself(vga: Vga) -> None:
    assert dispi_read(vga, 0) == 0xB0C5
    dispi(vga, 0, 0xB0C2)
    assert dispi_read(vga, 0) == 0xB0C2
    dispi(vga, 0, 0x1234)
    assert dispi_read(vga, 0) == 0xB0C2
    assert dispi_read(vga, 10) == 16
    dispi(vga, 4, 2)
    assert (dispi_read(vga, 1), dispi_read(vga, 2), dispi_read(vga, 3)) == (16000, 12000, 32)


def test_setting_a_mode_clears_unless_told_not_to(vga: Vga) -> None:
    vga.vram[0:4] = b"abcd"
    set_mode(vga, 320, 200, 32, 0xC1)
    assert bytes(vga.vram[0:4]) == b"abcd"
    set_mode(vga, 320, 200, 32)
    assert bytes(vga.vram[0:4]) == bytes(4)
    assert dispi_read(vga, 6) == 320
    assert vga.dispi.stride == 1280


def test_a_mode_larger_than_memory_is_cut(vga: Vga) -> None:
    set_mode(vga, 1024, 768, 32)
    assert dispi_read(vga, 2) == 256  # 1 MiB
    dispi(vga, 9, 0xFFFF)
    dispi(vga, 8, 0xFFFF)
    assert (dispi_read(vga, 8), dispi_read(vga, 9)) == (0, 0)
    dispi(vga, 6, 0xFFFF)
    last = vga.dispi.start + vga.dispi.stride * dispi_read(vga, 2)
    assert last <= vga.vram_size


def test_banks_reach_all_of_the_memory(vga: Vga) -> None:
    set_mode(vga, 640, 400, 8)
    dispi(vga, 5, 3)
    vga.window.write(0x10, 2, 0xBEEF)
    assert bytes(vga.vram[0x30010:0x30012]) == b"\xef\xbe"
    dispi(vga, 5, 0x1FF)
    assert dispi_read(vga, 5) == 15
    vga.window.write(0xFFFF, 1, 0x77)
    assert vga.vram[0xFFFFF] == 0x77


def test_eight_bit_dac(vga: Vga) -> None:
    set_mode(vga, 320, 200, 8, 0x61)
    outb(vga, 0x3C8, 1)
    for value in (0xFE, 0x80, 0x01):
        outb(vga, 0x3C9, value)
    assert vga.registers.colour(1) == (0xFE, 0x80, 0x01)
    dispi(vga, 4, 0)
    assert vga.registers.palette_bits == 6


def test_register_bar_shows_the_same(vga: Vga) -> None:
    assert vga.mmio.read(0x500, 2) == 0xB0C5
    vga.mmio.write(0x502, 4, 200 << 16 | 320)
    assert (vga.dispi.registers[1], vga.dispi.registers[2]) == (320, 200)
    vga.mmio.write(0x404, 2, 0x0302)  # sequencer index 2, data 3
    assert vga.registers.sequencer[2] == 3
    assert vga.mmio.read(0x600, 4) == 8
    assert vga.mmio.read(0x604, 4) == 0x1E1E1E1E
    assert vga.mmio.read(0, 4) == 0  # no EDID


# -- PCI and state ---------------------------------------------------------------------------


def test_pci_function(vga: Vga) -> None:
    function = PciVga(vga, rom=b"\x55\xaa" + bytes(100))
    assert function.read(0, 4) == 0x11111234
    assert function.read(0x0A, 2) == 0x0300
    function.write(0x10, 4, 0xFFFFFFFF)
    assert function.read(0x10, 4) == 0xFFF00008  # 1 MiB, prefetchable
    function.write(0x18, 4, 0xFFFFFFFF)
    assert function.read(0x18, 4) == 0xFFFFF000
    function.write(0x30, 4, 0xFFFFFFFE)
    assert function.read(0x30, 4) == 0xFFFFF000
    places = {(r.kind, r.address, r.length) for r in legacy_ranges(vga)}
    assert places == {("pio", 0x3B0, 0x30), ("pio", 0x1CE, 3), ("mmio", 0xA0000, 0x20000)}
    function.close()


def test_a_missing_option_rom_names_the_package(tmp_path: object) -> None:
    with pytest.raises(VgaRomError, match="package seabios"):
        read_vgabios(f"{tmp_path}/none.bin")
    with pytest.raises(VgaRomError, match="55 AA"):
        read_vgabios(__file__)


def test_video_memory_survives_save_and_load(vga: Vga) -> None:
    vga.vram[0:5] = b"first"
    vga.vram[-4:] = b"last"
    other = Vga(vram_size=1 << 20)
    other.vram[100] = 9
    other.load(vga.save())
    assert bytes(other.vram) == bytes(vga.vram)
    other.close()


@pytest.mark.parametrize(
    "vram",
    [None, 5, [7], ["x"], ["0:!!"], ["0:AAAA"], ["-1:eJwDAAAAAAE="], ["fffff:eJxjYAAAAAIAAQ=="]],
)
def test_saved_video_memory_may_say_anything(vga: Vga, vram: object) -> None:
    before = vga.save()
    with pytest.raises(DeviceStateError):
        vga.load({**before, "vram": vram})
    assert vga.save() == before
