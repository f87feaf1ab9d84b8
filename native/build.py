"""Builds `pykvm._native`, the C layer, with cffi in API mode.

`python native/build.py` compiles in a scratch folder and renames the result into `pykvm/`, so a
process that has the old extension mapped is not disturbed. setuptools imports `ffibuilder`.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import shutil
import sys
import tempfile

from cffi import FFI

ROOT = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
import headers  # noqa: E402  (native/headers.py: tables made from the kernel's own headers)


def make_builder() -> FFI:
    builder = FFI()
    for cdef in sorted((ROOT / "cdef").glob("*.h")):
        builder.cdef(cdef.read_text())
    generated = ROOT.parent / "build" / "native"
    generated.mkdir(parents=True, exist_ok=True)
    headers.write_tables(generated / "kvm_tables.h")
    builder.set_source(
        "pykvm._native",
        '#include "pykvm_native.h"\n#include "kvm_tables.h"\n',
        sources=[os.path.relpath(p, ROOT.parent) for p in sorted((ROOT / "src").glob("*.c"))],
        include_dirs=[str(ROOT / "include"), str(generated)],
        depends=[str(p) for p in sorted((ROOT / "include").glob("*.h"))],
        extra_compile_args=[
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-Wno-missing-field-initializers",
            "-fvisibility=hidden",
        ],
        libraries=["pthread"],
    )
    return builder


ffibuilder = make_builder()


def main() -> None:
    root = ROOT.parent
    os.chdir(root)
    with open(root / "build" / "native" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copytree(ROOT / "src", pathlib.Path(scratch, "native", "src"))
            built = pathlib.Path(ffibuilder.compile(tmpdir=scratch, verbose=False))
            target = root / "pykvm" / "_native.abi3.so"
            partial = target.with_suffix(".partial")
            shutil.copy2(built, partial)
            os.replace(partial, target)
    print(target)


if __name__ == "__main__":
    main()
