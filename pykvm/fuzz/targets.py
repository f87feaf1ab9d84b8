"""From what a user names to a target: an ELF file, or C source that is built first."""

from __future__ import annotations

import hashlib
import os
import pathlib

from pykvm.fuzz.build import RUNTIME, build, preprocessed
from pykvm.fuzz.errors import FuzzError


def find_target(name: str | os.PathLike[str]) -> pathlib.Path:
    """The ELF file for a path to one, or to a C file with `LLVMFuzzerTestOneInput`.

    What is built from C is kept in the cache folder, and built again when it or what it includes
    changes.
    Raises `FuzzError`.
    """
    path = pathlib.Path(name)
    if path.suffix != ".c":
        if not path.is_file():
            raise FuzzError(f"{path}: there is no such file; name an ELF file or a C file")
        return path
    if not path.is_file():
        raise FuzzError(f"{path}: No such file or directory")
    digest = hashlib.sha256(preprocessed(path.resolve()))
    for file in sorted(RUNTIME.iterdir()):
        digest.update(file.read_bytes())
    folder = _cache() / "targets" / digest.hexdigest()[:24]
    made = folder / f"{path.stem}.elf"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"{path.stem}.{os.getpid()}.elf"
        build([path.resolve()], new)
        new.rename(made)
    return made


def _cache() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(base) / "pykvm"
