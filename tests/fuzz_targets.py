"""Ring-3 targets for tests, built once a session."""

from __future__ import annotations

import pathlib
import struct
from functools import cache
from tempfile import mkdtemp

from pykvm.fuzz.build import build

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARSER = ROOT / "guests" / "fuzz-parser" / "parser.c"


@cache
def _folder() -> pathlib.Path:
    return pathlib.Path(mkdtemp(prefix="pykvm-targets-"))


@cache
def parser() -> pathlib.Path:
    """guests/fuzz-parser."""
    return build([PARSER], _folder() / "parser.elf")


def program(name: str, source: str, *, coverage: bool = True) -> pathlib.Path:
    """A target from C text; it includes pykvm_fuzz.h itself."""
    file = _folder() / f"{name}.c"
    file.write_text(source)
    return build([file], _folder() / f"{name}.elf", coverage=coverage)


def record(kind: int, data: bytes = b"") -> bytes:
    """A record of the parser's messages."""
    check = 0
    for byte in data:
        check ^= byte
    return bytes([kind, len(data), *data, check])


_HEAD = b"PK\x01\x00"
NAME, COPY, OPEN, SEEK, COMMIT, CLOSE, CREATE, DELETE, CALL = range(1, 10)
HARMLESS = [
    b"",
    b"PK",
    _HEAD + record(NAME, b"x" * 15) + record(CLOSE),
    _HEAD + record(COPY, b"\x00x") + record(OPEN) + record(SEEK) + record(COMMIT),
    _HEAD + record(CREATE) + record(CALL) + record(CALL),
]
BUGS = {
    "bug_magic": b"PK\x02\x00" + struct.pack("<I", 0x4B564D21),
    "bug_copy": _HEAD + record(COPY, b"\xff\x01"),
    "bug_state": _HEAD + record(OPEN) + record(SEEK) * 2 + record(COMMIT),
    "LLVMFuzzerTestOneInput": _HEAD + record(NAME, b"x" * 16) + record(CLOSE),
    "bug_call": _HEAD + record(CREATE) + record(CALL) + record(DELETE) + record(CALL),
}
"""Inputs that meet each planted bug, by the function where it shows."""
