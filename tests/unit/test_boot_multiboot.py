"""Multiboot 1: what the kernel gets, where it lies, and which headers are refused."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from boot_images import Elf, Seg, Sym, multiboot_elf, multiboot_flat, multiboot_header

from pykvm.boot import ImageError, LoadedImage, load_image
from pykvm.memory import GuestMemory

M = 1 << 20


def load(image: Any, **kwargs: Any) -> LoadedImage:
    return load_image(image, **{"memory_size": 64 * M, **kwargs})


def refused(image: Any, **kwargs: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load(image, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


@dataclass
class Info:
    """The multiboot information structure, as a kernel reads it."""

    flags: int
    mem_lower: int
    mem_upper: int
    cmdline: bytes
    name: bytes
    modules: list[tuple[bytes, bytes, int]]
    mmap: list[tuple[int, int, int]]
    symbols: tuple[int, int, int, int]


def read_info(image: LoadedImage, ram: list[tuple[int, int]] | None = None) -> Info:
    """Place `image` and read what EBX points to, the way a kernel does."""
    with GuestMemory.anonymous(ram or [(0, 64 * M)]) as memory:
        image.place(memory)

        def string(at: int) -> bytes:
            end = memory.find(b"\0", at)
            assert end is not None
            return memory.read(at, end - at)

        assert image.state.regs["rax"] == 0x2BADB002
        ebx = image.state.regs["rbx"]
        words = struct.unpack("<29I", memory.read(ebx, 116))
        modules = []
        for n in range(words[5]):
            start, end, text, zero = struct.unpack("<4I", memory.read(words[6] + 16 * n, 16))
            assert zero == 0
            modules.append((memory.read(start, end - start), string(text), start))
        mmap, at = [], words[12]
        while at < words[12] + words[11]:
            size, start, length, kind = struct.unpack("<IQQI", memory.read(at, 24))
            mmap.append((start, length, kind))
            at += size + 4
        return Info(
            flags=words[0],
            mem_lower=words[1],
            mem_upper=words[2],
            cmdline=string(words[4]),
            name=string(words[16]),
            modules=modules,
            mmap=mmap,
            symbols=words[7:11],
        )


def test_machine_state() -> None:
    """Specification 3.2."""
    state = load(multiboot_elf()).state
    assert state.mode == "protected"
    assert state.code_bits == 32
    assert not state.paging
    assert state.regs["rflags"] == 2
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = state.segments[name]
        assert (segment.base, segment.limit, segment.db, segment.present) == (0, 0xFFFFFFFF, 1, 1)
    assert state.segments["cs"].is_code


@pytest.mark.parametrize("bits", [32, 64])
def test_elf_kernel(bits: int) -> None:
    image = load(multiboot_elf(3, b"\x90\xf4", bits=bits))
    assert (image.format, image.mode) == ("multiboot", "protected")
    assert image.entry == image.state.regs["rip"] == M + 12
    assert image.segments[0].gpa == M
    assert bytes(image.segments[0].data[12:]) == b"\x90\xf4"


def test_virtual_entry_is_translated() -> None:
    data = multiboot_header(0) + b"\xf4"
    for bits, base in ((32, 0xC0100000), (64, 0xFFFFFFFF80100000)):
        elf = Elf([Seg(base, data, paddr=M)], entry=base + 12, bits=bits)
        assert load(elf.build()).entry == M + 12


def test_address_fields() -> None:
    image = load(multiboot_flat(b"\xf4" * 8, base=2 * M, lead=4, bss=100))
    segment = image.segments[0]
    assert (segment.gpa, len(segment.data), segment.mem_size) == (2 * M, 44, 144)
    assert image.entry == 2 * M + 36
    # The text segment may start later in the file than its first byte.
    image = load(multiboot_flat(b"\xf4", base=2 * M, lead=64, load_addr=2 * M + 60))
    assert image.segments[0].gpa == 2 * M + 60
    assert bytes(image.segments[0].data[4:8]) == struct.pack("<I", 0x1BADB002)
    # load_end_addr cuts what is behind.
    image = load(multiboot_flat(b"\xf4" * 9, load_end_addr=M + 33))
    assert len(image.segments[0].data) == 33
    assert load(multiboot_flat(b"\xf4\xf4"), entry=M + 33).entry == M + 33


def test_address_fields_win_over_elf() -> None:
    base = 3 * M
    # ELF32 header and one program header are 84 bytes; the multiboot header follows.
    header = multiboot_header(1 << 16, base + 84, base, 0, 0, base + 84 + 32)
    image = load(Elf([Seg(M, header + b"\xf4")], entry=M + 32, bits=32).build())
    assert image.segments[0].gpa == base
    assert bytes(image.segments[0].data[:4]) == b"\x7fELF"
    assert image.entry == base + 116


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load_addr": M + 1}, "would start after it"),
        ({"load_addr": M - 1}, "would start before the file"),
        ({"load_end_addr": M}, "truncated, or correct"),
        ({"load_end_addr": M - 1}, "truncated, or correct"),
        ({"load_end_addr": M + 1000}, "the file has 33 bytes"),
        ({"load_end_addr": 0xFFFFFFFF}, "truncated, or correct"),
        ({"bss_end_addr": M + 32}, "before the data ends"),
        ({"bss_end_addr": 1}, "before the data ends"),
        ({"bss_end_addr": 0xFFFFFFFF}, "does not fit into the guest's memory"),
        ({"entry_addr": M + 33}, "outside the kernel's loaded bytes"),
        ({"entry_addr": M - 1}, "outside the kernel's loaded bytes"),
        ({"base": 64 * M}, "does not fit into the guest's memory"),
        ({"base": 0xFFFFFFF0, "entry_addr": 0, "header_addr": 0xFFFFFFF0}, "does not fit"),
    ],
)
def test_bad_address_fields(changes: dict[str, int], words: str) -> None:
    assert words in refused(multiboot_flat(**changes))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (1 << 2, "requires a video mode and the machine has no display"),
        (7, "requires a video mode"),
        (1 << 3, "requires features 0x8"),
        (1 << 15 | 1, "requires features 0x8000"),
    ],
)
def test_requirements_that_cannot_be_met(flags: int, words: str) -> None:
    assert words in refused(multiboot_elf(flags))
    assert load(multiboot_elf(flags), format="elf").format == "elf"


def test_optional_features_are_ignored() -> None:
    load(multiboot_elf(0xFFFE0003))


def test_refused_requests() -> None:
    kernel = multiboot_elf()
    assert "starts in protected mode, not in long mode" in refused(kernel, mode="long")
    assert "leave the load address out" in refused(kernel, load=M)
    assert load(kernel, mode="protected").mode == "protected"
    assert "no load addresses" in refused(multiboot_header(0) + b"\xf4")
    assert "above 4 GiB" in refused(
        multiboot_elf(bits=64, base=5 << 30), memory_size=6 << 30, cmdline="x"
    )


def test_information() -> None:
    info = read_info(load(multiboot_elf(3), cmdline="root=/dev/ram0 quiet"))
    assert info.flags == 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9
    assert (info.mem_lower, info.mem_upper) == (639, 63 * 1024)
    assert info.cmdline == b"root=/dev/ram0 quiet"
    assert info.name == b"pykvm"
    assert info.modules == []
    assert info.mmap == [(0, 0x9FC00, 1), (0x9FC00, 0x60400, 2), (M, 63 * M, 1)]


def test_memory_map_with_holes() -> None:
    ram = [(0, 16 * M), (32 * M, 8 * M), (4 << 30, 64 * M)]
    info = read_info(load(multiboot_elf(), ram=ram), ram)
    assert info.mem_upper == 15 * 1024
    assert info.mmap == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x60400, 2),
        (M, 15 * M, 1),
        (32 * M, 8 * M, 1),
        (4 << 30, 64 * M, 1),
    ]


def test_large_memory_is_told_in_full() -> None:
    image = load(multiboot_elf(), memory_size=6 << 30)
    info = read_info(image, [(0, 6 << 30)])
    assert info.mmap[-1] == (M, (6 << 30) - M, 1)
    assert info.mem_upper == ((4 << 30) - M) >> 10


def test_modules(tmp_path: Path) -> None:
    plain, spaced, empty = tmp_path / "initrd", tmp_path / "a b", tmp_path / "empty"
    plain.write_bytes(b"I" * 5000)
    spaced.write_bytes(b"spaced")
    empty.touch()
    image = load(
        multiboot_elf(1),
        modules=[
            f"{plain} root=1 x",
            str(spaced),
            plain,
            (b"raw", "raw args"),
            (str(plain), "renamed"),
            b"nameless",
            empty,
        ],
    )
    info = read_info(image)
    assert [(data, text) for data, text, _ in info.modules] == [
        (b"I" * 5000, f"{plain} root=1 x".encode()),
        (b"spaced", str(spaced).encode()),
        (b"I" * 5000, str(plain).encode()),
        (b"raw", b"raw args"),
        (b"I" * 5000, b"renamed"),
        (b"nameless", b""),
        (b"", str(empty).encode()),
    ]
    starts = [start for _, _, start in info.modules]
    assert starts[0] == M + 0x1000  # the first page behind the kernel
    assert all(start % 4096 == 0 for start in starts)
    assert starts == sorted(set(starts))


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (["/nonexistent args"], "/nonexistent: the module cannot be opened"),
        (["/dev/zero"], "character device"),
        (["/"], "a directory"),
        ([5], "the module is int"),
        ([(5, "x")], "the module is int"),
        ([b""] * 1025, "1025 modules are more than 1024"),
        ([(b"x", "a\0b")], "NUL character at 1"),
        ([(b"x", "a" * 65537)], "longer than 64 KiB"),
        ([bytes(63 * M)], "no room for module"),
        (["a\0b"], "NUL character"),
        ([("x",)], "a module is"),
        ([(b"x", 5)], "string is int, not text"),
        ("file args", "a list of modules"),
        (5, "a list of modules"),
    ],
)
def test_bad_modules(modules: Any, words: str) -> None:
    assert words in refused(multiboot_elf(), modules=modules)


def test_bad_command_lines() -> None:
    assert "NUL character" in refused(multiboot_elf(), cmdline="a\0b")
    assert "longer than 64 KiB" in refused(multiboot_elf(), cmdline="é" * 40000)
    assert read_info(load(multiboot_elf(), cmdline="a" * 65536)).cmdline == b"a" * 65536
    assert "command line is int" in refused(multiboot_elf(), cmdline=5)


@pytest.mark.parametrize("base", [0x1000, 0x8000, 0x90000, M, 32 * M])
@pytest.mark.parametrize("bss", [0, 0x1000, 0x90000, 0x1800000])
def test_nothing_overlaps(base: int, bss: int) -> None:
    image = load(
        multiboot_flat(b"\xf4" * 5000, base=base, bss=bss),
        modules=[bytes(100000), b"x"],
        cmdline="c" * 5000,
    )
    pieces = [(s.gpa, s.end) for s in image.segments]
    pieces += [(gpa, gpa + len(data)) for gpa, data in image.state.memory]
    stack = image.state.regs["rsp"]
    pieces.append((stack - 0x1000, stack))
    pieces.sort()
    for (_, end), (start, _) in pairwise(pieces):
        assert end <= start
    assert pieces[0][0] >= 0x1000
    assert pieces[-1][1] <= 64 * M
    for start, end in pieces:
        if (start, end) != (base, image.segments[0].end):
            assert end <= 0x9F000 or start >= M
    assert [data for data, _, _ in read_info(image).modules] == [bytes(100000), b"x"]


def test_small_guest() -> None:
    info = read_info(load(multiboot_flat(base=0x2000), memory_size=0x10000), [(0, 0x10000)])
    assert info.mmap == [(0, 0x10000, 1)]
    assert (info.mem_lower, info.mem_upper) == (64, 0)


@pytest.mark.parametrize("bits", [32, 64])
def test_elf_symbols_are_told(bits: int) -> None:
    kernel = multiboot_elf(bits=bits, symbols=[Sym("start", M + 12), Sym("other", M)])
    image = load(kernel, modules=[b"module"])
    assert image.symbols() == {"start": M + 12, "other": M}
    info = read_info(image)
    assert info.flags & 1 << 5
    count, size, address, index = info.symbols
    assert (count, size, index) == (5, 64 if bits == 64 else 40, 4)
    with GuestMemory.anonymous([(0, 64 * M)]) as memory:
        image.place(memory)
        layout = "<IIQQQQIIQQ" if bits == 64 else "<10I"
        headers = [
            struct.unpack(layout, memory.read(address + n * size, size)) for n in range(count)
        ]
        symbols, strings = headers[2], headers[3]
        assert symbols[1] == 2
        assert strings[1] == 3
        assert memory.read(strings[3], strings[5]) == b"\0start\0other\0"
        record = memory.read(symbols[3] + symbols[9], symbols[9])
        assert record[:4] == b"\1\0\0\0"
        names = memory.read(headers[4][3], headers[4][5])
        assert names[symbols[0] :].startswith(b".symtab\0")


def test_unusable_symbols_are_left_out() -> None:
    kernel = multiboot_elf(symbols=[Sym("start", M + 12)], ehdr={"shoff": 0xFFFFFFF0})
    image = load(kernel)
    assert read_info(image).flags & 1 << 5 == 0
    assert "not told its symbols" in image.notes[-1]
    assert load(multiboot_elf()).notes == []


def test_every_truncation_is_refused() -> None:
    for whole, needed in ((multiboot_elf(), None), (multiboot_flat(b"\xf4" * 8), 33)):
        for size in range(1, needed or len(whole)):
            assert refused(whole[:size], format="multiboot")
        load(whole[:needed], format="multiboot")


def test_linked_kernel(tmp_path: Path) -> None:
    source, script, out = tmp_path / "k.S", tmp_path / "k.ld", tmp_path / "k"
    source.write_text(
        ".section .multiboot\n.long 0x1badb002, 3, -(0x1badb002 + 3)\n"
        ".text\n.globl _start\n_start: cli\nhlt\n.bss\n.skip 100000\n"
    )
    script.write_text(
        "ENTRY(_start)\nSECTIONS { . = 1M; .text : { *(.multiboot) *(.text) } .data : { *(.data) } "
        ".bss : { *(.bss) } /DISCARD/ : { *(.note*) } }"
    )
    command = ["gcc", "-m32", "-static", "-nostdlib", f"-Wl,-T,{script},--build-id=none"]
    subprocess.run([*command, "-o", str(out), str(source)], check=True)
    image = load(out, modules=[f"{source} arguments"])
    assert image.format == "multiboot"
    assert image.entry == image.symbols()["_start"]
    info = read_info(image)
    assert info.modules[0][0] == source.read_bytes()
    assert info.modules[0][2] >= M + 12 + 100000
    assert info.flags & 1 << 5
