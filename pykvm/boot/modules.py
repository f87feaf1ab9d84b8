"""Boot modules: files that a loader puts into memory beside the kernel."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pykvm.boot.errors import ImageError
from pykvm.boot.source import ImageInput, Source, open_source
from pykvm.boot.strings import check_string
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.boot.environment import BootEnvironment

MAX_MODULES = 1024

Module = ImageInput | tuple[ImageInput, str]
"""A boot module: `"file arguments"` (the whole text becomes the module's string, as QEMU does it),
a path object or bytes (no string but the path), or (file or bytes, string)."""

OpenModule = tuple[Source, str]
"""The bytes of a module, and the string to pass with it."""


def open_modules(modules: Sequence[Module]) -> list[OpenModule]:
    """Open each module; returns (bytes, string to pass) pairs.

    In `"file arguments"` the file ends at the first space, unless a file has the whole text as its
    name. Raises `ImageError` if one cannot be read.
    """
    if isinstance(modules, (str, bytes)) or not isinstance(modules, Sequence):
        raise ImageError(
            f"the modules are {type(modules).__name__}, not a list of modules: put them into a list"
        )
    if len(modules) > MAX_MODULES:
        raise ImageError(f"{len(modules)} modules are more than {MAX_MODULES}: give fewer")
    opened = []
    for module in modules:
        what: Any = module
        text: Any = ""
        if isinstance(module, tuple):
            if len(module) != 2:
                raise ImageError(
                    f"a module is (file or bytes, string), not {len(module)} values: give two"
                )
            what, text = module
        elif isinstance(module, str):
            text = module
            what = module if os.path.exists(module) else module.split(" ", 1)[0]
        elif isinstance(module, os.PathLike):
            text = os.fspath(module)
        check_string("module's string", text)
        source = what if isinstance(what, Source) else open_source(what, "module", allow_empty=True)
        opened.append((source, text))
    return opened


def open_initrd(environment: BootEnvironment) -> Source | None:
    """The initrd that the environment names, None without one. Raises `ImageError`."""
    given = environment.initrd
    if given is None or isinstance(given, Source):
        return given if given is not None and len(given.data) else None
    return open_source(given, "initrd")


def open_all(environment: BootEnvironment) -> list[OpenModule]:
    """The initrd, if there is one, and the modules, for kernels that know modules only."""
    initrd = open_initrd(environment)
    first = [] if initrd is None else [(initrd, "")]
    return first + open_modules(environment.modules)
