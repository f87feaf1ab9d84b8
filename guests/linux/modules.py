"""The modules of a Debian kernel package in an order in which they can be loaded."""

from __future__ import annotations

import lzma
import pathlib
import re

SIGNATURE = b"~Module signature appended~\n"


class ModuleTree:
    """The modules under `tree`, an unpacked linux-image package."""

    def __init__(self, tree: pathlib.Path) -> None:
        self._paths = {
            re.sub(r"\.ko(\.xz)?$", "", path.name).replace("-", "_"): path
            for path in (tree / "lib/modules").rglob("*.ko*")
        }

    def in_order(self, wanted: list[str]) -> dict[str, bytes]:
        """Name → contents of the `wanted` modules and of all that they depend on, in load order.
        What is not there as a module is taken to be built in."""
        found: dict[str, bytes] = {}
        for name in wanted:
            self._visit(name.replace("-", "_"), found)
        return found

    def _visit(self, name: str, found: dict[str, bytes]) -> None:
        if name in found or name not in self._paths:
            return
        data = _contents(self._paths[name])
        match = re.search(rb"(?:^|\0)depends=([^\0]*)\0", data)
        for dependency in match.group(1).decode().split(",") if match else ():
            self._visit(dependency.replace("-", "_"), found)
        found[name] = data


def _contents(path: pathlib.Path) -> bytes:
    """A module, uncompressed and without its signature: checking it costs a slow CPU seconds."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        data = lzma.decompress(data)
    if data.endswith(SIGNATURE):
        # struct module_signature (linux/module_signature.h): 12 bytes, the signature's length last.
        end = len(data) - len(SIGNATURE)
        length = int.from_bytes(data[end - 4 : end], "big")
        data = data[: end - 12 - length]
    return data
