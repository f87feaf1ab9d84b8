"""Multiboot 2 kernels, and the screen that multiboot 1 kernels are told of."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from boot_images import Sym, multiboot_elf, multiboot_header
from kernel_images import M, multiboot2_elf, multiboot2_header, tag2

from pykvm.arch.e820 import build_e820
from pykvm.boot import ImageError, LoadedImage, load_image
from pykvm.boot.environment import VGA_TEXT, BootEnvironment, FramebufferInfo

SCREEN = FramebufferInfo(0xC0000000, 800, 600, 3200, 32)


def load(image: bytes, **kwargs: Any) -> LoadedImage:
    entry = kwargs.pop("entry", None)
    environment = BootEnvironment(**kwargs)
    return load_image(image, memory_size=64 * M, entry=entry, environment=environment)


def refused(image: bytes, **kwargs: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load(image, **kwargs)
    return str(caught.value)


def tags(image: LoadedImage) -> list[tuple[int, bytes]]:
    """The boot information's tags, by section 3.6 of the specification."""
    info = next(s for s in image.segments if s.gpa == image.state.regs["rbx"])
    data = bytes(info.data)
    assert info.gpa % 8 == 0
    assert struct.unpack_from("<II", data) == (len(data), 0)
    found, at = [], 8
    while True:
        kind, size = struct.unpack_from("<II", data, at)
        assert size >= 8
        assert at % 8 == 0
        if kind == 0:
            assert (size, at + 8) == (8, len(data))
            return found
        found.append((kind, data[at + 8 : at + size]))
        at += -(-size // 8) * 8


def test_the_machine_state_and_the_information() -> None:
    e820 = build_e820([(0, 64 * M)])
    image = load(multiboot2_elf(), cmdline="hello", modules=[(b"abc", "one"), b"de"], e820=e820)
    assert (image.format, image.mode) == ("multiboot2", "protected")
    assert image.state.regs["rax"] == 0x36D76289
    assert image.entry == M + 16 + 8
    found = tags(image)
    assert dict(found)[1] == b"hello\0"
    assert dict(found)[2] == b"pykvm\0"
    assert struct.unpack("<II", dict(found)[4]) == (639, 63 * 1024)
    modules = [body for kind, body in found if kind == 3]
    assert [body[8:] for body in modules] == [b"one\0", b"\0"]
    for body, size in zip(modules, (3, 2), strict=True):
        start, end = struct.unpack_from("<II", body)
        assert start % 4096 == 0
        assert end - start == size
    memory = dict(found)[6]
    assert struct.unpack_from("<II", memory) == (24, 0)
    entries = [entry[:3] for entry in struct.iter_unpack("<QQII", memory[8:])]
    assert entries == [tuple(e) for e in e820]
    assert not {8, 14, 15, 21} & dict(found).keys()


def test_an_initrd_is_the_first_module() -> None:
    found = tags(load(multiboot2_elf(), initrd=b"12345", modules=[(b"x", "second")]))
    starts = [struct.unpack_from("<II", body) for kind, body in found if kind == 3]
    assert starts[0][1] - starts[0][0] == 5


def test_acpi() -> None:
    old = b"RSD PTR \0PYKVM \0" + bytes(4)
    assert dict(tags(load(multiboot2_elf(), rsdp=1, rsdp_data=old))).get(14) == old
    new = b"RSD PTR \0PYKVM \2" + bytes(20)
    found = dict(tags(load(multiboot2_elf(), rsdp=1, rsdp_data=new)))
    assert (found[14], found[15]) == (new[:20], new)
    assert "no copy of the RSDP" in load(multiboot2_elf(), rsdp=0xE0000).notes[-1]


def test_elf_sections() -> None:
    image = load(multiboot2_elf(symbols=[Sym("here", M)]))
    body = dict(tags(image))[9]
    count, size, names = struct.unpack_from("<III", body)
    assert (count, size, names) == (5, 40, 4)
    assert len(body) == 12 + count * size
    header = struct.unpack_from("<10I", body, 12 + 2 * size)
    symtab = next(s for s in image.segments if s.gpa == header[3])
    assert len(symtab.data) == header[5]
    assert image.symbols() == {"here": M}


def test_addresses() -> None:
    base = 4 * M
    header = multiboot2_header(
        tag2(2, struct.pack("<4I", base, base, 0, base + 0x3000)),
        tag2(3, struct.pack("<I", base + 80)),
    )
    image = load(header.ljust(80, b"\0") + b"\xf4" * 8)
    (kernel,) = [s for s in image.segments if s.what == "the kernel"]
    assert (kernel.gpa, kernel.mem_size, len(kernel.data)) == (base, 0x3000, 88)
    assert image.entry == base + 80
    # -1: from the beginning of the file
    whole = bytes(64) + multiboot2_header(
        tag2(2, struct.pack("<4I", base, 0xFFFFFFFF, 0, 0)), tag2(3, struct.pack("<I", base - 64))
    )
    image = load(whole)
    (kernel,) = [s for s in image.segments if s.what == "the kernel"]
    assert (kernel.gpa, image.entry) == (base - 64, base - 64)
    no_entry = multiboot2_header(tag2(2, struct.pack("<4I", base, base, 0, 0)))
    assert "no entry address tag" in refused(no_entry)
    assert load(no_entry, entry=base).entry == base
    assert "no address tag" in refused(multiboot2_header())


def test_entry_tag_of_an_elf_file() -> None:
    image = load(multiboot2_elf(tag2(3, struct.pack("<I", M + 50))))
    assert image.entry == M + 50
    assert "no loadable segment" in refused(multiboot2_elf(tag2(3, struct.pack("<I", 9 * M))))


@pytest.mark.parametrize(
    ("preference", "low", "high", "base"),
    [
        (0, 0, 0xFFFFFFFF, M),  # where it is linked is as good as any
        (1, 4 * M, 0xFFFFFFFF, 4 * M),
        (2, 4 * M, 32 * M - 1, 32 * M - 0x10000),
        (0, 5 * M + 1, 0xFFFFFFFF, 5 * M + 0x10000),
    ],
)
def test_relocation(preference: int, low: int, high: int, base: int) -> None:
    tag = tag2(10, struct.pack("<4I", low, high, 0x10000, preference))
    image = load(multiboot2_elf(tag))
    header = len(multiboot2_header(tag))
    assert image.segments[0].gpa == base
    assert image.entry == base + header
    assert dict(tags(image))[21] == struct.pack("<I", base)


def test_relocation_without_room() -> None:
    tag = tag2(10, struct.pack("<4I", 64 * M, 65 * M, 4096, 1))
    assert "no room for the kernel" in refused(multiboot2_elf(tag))


def test_the_screen() -> None:
    want = tag2(5, struct.pack("<3I", 800, 600, 32))
    image = load(multiboot2_elf(want), framebuffer=SCREEN)
    body = dict(tags(image))[8]
    assert struct.unpack_from("<QIIIBB", body) == (0xC0000000, 3200, 800, 600, 32, 1)
    assert body[24:] == bytes((16, 8, 8, 8, 0, 8))
    assert image.framebuffer is SCREEN
    text = dict(tags(load(multiboot2_elf(), framebuffer=VGA_TEXT)))[8]
    assert struct.unpack_from("<QIIIBB", text) == (0xB8000, 160, 80, 25, 16, 2)
    assert "requires a frame buffer" in refused(multiboot2_elf(want))
    optional = tag2(5, struct.pack("<3I", 800, 600, 32), flags=1)
    assert 8 not in dict(tags(load(multiboot2_elf(optional))))


def test_a_video_mode_is_asked_for() -> None:
    asked = []

    def mode(width: int, height: int, bpp: int) -> FramebufferInfo:
        asked.append((width, height, bpp))
        return SCREEN

    want = tag2(5, struct.pack("<3I", 0, 0, 24))
    image = load(multiboot2_elf(want), framebuffer=VGA_TEXT, video_mode=mode)
    assert asked == [(1024, 768, 24)]
    assert image.framebuffer is SCREEN
    text = tag2(5, struct.pack("<3I", 80, 25, 0))
    assert load(multiboot2_elf(text), framebuffer=VGA_TEXT, video_mode=mode).framebuffer is VGA_TEXT
    assert len(asked) == 1


def test_the_screen_of_multiboot_1() -> None:
    header = multiboot_header(1 << 16 | 4, M, M, 0, 0, M + 48) + struct.pack("<4I", 0, 800, 600, 32)
    image = load(header + b"\xf4", framebuffer=SCREEN)
    info = bytes(next(s for s in image.segments if s.gpa == image.state.regs["rbx"]).data)
    assert struct.unpack_from("<I", info)[0] & 1 << 12
    assert struct.unpack_from("<QIIIBB", info, 88) == (0xC0000000, 3200, 800, 600, 32, 1)
    assert info[110:116] == bytes((16, 8, 8, 8, 0, 8))
    assert "no display" in refused(header + b"\xf4")
    plain = load(multiboot_elf(), framebuffer=VGA_TEXT, e820=build_e820([(0, 64 * M)]))
    info = bytes(next(s for s in plain.segments if s.gpa == plain.state.regs["rbx"]).data)
    assert struct.unpack_from("<QIIIBB", info, 88) == (0xB8000, 160, 80, 25, 16, 2)
    assert any(s.what == "the BIOS services" for s in plain.segments)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (multiboot2_header(architecture=4), "architecture 4"),
        (multiboot2_header(tag2(99)), "requires tag 99"),
        (multiboot2_header(tag2(1, struct.pack("<II", 6, 77))), "information of type 77"),
        (multiboot2_header(tag2(2, b"1234")), "impossible size"),
        (multiboot2_header(tag2(5, b"", size=4)), "impossible size"),
        (multiboot2_header(tag2(3, bytes(4), size=500)), "impossible size"),
        (multiboot2_header(*[tag2(6)] * 300), "more than 256 tags"),
    ],
)
def test_damaged_headers(header: bytes, words: str) -> None:
    assert words in refused(header + bytes(64))


def test_optional_and_harmless_tags() -> None:
    known = [tag2(4, struct.pack("<I", 3)), tag2(6), tag2(7), tag2(99, flags=1)]
    known.append(tag2(1, struct.pack("<III", 6, 14, 77), flags=1))
    assert load(multiboot2_elf(*known)).format == "multiboot2"
    unended = multiboot2_header(tag2(2, struct.pack("<4I", M, M, 0, 0)), end=False)
    assert load(unended, entry=M).entry == M


def test_arguments() -> None:
    with pytest.raises(ImageError, match="says itself where"):
        load_image(multiboot2_elf(), memory_size=64 * M, load=M)
    with pytest.raises(ImageError, match="entered in protected mode"):
        load_image(multiboot2_elf(), memory_size=64 * M, mode="long")
    with pytest.raises(ImageError, match="no multiboot 2 header"):
        load_image(multiboot_elf(), memory_size=64 * M, format="multiboot2")
