"""Builds the C peers and the guests of the benchmarks into build/benchmarks/, and knows where they
are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .images import loop_image
from .model import BenchError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "benchmarks"
BUILD = ROOT / "build" / "benchmarks"

PROGRAMS: dict[str, tuple[str, ...]] = {
    "exit_loop": ("exit_loop.c", "rawkvm.c"),
    "immediate_exit": ("immediate_exit.c", "rawkvm.c"),
    "create": ("create.c", "rawkvm.c"),
    "single_step": ("single_step.c", "rawkvm.c"),
    "cvmm": ("cvmm.c", "rawkvm.c"),
    "measure": ("measure.c",),
}
C_FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")


def built(name: str) -> str:
    """Path of a built program, library or guest by its file name."""
    return str(BUILD / name)


def _tool(*names: str, package: str) -> str:
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    raise BenchError(f"{names[0]} is not installed: apt-get install {package}")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} failed: {done.stderr.strip()}")


def _stale(target: Path, sources: list[Path]) -> bool:
    if not target.exists():
        return True
    return any(source.stat().st_mtime > target.stat().st_mtime for source in sources)


def _peer_sources(names: tuple[str, ...]) -> list[Path]:
    return [SOURCES / "peers" / name for name in names]


def compile_c(target: Path, sources: list[Path], *flags: str) -> None:
    """Compiles C, if the target is older than what it is made from."""
    headers = list((SOURCES / "peers").glob("*.h"))
    if _stale(target, sources + headers):
        compiler = os.environ.get("CC") or _tool("gcc", "cc", "clang", package="gcc")
        _run([compiler, *C_FLAGS, *flags, "-o", str(target), *map(str, sources)])


def _assemble_hello(target: Path) -> None:
    source, script = SOURCES / "guests" / "hello_any.S", SOURCES / "guests" / "hello_any.ld"
    if not _stale(target, [source, script]):
        return
    assembled = target.with_suffix(".o")
    _run([_tool("as", package="binutils"), "--64", "-o", str(assembled), str(source)])
    linker = [_tool("ld", package="binutils"), "-m", "elf_x86_64", "-static", "--build-id=none"]
    _run([*linker, "-T", str(script), "-o", str(target), str(assembled)])


def build_all() -> None:
    """Builds what is missing or older than its source.

    Raises BenchError, naming the Debian package that is missing.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    for name, sources in PROGRAMS.items():
        compile_c(BUILD / name, _peer_sources(sources))
    compile_c(BUILD / "stub_run.so", _peer_sources(("stub_run.c",)), "-shared", "-fPIC")
    _assemble_hello(BUILD / "hello_any.elf")
    _run([sys.executable, str(ROOT / "guests" / "build.py")])
    # As after an installation: byte code lies ready, whatever PYTHONDONTWRITEBYTECODE says.
    _run([sys.executable, "-m", "compileall", "-q", str(ROOT / "pykvm")])


def loop_file(kind: str, exits: int) -> str:
    """Writes the guest loop `kind` with that many exits, and returns its path.

    Both sides load the same bytes.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"{kind}-{exits}.bin"
    path.write_bytes(loop_image(kind, exits))
    return str(path)
