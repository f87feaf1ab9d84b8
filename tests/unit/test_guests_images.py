"""The shipped images: finding them, setting parameters, and a look at their machine code."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pykvm import images
from pykvm.arch.disasm import disassemble
from pykvm.images import GuestImageError
from pykvm.memory import GuestMemory

ELF64 = [n for n in images.names() if images.find(n).mode == "long"]


def sections(name: str) -> Iterator[tuple[int, bytes]]:
    from elftools.elf.elffile import ELFFile

    with open(images.find(name).path, "rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            yield segment["p_paddr"], segment.data()


def functions(name: str) -> Iterator[tuple[str, int, bytes]]:
    """The C functions of an ELF guest: name, address, code."""
    from elftools.elf.elffile import ELFFile

    loaded = list(sections(name))
    with open(images.find(name).path, "rb") as file:
        for symbol in ELFFile(file).get_section_by_name(".symtab").iter_symbols():
            start, size = symbol["st_value"], symbol["st_size"]
            if symbol["st_info"]["type"] != "STT_FUNC" or not size:
                continue
            for address, data in loaded:
                if address <= start < address + len(data):
                    yield symbol.name, start, data[start - address : start - address + size]


def test_finding_reads_only_the_manifest() -> None:
    code = (
        "import sys; before = set(sys.modules); from pykvm import images; images.find('hello64');"
        "heavy = {'capstone', 'elftools', 'tomllib', 'pathlib', 'dataclasses', 'rich', 'cffi'};"
        "print(sorted(heavy & (set(sys.modules) - before)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_an_unknown_guest_is_named_with_the_nearest_one() -> None:
    with pytest.raises(GuestImageError, match="no guest called 'helo64'; did you mean hello64"):
        images.find("helo64")
    with pytest.raises(GuestImageError, match="`pykvm guests` lists them"):
        images.find("zzzzzzzz")


def test_images_that_were_not_built_or_are_damaged(tmp_path: pathlib.Path) -> None:
    with pytest.raises(GuestImageError, match=r"not built .*; run: python guests/build\.py"):
        images.names(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(GuestImageError, match="damaged"):
        images.find("hello64", str(tmp_path))


def test_parameters_are_written_where_the_guest_reads_them() -> None:
    guest = images.find("pio-loop")
    memory = GuestMemory.anonymous([(0, 0x10000)])
    image = pathlib.Path(guest.path).read_bytes()
    memory.write(guest.load, image)
    for area in guest.params.values():
        held = int.from_bytes(guest.read(memory, area.name), "little")
        assert held == area.default, "the manifest's default is what the image holds"
    guest.patch(memory, count=0x01020304, port=b"\x22")
    assert memory.read_u32(0x1004) == 0x01020304
    assert memory.read_u16(0x1008) == 0x0022
    assert memory.read(guest.load, 4) == image[:4]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"speed": 1}, "has no parameter 'speed'; it has: count, direction, port"),
        ({"port": 0x10000}, "65536 does not fit parameter port of guest pio-loop: .* 16-bit"),
        ({"port": -1}, "-1 does not fit parameter port"),
        (
            {"count": 5, "port": b"123"},
            "3 bytes do not fit parameter port of guest pio-loop: it has 2",
        ),
    ],
)
def test_parameters_that_do_not_fit_change_nothing(
    values: dict[str, int | bytes], said: str
) -> None:
    memory = GuestMemory.anonymous([(0, 0x10000)])
    with pytest.raises(GuestImageError, match=said):
        images.find("pio-loop").patch(memory, **values)
    assert memory.read(0, 0x10000) == bytes(0x10000)


def test_results_that_do_not_exist() -> None:
    memory = GuestMemory.anonymous([(0, 0x10000)])
    with pytest.raises(GuestImageError, match="guest hello64 has no result 'speed'; it has: none"):
        images.find("hello64").read(memory, "speed")


def test_expectations_say_what_is_wrong() -> None:
    expect = images.find("hello64").expect
    line = b"Hello from 64-bit long mode\n"
    assert expect.problems(0, line) == []
    assert expect.problems(0, line.replace(b"\n", b"\r\n")) == []
    assert expect.problems(126, line) == ["the exit code is 126, expected 0"]
    (said,) = expect.problems(0, b"\xff")
    assert said.startswith("it printed '\ufffd', expected 'Hello")
    (said,) = images.find("compute").expect.problems(0, b"compute: nothing")
    assert "has nothing that matches '^compute: 1000000 turns" in said


def test_the_boot_sector_is_one() -> None:
    data = pathlib.Path(images.find("bootsect16").path).read_bytes()
    assert len(data) == 512
    assert data[510:] == b"\x55\xaa"


@pytest.mark.parametrize(("name", "bits"), [("hello16", 16), ("hello32", 32), ("hello64", 64)])
def test_hello_prints_its_first_byte_within_ten_instructions(name: str, bits: int) -> None:
    guest = images.find(name)
    if guest.format == "flat":
        code = pathlib.Path(guest.path).read_bytes()
    else:
        code = next(data[guest.entry - at :] for at, data in sections(name) if at <= guest.entry)
    first = [i.mnemonic for i in disassemble(code[:40], guest.entry, bits)][:10]
    assert "out" in first, first


@pytest.mark.parametrize("name", ELF64)
def test_c_code_uses_only_what_every_host_can_run(name: str) -> None:
    """Ring-0 code may be emulated: no FPU, vector or newer integer instructions, no INT n."""
    refused = {"popcnt", "crc32", "andn", "shlx", "sarx", "shrx", "rorx", "mulx", "pdep", "pext"}
    refused |= {"movbe", "int", "rdtscp", "xgetbv", "syscall", "cmpxchg16b", "lzcnt", "tzcnt"}
    checked = 0
    for function, address, code in functions(name):
        for insn in disassemble(code, address, 64):
            text = str(insn)
            assert insn.mnemonic not in refused, f"{function}: {text}"
            assert "mm" not in insn.operands, f"{function}: {text}"
            assert insn.mnemonic[0] != "f", f"{function}: {text}"
            if insn.mnemonic == "int3":
                assert function == "user_breakpoint", f"{function}: {text}"
            checked += 1
    assert checked > 20 or name == "hello64"


@pytest.mark.parametrize("name", ELF64)
def test_64_bit_guests_carry_a_pvh_note(name: str) -> None:
    """So that other VMMs can start them: a 32-bit entry inside the code."""
    from elftools.elf.elffile import ELFFile

    with open(images.find(name).path, "rb") as file:
        elf = ELFFile(file)
        notes = [n for s in elf.iter_segments("PT_NOTE") for n in s.iter_notes()]
    (note,) = notes
    assert (note["n_name"], note["n_descsz"]) == ("Xen", 4)
    entry = int.from_bytes(note["n_descdata"], "little")
    assert any(at <= entry < at + len(data) for at, data in sections(name))
