"""Programs to fuzz: what of an ELF file is used, and what is refused."""

from __future__ import annotations

import pathlib

import fuzz_targets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykvm.fuzz import FuzzError, Program
from pykvm.fuzz.space import Space


def test_symbols_and_places() -> None:
    program = Program(fuzz_targets.parser())
    start = program.symbol("bug_copy")
    assert program.where(start) == "bug_copy"
    assert program.where(start + 4) == "bug_copy+0x4"
    assert program.where(0x10) == ""
    assert any(s.executable and not s.writable for s in program.segments)
    with pytest.raises(FuzzError, match="no symbol 'nope'"):
        program.symbol("nope")


def test_what_is_no_program(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FuzzError, match="No such file"):
        Program(tmp_path / "none")
    with pytest.raises(FuzzError, match="not a usable ELF file"):
        Program(b"#!/bin/sh\n")
    with pytest.raises(FuzzError, match="dynamic linker"):
        Program("/bin/true")
    data = bytearray(fuzz_targets.parser().read_bytes())
    data[18] = 3  # e_machine: i386
    with pytest.raises(FuzzError, match="64-bit x86"):
        Program(bytes(data))
    data[18], data[16] = 62, 1
    with pytest.raises(FuzzError, match="not linked"):
        Program(bytes(data))


@settings(deadline=None)
@given(st.data())
def test_changed_files_are_refused_or_laid_out(data: st.DataObject) -> None:
    image = bytearray(fuzz_targets.parser().read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(image) - 1)))
        image[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del image[data.draw(st.integers(0, len(image))) :]
    try:
        space = Space()
        space.add_segments(Program(bytes(image)).segments)
    except FuzzError:
        pass
