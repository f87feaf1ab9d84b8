"""Builds ring-3 targets from C with the host's compiler, instrumented for coverage."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterable

from pykvm.fuzz.errors import FuzzError

RUNTIME = pathlib.Path(__file__).with_name("runtime")
_COMMON = (
    *("-std=gnu11", "-g", "-ffreestanding", "-fno-stack-protector", "-fcf-protection=none"),
    *("-fno-omit-frame-pointer", "-fno-pic", "-no-pie", "-mno-red-zone", "-fno-builtin"),
)
_COVERAGE = ("-fsanitize-coverage=trace-pc,trace-cmp",)
_LINK = ("-static", "-nostdlib", "-no-pie", "-Wl,--build-id=none,-z,noexecstack,-e,0")


def build(
    sources: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    flags: Iterable[str] = ("-O1",),
    coverage: bool = True,
    compiler: str = "gcc",
) -> pathlib.Path:
    """Compiles and links `sources` with the runtime (`pykvm_fuzz.h`). Raises `FuzzError`."""
    found = _find(compiler)
    output = pathlib.Path(output)
    runtime = output.with_suffix(".runtime.o")
    objects = [runtime]
    common = [found, *_COMMON, f"-I{RUNTIME}"]
    try:
        _run([*common, "-O2", "-fno-tree-loop-distribute-patterns", "-c",
              RUNTIME / "pykvm_fuzz.c", "-o", runtime])  # fmt: skip
        for number, source in enumerate(sources):
            objects.append(output.with_suffix(f".{number}.o"))
            extra = _COVERAGE if coverage else ()
            _run([*common, *flags, *extra, "-c", source, "-o", objects[-1]])
        _run([found, *_LINK, *objects, "-o", output])
    finally:
        for file in objects:
            file.unlink(missing_ok=True)
    return output


def preprocessed(source: str | os.PathLike[str], *, compiler: str = "gcc") -> bytes:
    """A C file with all that it includes: what a build of it depends on. Raises `FuzzError`."""
    found = _find(compiler)
    return _run([found, *_COMMON, f"-I{RUNTIME}", "-E", source])


def _find(compiler: str) -> str:
    found = shutil.which(compiler)
    if found is None:
        raise FuzzError(f"there is no {compiler}; install the package gcc")
    return found


def _run(command: list[str | os.PathLike[str]]) -> bytes:
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        text = done.stderr.decode(errors="replace").strip()
        raise FuzzError(f"the compiler failed: {text[-2000:]}")
    return done.stdout
