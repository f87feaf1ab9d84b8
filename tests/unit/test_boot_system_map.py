"""Symbol files: System.map, nm, kallsyms, ELF."""

from __future__ import annotations

import gzip
import pathlib

import pytest
from boot_images import Elf, Seg, Sym

from pykvm.boot import ImageError
from pykvm.boot.system_map import parse_map, read_symbols

MAP = b"""\
0000000000000000 D __per_cpu_start
0000000000000c00 A a_constant
ffffffff81000000 T _text
ffffffff81000000 t local_alias
ffffffff81000040 T startup_64
ffffffff82000000 r __func__.1
ffffffff82000010 T name with blanks\t[module]
"""


def test_a_system_map() -> None:
    table = read_symbols(MAP)
    assert table.names["startup_64"] == 0xFFFFFFFF81000040
    assert table.names["__func__.1"] == 0xFFFFFFFF82000000
    assert table.at(0xFFFFFFFF81000052) == "startup_64+0x12"
    assert table.at(0xFFFFFFFF81000000) in ("_text", "local_alias")
    assert table.at(0xFFFFFFFF83000000) is None
    assert table.at(0xC00) != "a_constant", "a constant is no address"
    assert table.names["a_constant"] == 0xC00


def test_output_of_nm_and_strange_lines() -> None:
    data = b"\n                 U printf\n00001000 T main\r\nfile.o:\nzz T x\n1 T\n\x00\xff T y\n"
    data += b"2000 T \xff\x1b[31mred\n" + b"3000 T " + b"x" * 5000 + b"\n10000000000000000 T big\n"
    symbols, remark = parse_map(data)
    assert [s.address for s in symbols] == [0x1000, 0x2000]
    assert symbols[0].name == "main"
    assert symbols[1].name.isprintable()
    assert remark == ""


def test_other_files(tmp_path: pathlib.Path) -> None:
    elf = Elf([Seg(0x100000)], symbols=[Sym("here", 0x100000)]).build()
    assert read_symbols(elf).names == {"here": 0x100000}
    path = tmp_path / "vmlinux.gz"
    path.write_bytes(gzip.compress(elf))
    assert read_symbols(path).names == {"here": 0x100000}
    assert "startup_64" in read_symbols(gzip.compress(MAP)).names


def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pykvm.boot.system_map.MAX_SYMBOLS", 3)
    table = read_symbols(MAP)
    assert len(table.names) == 3
    assert "first 3 symbols" in table.problem
    monkeypatch.setattr("pykvm.boot.system_map.MAX_BYTES", 10)
    with pytest.raises(ImageError, match="too many"):
        read_symbols(MAP)
    with pytest.raises(ImageError, match="unpacks to more"):
        read_symbols(gzip.compress(MAP))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xf4\xf4", "no line of it"),
        (b"", "empty"),
        (Elf([Seg(0x100000)]).build(), "no symbols"),
        (b"\x7fELF", "too few"),
    ],
)
def test_refused(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_symbols(data)
    with pytest.raises(ImageError, match="cannot be opened"):
        read_symbols("/nonexistent")
