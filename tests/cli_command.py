"""Runs the real command, and makes images for it out of a few bytes."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

COMMAND = [sys.executable, "-m", "pykvm"]
ENVIRONMENT = {**os.environ, "NO_COLOR": "1", "COLUMNS": "100"}
ENVIRONMENT.pop("PYKVM_TRACEBACK", None)


def pykvm(
    *arguments: str | os.PathLike[str],
    input: str = "",
    timeout: float = 30,
    cwd: os.PathLike[str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`pykvm ARGUMENTS` with text on stdin (nothing unless given)."""
    return subprocess.run(
        [*COMMAND, *map(os.fspath, arguments)],
        input=input, capture_output=True, text=True, timeout=timeout, check=False,
        env=ENVIRONMENT, cwd=cwd,
    )  # fmt: skip


def say(text: str) -> bytes:
    """Real-mode code that writes `text` to COM1."""
    out = b"\xba\xf8\x03"  # mov dx, 0x3f8
    for byte in text.encode():
        out += bytes((0xB0, byte, 0xEE))  # mov al, byte; out dx, al
    return out


HALT = b"\xfa\xf4"  # cli; hlt
SPIN = b"\xeb\xfe"  # jmp .


def leave(value: int) -> bytes:
    """Real-mode code that writes `value` to the debug-exit port."""
    return bytes((0xB0, value, 0xE6, 0xF4))  # mov al, value; out 0xf4, al


def image(folder: pathlib.Path, code: bytes, name: str = "guest.bin") -> pathlib.Path:
    """A flat image."""
    path = folder / name
    path.write_bytes(code)
    return path


def link(
    folder: pathlib.Path, source: str, *, bits: int = 64, text: int = 0x200000
) -> pathlib.Path:
    """An ELF file of some assembly (Intel syntax), with its text segment at `text`."""
    (folder / "guest.S").write_text(f".intel_syntax noprefix\n{source}\n")
    emulation = {32: "elf_i386", 64: "elf_x86_64"}[bits]
    subprocess.run(
        ["as", f"--{bits}", "-o", folder / "guest.o", folder / "guest.S"], check=True, timeout=30
    )
    path = folder / "guest.elf"
    subprocess.run(
        ["ld", "-m", emulation, "-static", "-nostdlib", f"-Ttext={text:#x}", "-z",
         "max-page-size=4096", "-o", path, folder / "guest.o"],
        check=True, timeout=30,
    )  # fmt: skip
    return path


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error: nothing on stdout, status 125, one line on stderr."""
    assert done.returncode == 125, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("pykvm: ")
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    return done.stderr.removeprefix("pykvm: ").rstrip("\n")
