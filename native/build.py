"""Describes `pykvm._native`, the C layer, to cffi (API mode); setup.py builds `ffibuilder`.

After a change in native/, `make native` builds it anew.
"""

from __future__ import annotations

import os
import pathlib
import sys

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
