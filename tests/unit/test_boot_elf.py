"""ELF executables: what is loaded where, where they start, and what is refused."""

from __future__ import annotations

import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from boot_images import (
    EM_386,
    EM_ARM,
    ET_CORE,
    ET_DYN,
    ET_REL,
    PT_INTERP,
    PT_NOTE,
    Elf,
    Seg,
    Sym,
)

from pykvm.arch.paging import walk
from pykvm.boot import ImageError, LoadedImage, load_image
from pykvm.memory import GuestMemory

M = 1 << 20
HIGH = 0xFFFFFFFF80000000


def load(image: Any, **kwargs: Any) -> LoadedImage:
    if isinstance(image, Elf):
        image = image.build()
    return load_image(image, **{"memory_size": 64 * M, **kwargs})


def refused(image: Any, **kwargs: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load(image, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("the image: ")
    return text


def pieces(image: LoadedImage) -> list[tuple[int, bytes, int]]:
    return [(s.gpa, bytes(s.data), s.mem_size) for s in image.segments]


@pytest.mark.parametrize("bits", [32, 64])
def test_default_modes(bits: int) -> None:
    image = load(Elf([Seg(M, b"\x90\xf4")], entry=M + 1, bits=bits))
    assert image.format == "elf"
    assert image.mode == image.state.mode == ("long" if bits == 64 else "protected")
    assert image.entry == image.state.regs["rip"] == M + 1
    assert pieces(image) == [(M, b"\x90\xf4", 2)]


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
@pytest.mark.parametrize("bits", [32, 64])
def test_any_mode_can_be_asked_for(bits: int, mode: str) -> None:
    image = load(Elf([Seg(0x8000, b"\xf4")], entry=0x8000, bits=bits), mode=mode)
    assert image.mode == image.state.mode == mode
    assert image.state.linear_rip == 0x8000


def test_segments_need_no_alignment() -> None:
    image = load(
        Elf(
            [
                Seg(M + 1, b"abc", mem_size=0x2001),
                Seg(M + 0x2345, b"d"),
                Seg(5 * M, b"", mem_size=9),
            ],
            entry=M + 1,
        )
    )
    assert pieces(image) == [(M + 1, b"abc", 0x2001), (M + 0x2345, b"d", 1), (5 * M, b"", 9)]


def test_data_is_a_view_of_the_image() -> None:
    raw = bytearray(Elf([Seg(M, b"abc")], entry=M).build())
    image = load_image(raw, memory_size=64 * M)
    raw[-1] = ord("x")
    assert bytes(image.segments[0].data) == b"abx"


def test_other_segments_and_empty_ones_are_skipped() -> None:
    image = load(
        Elf([Seg(0, b"note", type=PT_NOTE), Seg(M, b"a"), Seg(1 << 60, b"", type=1)], entry=M)
    )
    assert pieces(image) == [(M, b"a", 1)]


def translate(image: LoadedImage, address: int) -> int | None:
    """Where the entry page tables send `address`."""
    with GuestMemory.anonymous([(0, 64 * M)]) as memory:
        image.place(memory)
        s = image.state
        result = walk(memory, address, cr0=s.cr0, cr3=s.cr3, cr4=s.cr4, efer=s.efer)
        return getattr(result, "gpa", None)


def test_long_mode_maps_four_gib_one_to_one() -> None:
    image = load(Elf([Seg(M)], entry=M))
    for address in (0, M, 0xDEADBEEF, (4 << 30) - 1):
        assert translate(image, address) == address
    assert translate(image, 4 << 30) is None


def test_higher_half_entry_is_mapped() -> None:
    image = load(
        Elf(
            [
                Seg(HIGH + 0x200010, b"\xf4" * 8, paddr=0x200010),
                Seg(HIGH + 0x201018, b"data", paddr=0x201018, mem_size=0x5000, flags=6),
            ],
            entry=HIGH + 0x200014,
        )
    )
    assert image.entry == image.state.regs["rip"] == HIGH + 0x200014
    assert pieces(image)[0][0] == 0x200010
    assert translate(image, HIGH + 0x200014) == 0x200014
    assert translate(image, HIGH + 0x201018) == 0x201018
    assert translate(image, HIGH + 0x206017) == 0x206017
    assert translate(image, HIGH + 0x207000) is None
    assert translate(image, 0x200014) == 0x200014
    assert any("is mapped to physical 0x200000" in note for note in image.notes)


def test_segments_may_be_mapped_anywhere_else() -> None:
    image = load(
        Elf(
            [
                Seg(0x40000000, b"\xf4", paddr=0x300000),
                Seg(0xFFFF800000000000, b"d", paddr=0x500000),
            ],
            entry=0x40000000,
        )
    )
    assert translate(image, 0x40000000) == 0x300000
    assert translate(image, 0xFFFF800000000000) == 0x500000
    assert translate(image, 0x40001000) == 0x40001000  # the identity map goes on around it


def test_own_tables_are_not_hidden_by_a_mapping() -> None:
    """A segment mapped over conventional memory must not cover the loader's tables and stack."""
    image = load(Elf([Seg(0x80000, b"\xf4", paddr=0x300000, mem_size=0x40000)], entry=0x80000))
    assert translate(image, 0x80000) == 0x300000
    for gpa, data in image.state.memory:
        assert translate(image, gpa) == gpa
        assert translate(image, gpa + len(data) - 1) == gpa + len(data) - 1
    stack = image.state.regs["rsp"]
    assert translate(image, stack - 8) == stack - 8


def test_physical_entry_in_a_higher_half_kernel() -> None:
    """As Linux's vmlinux: e_entry is physical, and per-CPU data is linked at 0."""
    image = load(
        Elf(
            [
                Seg(HIGH + 16 * M, b"\xf4", paddr=16 * M, flags=5),
                Seg(0, b"percpu", paddr=17 * M, mem_size=32 * M, flags=6),
            ],
            entry=16 * M,
        )
    )
    assert image.entry == 16 * M
    assert translate(image, 16 * M) == 16 * M
    assert translate(image, 0) == 0


def test_elf32_enters_at_the_physical_address() -> None:
    image = load(Elf([Seg(0xC0100000, b"\x90\xf4", paddr=M)], entry=0xC0100001, bits=32))
    assert image.entry == image.state.regs["rip"] == M + 1
    assert image.mode == "protected"
    assert "0xc0100001" in image.notes[0]
    assert load(Elf([Seg(0xC0100000, b"\x90\xf4", paddr=M)], entry=M + 1, bits=32)).entry == M + 1


def test_elf64_in_protected_mode_enters_at_the_physical_address() -> None:
    elf = Elf([Seg(HIGH + M, b"\xf4", paddr=M)], entry=HIGH + M)
    assert load(elf, mode="protected").entry == M


def test_entry_override() -> None:
    elf = Elf([Seg(HIGH + M, b"\xf4\xf4", paddr=M)], entry=HIGH + M)
    assert load(elf, entry=HIGH + M + 1).entry == HIGH + M + 1
    assert load(elf, entry=M + 1).entry == M + 1
    assert "lies in no loadable segment" in refused(elf, entry=M + 2)


def test_all_physical_addresses_zero_means_virtual_ones() -> None:
    image = load(Elf([Seg(M, b"a", paddr=0), Seg(2 * M, b"b", paddr=0)], entry=M))
    assert [s.gpa for s in image.segments] == [M, 2 * M]


def test_position_independent() -> None:
    elf = Elf([Seg(0, b"\x90\xf4", mem_size=0x1800), Seg(0x2010, b"d")], entry=1, type=ET_DYN)
    assert [s.gpa for s in load(elf).segments] == [0, 0x2010]
    moved = load(elf, load=M)
    assert [s.gpa for s in moved.segments] == [M, M + 0x2010]
    assert moved.entry == M + 1
    assert "give 0x101000" in refused(elf, load=M + 1)
    assert "does not fit" in refused(elf, load=64 * M)
    apart = Elf([Seg(HIGH, b"\xf4", paddr=M)], entry=HIGH, type=ET_DYN)
    assert load(apart, load=2 * M).entry == HIGH + M
    assert "cannot move with the load address 0xffffffff00000000" in refused(
        apart, load=0xFFFFFFFF00000000
    )
    low = Elf([Seg(M, b"\xf4"), Seg(0, b"d", paddr=2 * M)], entry=M, type=ET_DYN)
    assert "cannot move with the load address 0x0" in refused(low, load=0)
    outside = Elf([Seg(M, b"\xf4")], entry=1, type=ET_DYN)
    assert "entry point 0xfffffffffff00001 lies in no" in refused(outside, load=0)


def test_an_absurd_number_of_small_pages_is_refused() -> None:
    elf = Elf([Seg(HIGH, b"\xf4", paddr=M, mem_size=M << 10)], entry=HIGH)
    assert "equal modulo 2 MiB" in refused(elf, memory_size=2 << 30)
    elf.segments[0].paddr = 2 * M
    assert load(elf, memory_size=2 << 30).entry == HIGH


def test_high_memory_is_mapped_one_to_one() -> None:
    high = 5 << 30
    image = load(Elf([Seg(high, b"\xf4")], entry=high), memory_size=6 << 30)
    assert image.entry == high
    s = image.state
    with GuestMemory.anonymous([(0, 6 << 30)]) as memory:
        image.place(memory)
        result = walk(memory, high, cr0=s.cr0, cr3=s.cr3, cr4=s.cr4, efer=s.efer)
        assert result.gpa == high  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("elf", "words"),
    [
        (Elf([Seg(M)], type=ET_REL), "an object file: link it first"),
        (Elf([Seg(M)], type=ET_CORE), "a core dump"),
        (Elf([Seg(M)], type=0), "without a type"),
        (Elf([Seg(M)], type=0xFE00), "of type"),
        (Elf([Seg(0)], type=ET_DYN, entry=0), "shared library"),
        (Elf([Seg(M)], machine=EM_ARM), "not for x86"),
        (Elf([Seg(M)], machine=EM_386), "not for x86"),
        (Elf([Seg(M)], machine=0xFFFF), "for machine 65535"),
        (Elf([Seg(M), Seg(0, b"/lib/ld.so\0", type=PT_INTERP)]), "link it with -static"),
        (Elf([]), "no program headers"),
        (Elf([Seg(M, b"")]), "nothing to load"),
        (Elf([Seg(M, type=PT_NOTE)]), "nothing to load"),
        (Elf([Seg(M)], ehdr={"phentsize": 55}), "program headers of 55 bytes"),
        (Elf([Seg(M)], ehdr={"phentsize": 0}), "program headers of 0 bytes"),
        (Elf([Seg(M)], ehdr={"phnum": 0xFFFF}), "65535 program headers"),
        (Elf([Seg(M)], ehdr={"phnum": 1024}), "lie outside the file"),
        (Elf([Seg(M)], ehdr={"phoff": (1 << 64) - 8}), "lie outside the file"),
        (Elf([Seg(M, mem_size=1, file_size=2)]), "0x2 bytes in the file for 0x1"),
        (Elf([Seg(M, file_size=1 << 63)]), "truncated"),
        (Elf([Seg(M, offset=(1 << 64) - 1)]), "truncated"),
        (Elf([Seg(M, mem_size=1 << 63)]), "does not fit"),
        (Elf([Seg(M, mem_size=(1 << 64) - 1)]), "64-bit address space"),
        (Elf([Seg(0xFFFFF000, mem_size=0x1001)], bits=32), "32-bit address space"),
        (Elf([Seg((1 << 64) - 1, b"ab")]), "64-bit address space"),
        (Elf([Seg(M, mem_size=64 * M)]), "give the guest at least 65 MiB"),
        (Elf([Seg(M, bytes(9)), Seg(M + 8)]), "segment 1 at 0x100008-0x100008 overlaps segment 0"),
        (Elf([Seg(M)], entry=2 * M), "entry point 0x200000 lies in no loadable segment"),
        (Elf([Seg(M)], entry=0), "lies in no loadable segment"),
        (Elf([Seg(M, mem_size=9)], entry=M + 1), "zero-filled part"),
        (Elf([Seg(HIGH, paddr=M + 1)], entry=HIGH), "another offset in its page"),
        (Elf([Seg(1 << 47, paddr=M)], entry=1 << 47), "no canonical address"),
        (Elf([Seg(HIGH, paddr=M), Seg(HIGH + 8, paddr=2 * M + 8)], entry=HIGH), "virtual page"),
    ],
)
def test_refused(elf: Elf, words: str) -> None:
    assert words in refused(elf)


def test_refused_placements() -> None:
    elf = Elf([Seg(M)], entry=M)
    assert "fixed addresses" in refused(elf, load=2 * M)
    assert "0x200000" in refused(Elf([Seg(2 * M)], entry=2 * M), mode="real")
    assert "only be given to a Linux, PVH or multiboot" in refused(elf, cmdline="x")
    assert "an ELF image" in refused(elf, modules=[b"x"])


@pytest.mark.parametrize("bits", [32, 64])
def test_every_truncation_is_refused(bits: int) -> None:
    whole = Elf([Seg(M, b"code"), Seg(2 * M, b"data")], entry=M, bits=bits).build()
    for size in range(4, len(whole)):
        assert refused(whole[:size])
    load(whole)


@pytest.mark.parametrize(
    ("ident", "words"),
    [
        (b"\x7fELF\x03\x01\x01", "class 3"),
        (b"\x7fELF\x00\x01\x01", "class 0"),
        (b"\x7fELF\x02\x02\x01", "data encoding 2"),
    ],
)
def test_bad_identification(ident: bytes, words: str) -> None:
    assert words in refused(Elf([Seg(M)], ident=ident.ljust(16, b"\0")))


def test_many_segments_are_quick() -> None:
    elf = Elf([Seg(M + 8 * n, b"12345678") for n in range(1024)], entry=M)
    start = time.perf_counter()
    assert len(load(elf).segments) == 1024
    assert time.perf_counter() - start < 2


def test_symbols() -> None:
    elf = Elf(
        [Seg(M, bytes(100))],
        entry=M,
        symbols=[
            Sym("_start", M, 16, 0x12),
            Sym("local", M + 16, 4, 0x02),
            Sym("label", M + 32, 0, 0x00),
            Sym("twice", M + 40, 0, 0x00),
            Sym("twice", M + 48, 0, 0x10),
            Sym("CONSTANT", M + 33, 0, 0x10, 0xFFF1),
            Sym("undefined", 5, 0, 0x10, 0),
            Sym("file.c", 0, 0, 0x04),
            Sym(".text", M, 0, 0x03),
            Sym("", M, 0),
            Sym(b"bad\x1b\xff", M + 60, 2),
        ],
    )
    image = load(elf)
    assert image.symbols() == {
        "_start": M,
        "local": M + 16,
        "label": M + 32,
        "twice": M + 48,
        "CONSTANT": M + 33,
        "bad\\x1b\ufffd": M + 60,
    }
    assert image.symbol_table.problem == ""
    assert image.symbol_at(M) == "_start"
    assert image.symbol_at(M + 15) == "_start+0xf"
    assert image.symbol_at(M + 19) == "local+0x3"
    assert image.symbol_at(M + 21) is None
    assert image.symbol_at(M + 35) == "label+0x3"
    assert image.symbol_at(M - 1) is None
    assert image.symbol_at(63 * M) is None


@pytest.mark.parametrize("bits", [32, 64])
def test_symbols_move_with_the_image(bits: int) -> None:
    elf = Elf([Seg(0)], entry=1, type=ET_DYN, bits=bits, symbols=[Sym("f", 8)])
    elf.segments[0].data = bytes(16)
    assert load(elf).symbols() == {"f": 8}
    assert load(elf, load=M).symbols() == {"f": M + 8}


@pytest.mark.parametrize("bits", [32, 64])
def test_damaged_symbols_do_not_stop_loading(bits: int) -> None:
    elf = Elf([Seg(M)], bits=bits, symbols=[Sym("f", M, 4)])
    good = elf.build()
    shoff = (
        struct.unpack_from("<Q", good, 40)[0]
        if bits == 64
        else struct.unpack_from("<I", good, 32)[0]
    )
    for ehdr in (
        {"shoff": (1 << bits) - 1},
        {"shnum": 0xFFFF},
        {"shnum": 0},
        {"shnum": 2000},
        {"shentsize": 1},
    ):
        elf.ehdr = ehdr
        image = load(elf)
        assert image.symbols() == {}
        assert "section headers" in image.symbol_table.problem
    elf.ehdr = {"shoff": 0}
    assert load(elf).symbol_table.problem == ""
    # The symbol table's size says far too much.
    header = shoff + 2 * (64 if bits == 64 else 40)
    broken = bytearray(good)
    size_at = header + (32 if bits == 64 else 20)
    struct.pack_into("<Q" if bits == 64 else "<I", broken, size_at, 1 << 30)
    image = load(bytes(broken))
    assert image.symbols() == {}
    assert "outside the file" in image.symbol_table.problem


def test_the_names_of_all_symbols_have_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    elf = Elf([Seg(M)], entry=M, symbols=[Sym(f"name{n}", M) for n in range(10)])
    monkeypatch.setattr("pykvm.boot.elf_symbols.MAX_STRINGS", 61)  # the table: 1 + 10 * 6 bytes
    image = load(elf)
    assert len(image.symbols()) == 10
    assert image.symbol_table.problem == ""
    image = load(elf)
    monkeypatch.setattr("pykvm.boot.elf_symbols.MAX_STRINGS", 60)
    assert image.symbols() == {}
    assert "too large" in image.symbol_table.problem
    # Ten names that are each the end of one string of 61 bytes need more than the table has.
    elf.symbols = [Sym("A" * 59, M)] + [Sym("", M)] * 9
    raw = bytearray(elf.build())
    at = raw.index(struct.pack("<IBBHQQ", 1, 0x10, 0, 1, M, 0))
    for n in range(10):
        struct.pack_into("<I", raw, at + 24 * n, 1 + n)
    monkeypatch.setattr("pykvm.boot.elf_symbols.MAX_STRINGS", 120)
    image = load(bytes(raw))
    assert [len(name) for name in image.symbols()] == [59, 58]
    assert "add up to more than 120 bytes" in image.symbol_table.problem


def test_hostile_symbol_names_are_bounded() -> None:
    """Many symbols into one string without an end: time and memory stay small."""
    count = 20000
    elf = Elf([Seg(M)], entry=M, symbols=[Sym("A" * 500000, M)] + [Sym("", M)] * count)
    raw = bytearray(elf.build())
    start = len(raw) - raw[::-1].index(b"A" * 100) - 500000
    at = raw.index(struct.pack("<IBBHQQ", 1, 0x10, 0, 1, M, 0))
    for n in range(count):
        struct.pack_into("<I", raw, at + 24 * n, 1 + n)
    assert start
    image = load(bytes(raw))
    began = time.perf_counter()
    assert len(image.symbols()) >= 1
    assert time.perf_counter() - began < 3
    assert all(len(name) <= 1024 for name in image.symbols())


def test_real_static_executables(tmp_path: Path) -> None:
    source = tmp_path / "k.S"
    source.write_text(
        ".globl _start\n_start: nop\nhalt: hlt\n.data\nword: .long 42\n.comm area, 9999\n"
    )

    def link(*options: str) -> Path:
        out = tmp_path / "k"
        subprocess.run(
            ["gcc", "-nostdlib", "-Wl,--build-id=none", *options, "-o", str(out), str(source)],
            check=True,
        )
        return out

    for bits, kind in ((64, "-m64"), (32, "-m32")):
        image = load(link(kind, "-static", "-Wl,-Ttext=0x100000"))
        assert image.entry == 0x100000
        assert image.mode == ("long" if bits == 64 else "protected")
        names = image.symbols()
        assert names["_start"] == 0x100000
        assert image.symbol_at(names["halt"]) == "halt"
        with GuestMemory.anonymous([(0, 64 * M)]) as memory:
            image.place(memory)
            assert memory.read(0x100000, 2) == b"\x90\xf4"
            assert memory.read_u32(names["word"]) == 42
        assert load(link(kind, "-static-pie")).symbols()["_start"] > 0
        assert load(link(kind, "-static-pie"), load=M).entry > M
    assert "an object file" in refused_path(tmp_path, source)


def refused_path(tmp_path: Path, source: Path) -> str:
    out = tmp_path / "k.o"
    subprocess.run(["gcc", "-c", "-o", str(out), str(source)], check=True)
    with pytest.raises(ImageError) as caught:
        load(out)
    return str(caught.value)
