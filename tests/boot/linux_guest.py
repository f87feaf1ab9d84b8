"""Boots a Linux guest with a script for its init, and keeps what its console says."""

from __future__ import annotations

import pathlib
import re
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from linux import assets, initramfs

from pykvm import Machine
from pykvm.lab.silence import SilenceReport, SilenceWatcher

# No kernel work that costs emulated instructions for nothing, and no SSE in glibc's string
# functions: 32-bit user code is emulated too there. vdso32=0: system calls are `int 0x80`.
FRUGAL = (
    "vdso32=0 rodata=off tsc=reliable "
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-SSE2,-SSSE3,-SSE4_1,-SSE4_2,-AVX,-AVX2"
)
CONSOLE = "console=ttyS0 panic=-1"
QUIET = 45.0
"""Seconds without output after which it is looked at what the vCPUs do."""


@cache
def files() -> assets.Assets:
    """The kernels and initramfs images; `make linux` makes them."""
    return assets.load()


def initrd(bits: int, script: str | None) -> bytes:
    """The initramfs, with a script for its init to run instead of a shell."""
    data = files()[f"initramfs{bits}"].read_bytes()
    return data if script is None else data + initramfs.script(script)


class Boot:
    """One guest's life: `text` of its console, `result` of the run, `trouble()` for a failed test.

    - `extra`: more archives for the initramfs; None: there is none, the kernel finds its root.
    - `prepare(machine)` puts more on it.
    - `on`: what to do, in a thread of its own, when a text shows up on the console.
    """

    def __init__(
        self,
        kernel: pathlib.Path,
        *,
        script: str,
        bits: int,
        append: str = "",
        timeout: float,
        disk: pathlib.Path | None = None,
        load: dict[str, Any] | None = None,
        extra: bytes | None = b"",
        prepare: Callable[[Machine], object] | None = None,
        on: dict[str, Callable[[], object]] | None = None,
        **machine: Any,
    ) -> None:
        self._output = bytearray()
        self._started = time.monotonic()
        self._arrived: list[tuple[int, float]] = []
        self._on = dict(on or {})
        self._threads: list[threading.Thread] = []
        self._quiet: list[SilenceReport] = []
        with Machine(serial=self._serial, **machine) as m:
            if disk is not None:
                m.add_disk(disk)
            if prepare is not None:
                prepare(m)
            m.load(
                kernel,
                cmdline=f"{CONSOLE} {append}",
                initrd=None if extra is None else initrd(bits, script) + extra,
                **(load or {}),
            )
            with SilenceWatcher(m, self._quiet.append, after=QUIET, idle=True):
                self.result = m.run(timeout=timeout)
            for thread in self._threads:
                thread.join(30)
            self.assisted = dict(m.assist.counts) if m.assist is not None else {}

    def _serial(self, data: bytes) -> None:
        self._output += data
        self._arrived.append((len(self._output), time.monotonic() - self._started))
        for text in [text for text in self._on if text.encode() in self._output]:
            thread = threading.Thread(target=self._on.pop(text), name=f"on {text}")
            self._threads.append(thread)
            thread.start()

    @property
    def text(self) -> str:
        """Everything printed so far."""
        return self._output.decode(errors="replace").replace("\r\n", "\n")

    def trouble(self) -> str:
        """How it ended, what it did whenever it was quiet, and the console's end."""
        quiet = [report.text() for report in self._quiet]
        return "\n".join([repr(self.result), *quiet, "the console ends with:", self.text[-2000:]])

    def when(self, pattern: str) -> float | None:
        """Seconds from the start to the end of the first match."""
        match = re.search(pattern.encode(), self._output)
        if match is None:
            return None
        return next(at for length, at in self._arrived if length >= match.end())

    def section(self, name: str) -> str:
        """What the script printed between `BEGIN name` and `END name`."""
        match = re.search(rf"^BEGIN {name}\n(.*?)^END {name}$", self.text, re.S | re.M)
        assert match, f"no section {name}; the console ends with:\n{self.text[-2000:]}"
        return match.group(1)


def section(name: str, command: str) -> str:
    """A line of script that prints a section."""
    return f"echo BEGIN {name}; {command}; echo END {name}\n"
