"""Linux kernels: what the loader reads from a setup header, where it puts things, what it tells."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from kernel_images import M, bzimage, compressed, vmlinux

from pykvm.arch.e820 import build_e820
from pykvm.boot import ImageError, LoadedImage, load_image
from pykvm.boot.environment import VGA_TEXT, BootEnvironment, FramebufferInfo

G = 1 << 30


def load(image: bytes, memory: int = 64 * M, ram: Any = None, **kwargs: Any) -> LoadedImage:
    options = {k: kwargs.pop(k) for k in ("format", "mode", "load", "entry") if k in kwargs}
    environment = BootEnvironment(**kwargs)
    return load_image(image, memory_size=memory, ram=ram, environment=environment, **options)


def refused(image: bytes, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load(image, *args, **kwargs)
    text = str(caught.value)
    assert text.isprintable()
    return text


def piece(image: LoadedImage, what: str) -> Any:
    found = [s for s in image.segments if s.what == what]
    assert len(found) == 1, [s.what for s in image.segments]
    return found[0]


def params(image: LoadedImage) -> bytes:
    page = piece(image, "boot_params")
    assert page.gpa == image.state.regs["rsi"]
    return bytes(page.data)


def u32(page: bytes, offset: int) -> int:
    return int(struct.unpack_from("<I", page, offset)[0])


def u64(page: bytes, offset: int) -> int:
    return int(struct.unpack_from("<Q", page, offset)[0])


def text_at(image: LoadedImage, gpa: int) -> bytes:
    for s in image.segments:
        if s.gpa <= gpa < s.gpa + len(s.data):
            return bytes(s.data)[gpa - s.gpa :].partition(b"\0")[0]
    raise AssertionError(hex(gpa))


def e820(page: bytes) -> list[tuple[int, int, int]]:
    return [struct.unpack_from("<QQI", page, 0x2D0 + 20 * n) for n in range(page[0x1E8])]


def test_the_64_bit_entry() -> None:
    image = load(bzimage(), cmdline="console=ttyS0 quiet")
    assert (image.format, image.mode, image.entry) == ("bzimage", "long", 16 * M + 0x200)
    kernel = piece(image, "the kernel")
    assert (kernel.gpa, bytes(kernel.data)) == (16 * M, b"\xf4" * 0x400)
    state = image.state
    assert state.mode == "long"
    assert state.segments["cs"].selector == 0x10
    assert {state.segments[r].selector for r in ("ds", "es", "ss")} == {0x18}
    assert state.regs["rflags"] == 2
    page = params(image)
    assert page[0x1FE:0x206] == b"\x55\xaa\xeb\x6aHdrS"
    assert page[0x1EF] == 0, "the sentinel says that the page is clean"
    assert page[0x210] == 0xFF
    assert u32(page, 0x214) == 16 * M
    assert text_at(image, u32(page, 0x228)) == b"console=ttyS0 quiet"
    assert u32(page, 0x238) == 2047
    assert (u32(page, 0x218), u32(page, 0x21C)) == (0, 0)
    assert page[0x211] & 2 == 0, "KASLR is the kernel's own affair"


def test_tables_map_everything_that_the_entry_needs() -> None:
    """Walk the page tables at the addresses of kernel, boot_params and command line."""
    image = load(bzimage())
    memory = dict(image.state.memory)

    def read64(gpa: int) -> int:
        for start, data in memory.items():
            if start <= gpa < start + len(data):
                return u64(data, gpa - start)
        raise AssertionError(hex(gpa))

    for segment in image.segments:
        address, table = segment.gpa, image.state.cr3
        for shift in (39, 30, 21):
            entry = read64(table + 8 * (address >> shift & 511))
            assert entry & 3 == 3
            table = entry & ~0xFFF & (1 << 52) - 1
            if entry & 0x80:
                break
        assert table + (address & 0x1FFFFF) == address


def test_the_32_bit_entry() -> None:
    image = load(bzimage(), protocol="32")
    assert (image.mode, image.entry, image.state.mode) == ("protected", 16 * M, "protected")
    assert not image.state.paging
    assert image.state.segments["cs"].selector == 0x10
    assert image.state.segments["ds"].selector == 0x18
    assert (image.state.regs["rbx"], image.state.regs["rbp"], image.state.regs["rdi"]) == (0, 0, 0)
    params(image)
    assert load(bzimage(xloadflags=0)).mode == "protected", "no 64-bit entry"
    assert "no 64-bit entry" in refused(bzimage(xloadflags=0), protocol="64")


def test_the_16_bit_entry() -> None:
    image = load(bzimage(), cmdline="hello", initrd=b"ramdisk", protocol="16")
    assert (image.mode, image.state.mode) == ("real", "real")
    setup = piece(image, "the real-mode part")
    assert setup.gpa == 0x90000
    data = bytes(setup.data)
    assert (data[0x210], data[0x211]) == (0xFF, 0x81)
    assert struct.unpack_from("<H", data, 0x224) == (0xDE00,)
    assert struct.unpack_from("<H", data, 0x1FA) == (0xFFFF,)
    assert text_at(image, u32(data, 0x228)) == b"hello"
    assert 0x90000 < u32(data, 0x228) < 0x9F000
    assert u32(data, 0x214) == 16 * M
    assert u32(data, 0x21C) == 7
    initrd = piece(image, "the initrd")
    assert u32(data, 0x218) == initrd.gpa
    bios, vectors = piece(image, "the BIOS services"), piece(image, "the interrupt vectors")
    assert vectors.gpa == 0
    offset, segment = struct.unpack_from("<HH", vectors.data, 4 * 0x15)
    assert bios.gpa <= segment * 16 + offset < bios.end
    assert bios.gpa <= image.entry < bios.end
    assert image.state.linear_rip == image.entry
    area = bytes(piece(image, "the BIOS data area").data)
    assert struct.unpack_from("<H", area, 0x13) == (639,)
    assert load(bzimage(version=0x207)).mode == "real", "an old header promises no more"


def test_the_16_bit_entry_of_an_old_kernel() -> None:
    image = load(bzimage(version=0x201, code32_start=M), cmdline="old", protocol="16")
    data = bytes(piece(image, "the real-mode part").data)
    assert struct.unpack_from("<HH", data, 0x20) == (0xA33F, 0xE000)
    assert data[0xE000:0xE004] == b"old\0"
    assert piece(image, "the kernel").gpa == M


def test_a_zimage_goes_to_64_kib() -> None:
    image = load(bzimage(version=0x207, loadflags=0), protocol="16")
    assert piece(image, "the kernel").gpa == 0x10000


def test_16_bit_needs_room() -> None:
    assert "BIOS services" in refused(bzimage(), reserved=[(0xC0000, 0x40000)], protocol="16")
    assert "stack" in refused(bzimage(setup_sects=120), protocol="16")


def test_kernel_placement() -> None:
    assert piece(load(bzimage(pref_address=32 * M)), "the kernel").gpa == 32 * M
    # In the way: the next aligned address.
    taken = load(bzimage(init_size=2 * M), reserved=[(17 * M, 4096)])
    assert piece(taken, "the kernel").gpa == 18 * M
    assert u32(params(taken), 0x214) == 18 * M
    text = refused(bzimage(init_size=2 * M, relocatable_kernel=0), reserved=[(17 * M, 4096)])
    assert "needs 2 MiB of free RAM from 0x1000000" in text
    text = refused(bzimage(init_size=100 * M))
    assert "at least 116 MiB" in text
    # The map says where RAM is, not only the memory.
    hole = build_e820([(0, 64 * M)], [(16 * M, 4096)])
    assert piece(load(bzimage(), e820=hole), "the kernel").gpa == 18 * M


def test_all_of_init_size_is_kept_free() -> None:
    image = load(bzimage(init_size=40 * M), initrd=bytes(2 * M))
    initrd = piece(image, "the initrd")
    assert initrd.gpa >= 56 * M


def test_initrd_goes_as_high_as_it_can() -> None:
    data = bytes(range(256)) * 100
    image = load(bzimage(), initrd=data)
    initrd = piece(image, "the initrd")
    assert initrd.gpa % 4096 == 0
    assert 64 * M - 4096 < initrd.gpa + -(-len(data) // 4096) * 4096 <= 64 * M
    page = params(image)
    assert (u32(page, 0x218), u32(page, 0x21C)) == (initrd.gpa, len(data))
    # ... below the kernel's limit, and below what is reserved at the top.
    limited = piece(load(bzimage(initrd_addr_max=0x2FFFFFF), initrd=data), "the initrd")
    assert limited.end <= 0x3000000 < limited.end + 4096
    tables = load(bzimage(), initrd=data, reserved=[(63 * M, M)])
    assert piece(tables, "the initrd").end <= 63 * M
    acpi = load(bzimage(), initrd=data, e820=build_e820([(0, 64 * M)], acpi=[(62 * M, 2 * M)]))
    assert piece(acpi, "the initrd").end <= 62 * M


def test_initrd_above_4_gib() -> None:
    ram = [(0, 24 * M), (4 * G, 64 * M)]
    image = load(bzimage(), 88 * M, ram, initrd=bytes(20 * M))
    initrd = piece(image, "the initrd")
    assert initrd.gpa >= 4 * G
    page = params(image)
    assert u32(page, 0xC0) << 32 | u32(page, 0x218) == initrd.gpa
    assert u32(page, 0xC4) << 32 | u32(page, 0x21C) == 20 * M
    for old in ({"xloadflags": 1}, {"protocol": "32"}):
        fields = {k: v for k, v in old.items() if k == "xloadflags"}
        rest = {k: v for k, v in old.items() if k != "xloadflags"}
        text = refused(bzimage(**fields), 88 * M, ram, initrd=bytes(20 * M), **rest)
        assert "does not fit" in text
    # Where there is room below, it stays below.
    assert piece(load(bzimage(), 88 * M, ram, initrd=b"x"), "the initrd").gpa < 4 * G


def test_an_initrd_that_does_not_fit() -> None:
    text = refused(bzimage(), initrd=bytes(70 * M))
    assert "initrd of 70 MiB does not fit" in text
    assert "empty" in refused(bzimage(), initrd=b"")
    assert "cannot be opened" in refused(bzimage(), initrd="/nonexistent/initrd")


def test_the_memory_map() -> None:
    page = params(load(bzimage()))
    assert e820(page) == [tuple(e) for e in build_e820([(0, 64 * M)])]
    given = [(0, 0x9F000, 1), (M, 63 * M, 1), (0xFEC00000, 4096, 2), (62 * M, M, 3)]
    assert e820(params(load(bzimage(), e820=given))) == sorted(given)
    assert u32(page, 0x1E0) == 63 * 1024


def test_a_long_memory_map() -> None:
    many = [(0, 0xA0000, 1), (M, 63 * M, 1)]
    many += [(4 * G + n * 0x10000, 0x8000, 2) for n in range(150)]
    image = load(bzimage(), e820=many)
    page = params(image)
    assert page[0x1E8] == 128
    node = piece(image, "the rest of the memory map")
    assert u64(page, 0x250) == node.gpa
    link, kind, size = struct.unpack_from("<QII", node.data)
    assert (link, kind, size) == (0, 1, 20 * 24)
    rest = list(struct.iter_unpack("<QQI", bytes(node.data)[16:]))
    assert e820(page) + rest == sorted(many)
    assert "longer than 1024" in refused(bzimage(), e820=many * 7)
    assert "no range" in refused(bzimage(), e820=[(1 << 63, 1 << 63, 1), (0, 0, 1)])


def test_the_rsdp_and_the_screen() -> None:
    image = load(bzimage(), rsdp=0xE0000)
    page = params(image)
    assert u64(page, 0x70) == 0xE0000
    assert page[0x0F] == 0, "no screen, no VGA"
    assert u64(params(load(bzimage())), 0x70) == 0
    text = params(load(bzimage(), framebuffer=VGA_TEXT))
    assert (text[0x06], text[0x07], text[0x0E], text[0x0F], text[0x10]) == (3, 80, 25, 1, 16)
    screen = FramebufferInfo(0xC0000000, 1024, 768, 4096, 32)
    image = load(bzimage(), framebuffer=screen)
    page = params(image)
    assert page[0x0F] == 0x23
    assert struct.unpack_from("<HHH", page, 0x12) == (1024, 768, 32)
    assert (u32(page, 0x18), u32(page, 0x1C)) == (0xC0000000, 48)
    assert struct.unpack_from("<H", page, 0x24) == (4096,)
    assert page[0x26:0x2E] == bytes((8, 16, 8, 8, 8, 0, 8, 24))
    assert image.framebuffer is screen
    high = params(load(bzimage(), framebuffer=screen._replace(address=5 * G)))
    assert (u32(high, 0x18) | u32(high, 0x3A) << 32, u32(high, 0x36)) == (5 * G, 2)


def test_command_lines() -> None:
    assert text_at(load(bzimage(), cmdline="x" * 2047), 0x9E800)[:1] == b"x"
    assert "2048 bytes is longer than the 2047" in refused(bzimage(), cmdline="x" * 2048)
    assert "longer than the 255" in refused(bzimage(version=0x204), cmdline="x" * 256)
    assert "NUL" in refused(bzimage(), cmdline="a\0b")
    assert "surrogate" in refused(bzimage(), cmdline="\ud800")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": 0x1FF}, "version 1.255"),
        ({"version": 0x305}, "version 3.05"),
        ({"syssize": 0x1000}, "truncated"),
        ({"kernel_alignment": 3, "pref_address": 1 << 40}, "no power of two"),
        ({"pref_address": 1 << 40}, "needs"),
    ],
)
def test_damaged_headers(fields: dict[str, int], words: str) -> None:
    assert words in refused(bzimage(**fields))


def test_truncated_files() -> None:
    image = bzimage()
    assert "too few for a Linux setup header" in refused(image[:0x250])
    assert "real-mode part" in refused(image[:0x800])
    assert "not a Linux bzImage" in refused(b"\xf4" * 1000, format="bzimage")


def test_arguments_that_linux_cannot_use() -> None:
    assert "says itself where" in refused(bzimage(), load=M)
    assert "says itself where" in refused(bzimage(), entry=M)
    assert "entered in long mode" in refused(bzimage(), mode="real")
    assert "give an initrd" in refused(bzimage(), modules=[b"x"])
    assert "protocol '7' is not known" in refused(bzimage(), protocol="7")
    assert "before it is unpacked" in refused(bzimage(), protocol="pvh")
    assert "is for Linux and PVH" in refused(b"\xf4", protocol="64")


@pytest.mark.parametrize("kind", sorted(compressed(b"")))
def test_fast_boot(kind: str) -> None:
    inner = vmlinux(pvh=16 * M)
    payload = compressed(inner)[kind] + struct.pack("<I", len(inner))
    image = load(bzimage(payload=payload), fast_boot=True, cmdline="x", initrd=b"y")
    assert (image.format, image.mode, image.entry) == ("linux64", "long", 16 * M)
    assert "no KASLR" in image.notes[0]
    assert image.segments[0].gpa == 16 * M
    assert bytes(image.segments[0].data).startswith(b"\xf4" * 64)
    page = params(image)
    assert struct.unpack_from("<H", page, 0x206) == (0x20F,), "the bzImage's own header"
    assert image.state.segments["cs"].selector == 0x10
    pvh = load(bzimage(payload=payload), fast_boot=True, protocol="pvh")
    assert (pvh.format, pvh.mode, pvh.entry) == ("pvh", "protected", 16 * M)
    # Without fast boot the payload is left alone.
    assert load(bzimage(payload=payload)).format == "bzimage"


def test_fast_boot_of_odd_kernels() -> None:
    raw = vmlinux(bits=32) + b"relocations behind the ELF file"
    image = load(bzimage(payload=raw, xloadflags=0), fast_boot=True)
    assert (image.format, image.mode) == ("linux32", "protected")
    assert "unknown way" in refused(bzimage(payload=b"?" * 50), fast_boot=True)
    text = refused(bzimage(payload=compressed(b"no kernel" * 9)["gzip"]), fast_boot=True)
    assert "no ELF file" in text
    assert "damaged" in refused(bzimage(payload=compressed(raw)["xz"][:-50]), fast_boot=True)
    assert "no PVH entry" in refused(bzimage(payload=raw), fast_boot=True, protocol="pvh")
    assert "32-bit or PVH" in refused(bzimage(payload=raw), fast_boot=True, protocol="64")
    image = load(bzimage(), fast_boot=True)
    assert image.format == "bzimage"
    assert "changes nothing" in image.notes[1]
    assert "compressed kernel" in refused(
        bzimage(payload_offset=8, payload_length=M), fast_boot=True
    )


def test_a_vmlinux_by_its_64_bit_entry() -> None:
    image = load(vmlinux(), cmdline="a b", initrd=b"z" * 5000, rsdp=0xE0000)
    assert (image.format, image.mode, image.entry) == ("linux64", "long", 16 * M)
    assert [s.gpa for s in image.segments[:3]] == [16 * M, 18 * M, 19 * M]
    page = params(image)
    assert page[0x1FE:0x200] == b"\x55\xaa"
    assert page[0x202:0x206] == b"HdrS"
    assert text_at(image, u32(page, 0x228)) == b"a b"
    assert u32(page, 0x21C) == 5000
    assert u64(page, 0x70) == 0xE0000
    assert load(vmlinux(linux_note=False)).format == "linux64", "known by its banner"
    assert load(vmlinux(pvh=16 * M), protocol="64").format == "linux64"
    assert load(vmlinux(pvh=16 * M), format="linux64").format == "linux64"
    assert load(vmlinux(bits=32)).format == "linux32"
    assert "for the other width" in refused(vmlinux(bits=32), format="linux64")
    assert "not by boot protocol 16" in refused(vmlinux(), protocol="16")
    assert "is not in RAM by the memory map" in refused(vmlinux(), e820=[(0, 17 * M, 1)])
    assert "the machine's own tables" in refused(vmlinux(), reserved=[(18 * M, 8)])


def test_an_explicit_elf_stays_an_elf() -> None:
    image = load_image(vmlinux(pvh=16 * M), memory_size=64 * M, format="elf")
    assert (image.format, image.mode) == ("elf", "long")
    assert load_image(vmlinux(), memory_size=64 * M, mode="long").format == "elf"
    assert load_image(vmlinux(), memory_size=64 * M).format == "linux64"
