"""fw_cfg, read as firmware reads it: ports, file directory, DMA; hostile descriptors."""

from __future__ import annotations

import struct

import pytest

from pykvm.devices.pc import FwCfg
from pykvm.devices.pc import fwcfg_items as items
from pykvm.devices.pc.fwcfg import FwCfgError
from pykvm.memory import GuestMemory

PAGE = 4096
DESCRIPTOR, BUFFER = 0x100, 0x800


class Guest:
    """The guest's side of the device at 0x510."""

    def __init__(self) -> None:
        self.memory = GuestMemory.anonymous([(0, PAGE), (1 << 32, PAGE)])
        self.fw = FwCfg(self.memory)

    def get(self, key: int, size: int) -> bytes:
        self.fw.write(0, 2, key)
        return bytes(self.fw.read(1, 1) for _ in range(size))

    def number(self, key: int, size: int) -> int:
        return int.from_bytes(self.get(key, size), "little")

    def directory(self) -> dict[str, tuple[int, int]]:
        """Name → (key, size)."""
        count = int.from_bytes(self.get(0x19, 4), "big")
        found = {}
        for _ in range(count):
            entry = bytes(self.fw.read(1, 1) for _ in range(64))
            size, key, zero, name = struct.unpack(">IHH56s", entry)
            assert zero == 0
            found[name.rstrip(b"\0").decode()] = key, size
        return found

    def file(self, name: str) -> bytes:
        return self.get(*self.directory()[name])

    def dma(self, control: int, length: int, address: int, at: int = DESCRIPTOR) -> int:
        """A transfer; gives what is in the control field then."""
        self.memory.write(at, struct.pack(">IIQ", control, length, address))
        high, low = at >> 32, at & 0xFFFF_FFFF
        if high:
            self.fw.write(4, 4, int.from_bytes(high.to_bytes(4, "big"), "little"))
        self.fw.write(8, 4, int.from_bytes(low.to_bytes(4, "big"), "little"))
        return int.from_bytes(self.memory.read(at, 4), "big")


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_signature_and_features(guest: Guest) -> None:
    assert guest.get(0, 6) == b"QEMU\0\0"
    assert guest.number(1, 4) == 3
    assert FwCfg().contents(1) == b"\x01\0\0\0"
    read = b"".join(guest.fw.read(4 + at, 4).to_bytes(4, "little") for at in (0, 4))
    assert read == b"QEMU CFG"
    assert guest.fw.read(4, 8).to_bytes(8, "little") == b"QEMU CFG"
    assert guest.fw.read(9, 1) == b"QEMU CFG"[5]


def test_reading_past_the_end_and_nothing(guest: Guest) -> None:
    guest.fw.add_item(6, b"abc")
    assert guest.get(6, 5) == b"abc\0\0"
    assert guest.get(0x3FFF, 2) == b"\0\0"
    guest.fw.write(0, 2, 0x4006)  # the write channel of old is the same item
    assert guest.fw.read(1, 2) == int.from_bytes(b"ab", "little")
    guest.fw.write(1, 1, 0x77)
    assert guest.fw.read(1, 1) == ord("c")


def test_string_instructions(guest: Guest) -> None:
    guest.fw.write_block(0, 2, b"\x01\x00\x00\x00")
    assert guest.fw.read_block(1, 1, 3) == b"QEM"
    assert guest.fw.read_block(1, 2, 3) == b"U\0\0\0\0\0"
    assert guest.fw.read_block(4, 4, 2) == b"QEMUQEMU"


def test_files_are_sorted_and_stay(guest: Guest) -> None:
    for name in ("etc/zebra", "bootorder", "etc/ant"):
        guest.fw.add_file(name, name.encode())
    first = guest.directory()
    assert list(first) == ["bootorder", "etc/ant", "etc/zebra"]
    assert [key for key, _ in first.values()] == [0x20, 0x21, 0x22]
    assert guest.file("etc/ant") == b"etc/ant"
    guest.fw.add_file("aardvark", b"late")
    guest.fw.add_file("etc/ant", b"new")
    later = guest.directory()
    assert {name: later[name][0] for name in first} == {
        name: key for name, (key, _) in first.items()
    }
    assert list(guest.directory())[-1] == "aardvark"
    assert guest.file("etc/ant") == b"new"
    assert guest.fw.contents("etc/ant") == b"new"


@pytest.mark.parametrize("name", ["", "x" * 56, "a\nb", "ö"])
def test_bad_names(guest: Guest, name: str) -> None:
    with pytest.raises(FwCfgError, match="printable ASCII"):
        guest.fw.add_file(name, b"")


@pytest.mark.parametrize("key", [0x19, 0x20, 0x4000, -1, 0xC000])
def test_bad_keys(guest: Guest, key: int) -> None:
    with pytest.raises(FwCfgError, match="not free"):
        guest.fw.add_item(key, b"")


def test_dma_read(guest: Guest) -> None:
    guest.fw.add_file("etc/x", bytes(range(100)))
    guest.memory.write(BUFFER, b"\xff" * 200)
    assert guest.dma(0x0020_000A, 40, BUFFER) == 0
    assert guest.memory.read(BUFFER, 41) == bytes(range(40)) + b"\xff"
    assert guest.dma(4, 10, 0) == 0
    assert guest.dma(2, 60, BUFFER, at=(1 << 32) + 8) == 0
    assert guest.memory.read(BUFFER, 61) == bytes(range(50, 100)) + bytes(10) + b"\xff"
    assert guest.dma(2, 4, BUFFER) == 0
    assert guest.memory.read(BUFFER, 4) == bytes(4)


def test_one_write_of_eight_bytes(guest: Guest) -> None:
    guest.memory.write(DESCRIPTOR, struct.pack(">IIQ", 0x0000_000A, 4, BUFFER))
    guest.fw.write(4, 8, int.from_bytes(DESCRIPTOR.to_bytes(8, "big"), "little"))
    assert guest.memory.read(BUFFER, 4) == b"QEMU"


def test_dma_write(guest: Guest) -> None:
    written: list[tuple[int, bytes]] = []
    guest.fw.add_file(
        "etc/w", b"12345678", writeable=True, on_write=lambda at, data: written.append((at, data))
    )
    guest.fw.add_file("etc/ro", b"12345678")
    guest.memory.write(BUFFER, b"abcdefghij")
    key = guest.fw.files()["etc/w"]
    assert guest.dma(key << 16 | 8 | 4, 2, 0) == 0
    assert guest.dma(16, 3, BUFFER) == 0
    assert guest.fw.contents("etc/w") == b"12abc678"
    assert guest.dma(16, 4, BUFFER) == 1, "past the end"
    assert guest.dma(16, 3, BUFFER + 7) == 0
    assert written == [(2, b"abc"), (5, b"hij")]
    assert guest.dma(guest.fw.files()["etc/ro"] << 16 | 8 | 16, 1, BUFFER) == 1
    assert guest.dma(0x3FFF_0000 | 8 | 16, 1, BUFFER) == 1
    guest.fw.reset()
    assert guest.fw.contents("etc/w") == b"12345678"


@pytest.mark.parametrize(
    ("length", "address"),
    [(4, PAGE - 3), (4, 1 << 40), (0xFFFF_FFFF, 0), (1, (1 << 64) - 1), (8, (1 << 32) - 4)],
)
def test_hostile_addresses(guest: Guest, length: int, address: int) -> None:
    guest.fw.add_file("etc/w", bytes(16), writeable=True)
    before = guest.memory.read(0, DESCRIPTOR), guest.memory.read(BUFFER, 64)
    assert guest.dma(0x0000_000A, length, address) == 1
    assert guest.dma(0x0020_0018, length, address) == 1
    assert before == (guest.memory.read(0, DESCRIPTOR), guest.memory.read(BUFFER, 64))
    guest.fw.write(8, 4, 0xFFFF_FFFF)  # a descriptor nowhere
    guest.fw.write(4, 4, 0xFFFF_FFFF)
    guest.fw.write(8, 4, 0xFFFF_FFFF)
    assert guest.dma(2, 0, address) == 0, "nothing at all can be moved anywhere"


def test_standard_items(guest: Guest) -> None:
    items.add_standard_items(guest.fw, cpus=3, ram_size=1 << 30, graphic=False)
    assert guest.number(5, 2) == 3
    assert guest.number(0x0F, 2) == 3
    assert guest.number(3, 8) == 1 << 30
    assert guest.number(4, 2) == 1
    items.add_boot_menu(guest.fw, wait_ms=1500)
    assert guest.number(0x0E, 2) == 1
    assert guest.file("etc/boot-menu-wait") == b"\xdc\x05"
    items.add_e820(guest.fw, [(0, 0x9FC00, 1), (0xF0000, 0x10000, 2)])
    assert struct.unpack("<QQIQQI", guest.file("etc/e820")) == (0, 0x9FC00, 1, 0xF0000, 0x10000, 2)
    items.add_boot_order(guest.fw, ["/pci@i0cf8/ide@1,1/drive@0/disk@0"], strict=True)
    assert guest.file("bootorder") == b"/pci@i0cf8/ide@1,1/drive@0/disk@0\nHALT\0"
    items.add_serial_console(guest.fw)
    assert guest.file("etc/sercon-port") == b"\xf8\x03"
    items.add_numa(guest.fw, [0, 0, 1], [512 << 20, 512 << 20])
    assert guest.number(0x0D, 8) == 2
    assert guest.fw.contents(0x0D)[8:32] == struct.pack("<QQQ", 0, 0, 1)


def bzimage(version: int = 0x20C, sectors: int = 2) -> bytes:
    image = bytearray((sectors + 1) * 512 + 5000)
    image[0x1F1] = sectors
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    image[0x211] = 1
    struct.pack_into("<I", image, 0x22C, 0x7FFF_FFFF)
    struct.pack_into("<I", image, 0x238, 20)
    struct.pack_into("<I", image, 0x260, 0x10_0000)
    image[-5000:] = b"K" * 5000
    return bytes(image)


def test_linux(guest: Guest) -> None:
    items.add_linux(guest.fw, bzimage(), cmdline="quiet", initrd=b"i" * 5000, ram_below_4g=64 << 20)
    assert guest.number(items.KERNEL_SIZE, 4) == 5000
    assert guest.get(items.KERNEL_DATA, 5000) == b"K" * 5000
    assert guest.get(items.CMDLINE_DATA, 6) == b"quiet\0"
    assert guest.number(items.CMDLINE_SIZE, 4) == 6
    at = guest.number(items.INITRD_ADDR, 4)
    assert at == (64 << 20) - 2 * PAGE
    setup = guest.get(items.SETUP_DATA, guest.number(items.SETUP_SIZE, 4))
    assert len(setup) == 1536
    assert setup[0x210] == 0xB0
    assert struct.unpack_from("<II", setup, 0x218) == (at, 5000)
    assert struct.unpack_from("<I", setup, 0x228) == (items.CMDLINE_AT,)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (b"\0" * 2000, {}, "not a bzImage"),
        (bzimage()[:0x220], {}, "not a bzImage"),
        (bzimage(0x201), {}, "older than 2.03"),
        (bzimage(), {"cmdline": "x" * 21}, "takes 20"),
        (bzimage(), {"initrd": bytes(3 << 20), "ram_below_4g": 4 << 20}, "does not fit"),
        (bzimage(sectors=2)[:1400], {}, "reaches past"),
    ],
)
def test_what_cannot_boot(
    guest: Guest, image: bytes, options: dict[str, object], message: str
) -> None:
    with pytest.raises(FwCfgError, match=message):
        items.add_linux(guest.fw, image, **{"ram_below_4g": 64 << 20, **options})  # type: ignore[arg-type]
