"""Guest images built from `guests/`, shipped as package data, and found by name.

    from pykvm import images

    guest = images.find("compute")
    machine.load(guest.path, mode=guest.mode, …)
    guest.patch(machine.memory, turns=10_000)

`manifest.json` beside the images says what each one is; `guests/build.py` writes it. It is read
when it is first asked for.
"""

from __future__ import annotations

import os

from pykvm.errors import PykvmError

TYPE_CHECKING = False  # `typing` takes longer to import than everything here to run
if TYPE_CHECKING:
    from pykvm.typed import Any, Protocol

    class GuestRam(Protocol):
        """The part of `pykvm.memory.GuestMemory` that is used here."""

        def read(self, gpa: int, n: int) -> bytes: ...
        def write(self, gpa: int, data: bytes) -> None: ...


__all__ = ["Area", "Expectation", "GuestImage", "GuestImageError", "find", "names"]

DIRECTORY = os.path.dirname(os.path.abspath(__file__))


class GuestImageError(PykvmError):
    """A guest or a parameter that does not exist, or images that were not built."""


class Area:
    """A named piece of a guest's memory that the host may set (a parameter) or look at (a result).

    `address` is guest-physical, `size` in bytes, `default` what an integer holds in the image
    (None for buffers).
    """

    __slots__ = ("address", "default", "description", "name", "size")

    def __init__(self, name: str, entry: dict[str, Any]) -> None:
        self.name = name
        self.address: int = entry["address"]
        self.size: int = entry["size"]
        self.default: int | None = entry.get("default")
        self.description: str = entry["description"]

    def __repr__(self) -> str:
        return f"Area({self.name!r}, address={self.address:#x}, size={self.size})"


class Expectation:
    """What a run of a guest ends with when everything works.

    `serial` is the whole output, or None; `matches` are regular expressions that the output has
    to contain. `input` is what to type on the serial port, `timeout` (seconds) is when to stop a
    guest that does not end by itself.
    """

    __slots__ = ("exit_code", "input", "matches", "serial", "timeout")

    def __init__(self, entry: dict[str, Any]) -> None:
        self.exit_code: int = entry["exit_code"]
        self.serial: str | None = entry.get("serial")
        self.matches: tuple[str, ...] = tuple(entry.get("matches", ()))
        self.input: str = entry.get("input", "")
        self.timeout: float | None = entry.get("timeout")

    def problems(self, exit_code: int, serial: bytes) -> list[str]:
        """What is wrong with a run, one sentence each; empty if nothing is."""
        import re

        found = []
        text = serial.decode("utf-8", "replace").replace("\r\n", "\n")
        if exit_code != self.exit_code:
            found.append(f"the exit code is {exit_code}, expected {self.exit_code}")
        if self.serial is not None and text != self.serial:
            found.append(f"it printed {text!r}, expected {self.serial!r}")
        found += [
            f"its output {text!r} has nothing that matches {pattern!r}"
            for pattern in self.matches
            if not re.search(pattern, text)
        ]
        return found


class GuestImage:
    """One guest: where its image is, how to start it, what comes out.

    `path` is the image file; `format` flat, elf or multiboot; `mode` real, protected or long;
    `load` and `entry` are guest-physical addresses; `cpus` and `irqchip` ("kernel" or "none") are
    the machine it needs. `params` and `results` are areas by name, `symbols` the addresses of a
    flat image's symbols (an ELF file carries its own), `cases` the names of its test cases.
    """

    __slots__ = (
        "cases",
        "cpus",
        "description",
        "entry",
        "expect",
        "format",
        "irqchip",
        "load",
        "mode",
        "name",
        "params",
        "path",
        "results",
        "symbols",
    )

    def __init__(self, name: str, entry: dict[str, Any], directory: str) -> None:
        self.name = name
        self.path = os.path.join(directory, entry["file"])
        self.format: str = entry["format"]
        self.mode: str = entry["mode"]
        self.load: int = entry["load"]
        self.entry: int = entry["entry"]
        self.cpus: int = entry["cpus"]
        self.irqchip: str = entry["irqchip"]
        self.description: str = entry["description"]
        self.expect = Expectation(entry["expect"])
        self.params = {n: Area(n, e) for n, e in entry.get("params", {}).items()}
        self.results = {n: Area(n, e) for n, e in entry.get("results", {}).items()}
        self.symbols: dict[str, int] = entry.get("symbols", {})
        self.cases: tuple[str, ...] = tuple(entry.get("cases", ()))

    def patch(self, memory: GuestRam, /, **values: int | bytes) -> None:
        """Set parameters in the memory of a machine that has loaded this image and not yet run.

        An int is stored little-endian in the parameter's size, bytes from its start. Raises
        `GuestImageError` for a parameter that the guest does not have, or a value that does not
        fit, and then sets nothing.
        """
        writes = []
        for name, value in values.items():
            area = self._area(name, self.params, "parameter")
            if isinstance(value, int):
                if not 0 <= value < 1 << 8 * area.size:
                    raise GuestImageError(
                        f"{value} does not fit parameter {name} of guest {self.name}: "
                        f"it is an unsigned {area.size * 8}-bit number"
                    )
                value = value.to_bytes(area.size, "little")
            if len(value) > area.size:
                raise GuestImageError(
                    f"{len(value)} bytes do not fit parameter {name} of guest {self.name}: "
                    f"it has {area.size}"
                )
            writes.append((area.address, value))
        for address, data in writes:
            memory.write(address, data)

    def read(self, memory: GuestRam, name: str) -> bytes:
        """The bytes of a result or parameter. Raises `GuestImageError` if there is none."""
        area = self._area(name, {**self.params, **self.results}, "result")
        return memory.read(area.address, area.size)

    def _area(self, name: str, areas: dict[str, Area], what: str) -> Area:
        if name not in areas:
            known = ", ".join(sorted(areas)) or "none"
            raise GuestImageError(f"guest {self.name} has no {what} {name!r}; it has: {known}")
        return areas[name]

    def __repr__(self) -> str:
        return f"GuestImage({self.name!r}, {self.format}, {self.mode}, entry={self.entry:#x})"


_manifests: dict[str, dict[str, Any]] = {}


def _manifest(directory: str) -> dict[str, Any]:
    if directory not in _manifests:
        if directory == DIRECTORY:
            try:
                from pykvm.images.manifest import GUESTS
            except ImportError:
                pass  # not built: the file's absence is explained below
            else:
                _manifests[directory] = GUESTS
                return GUESTS
        import json

        path = os.path.join(directory, "manifest.json")
        try:
            with open(path, "rb") as file:
                _manifests[directory] = json.load(file)
        except FileNotFoundError:
            raise GuestImageError(
                f"the guest images are not built ({path} is missing); run: python guests/build.py"
            ) from None
        except ValueError as error:
            raise GuestImageError(
                f"{path} is damaged ({error}); run: python guests/build.py --force"
            ) from None
    return _manifests[directory]


def names(directory: str = DIRECTORY) -> list[str]:
    """The names of all guests, sorted. Raises `GuestImageError` if the images are not built."""
    return sorted(_manifest(directory))


def find(name: str, directory: str = DIRECTORY) -> GuestImage:
    """The guest called `name`. Raises `GuestImageError` if there is none."""
    manifest = _manifest(directory)
    if name not in manifest:
        import difflib

        close = difflib.get_close_matches(name, manifest, 1)
        hint = f"did you mean {close[0]}?" if close else "`pykvm guests` lists them"
        raise GuestImageError(f"there is no guest called {name!r}; {hint}")
    return GuestImage(name, manifest[name], directory)
