"""From the shell to the first serial byte, to the end, and in memory.

pykvm, a plain C VMM, and QEMU on the same guest.
"""

from __future__ import annotations

from collections.abc import Callable

from . import qemu
from .images import guest_image
from .model import Case, Comparison, Goal, Sample, Side
from .programs import pykvm_command, spawn
from .toolchain import built

PYKVM = "pykvm run"
CVMM = "plain C VMM"
MICROVM = "QEMU microvm"
PC = "QEMU pc"

HELLO64_SAYS = b"Hello from 64-bit long mode\n"
HELLO_ANY_SAYS = b"Hello from one ELF64 guest in every VMM.\n"

MIB = 1 << 20

HOW = (
    "Each VMM is started by a small C program that takes the time from before fork() to the first"
    " byte on the pipe. 64 MiB of guest RAM each. pykvm and the C VMM enter the ELF64 file in "
    "long mode; QEMU (no default devices, no firmware messages) enters the same file by its PVH "
    "note, and the guest climbs to long mode itself. `QEMU microvm` is the quickest QEMU machine "
    "that boots it, `QEMU pc` the default one, with SeaBIOS. pykvm's byte code is compiled, as an "
    "installation leaves it."
)
MEMORY_HOW = (
    "Memory runs are separate from timed ones. Resident memory is read from /proc/PID/status "
    "every 0.2 ms; guest RAM is a memfd on every side, so the kernel counts it as RssShmem: "
    "`without guest RAM` is the peak of RssAnon + RssFile (which includes pages of shared "
    "libraries), `peak` is ru_maxrss of wait4, with the guest RAM that was touched."
)

Starter = Callable[[], list[str]]
"""Makes the command line when it is run, so that a missing program fails its side only."""


def _side(
    name: str, command: Starter, status: int, says: bytes, *, memory: bool, stop: bool
) -> Side:
    keep = name.replace(" ", "-")

    def measure() -> Sample:
        return spawn(command(), status=status, output=says, memory=memory, keep=keep, stop=stop)

    return Side(name, measure)


def _commands(image: Callable[[], str], *, name: str = "", memfd: bool) -> dict[str, Starter]:
    memory = f"{qemu.MEBIBYTES}M"
    return {
        PYKVM: lambda: [*pykvm_command(), "run", name or image(), "--memory", memory],
        CVMM: lambda: [built("cvmm"), "-m", str(qemu.MEBIBYTES), image()],
        MICROVM: lambda: qemu.command("microvm", image(), memfd=memfd),
        PC: lambda: qemu.command("pc", image(), memfd=memfd),
    }


def _hello64_sides(*, memory: bool) -> tuple[Side, ...]:
    commands = _commands(lambda: str(guest_image("hello64")), name="hello64", memfd=memory)
    sides = []
    for name in (PYKVM, CVMM, MICROVM):
        stays = name == MICROVM
        status = 137 if stays else 0
        sides.append(_side(name, commands[name], status, HELLO64_SAYS, memory=memory, stop=stays))
    return tuple(sides)


def _any_sides() -> tuple[Side, ...]:
    commands = _commands(lambda: built("hello_any.elf"), memfd=False)
    return tuple(
        _side(name, command, 1, HELLO_ANY_SAYS, memory=False, stop=False)
        for name, command in commands.items()
    )


def boot_cases() -> list[Case]:
    """The comparisons with QEMU and the C VMM."""
    return [
        Case(
            name="hello64",
            title="pykvm run hello64: shell to first serial byte",
            about=f"{HOW} hello64 ends by halting, which QEMU does not notice: it is stopped when "
            "the whole line has come.",
            sides=_hello64_sides(memory=False),
            comparisons=(
                Comparison("first byte", "first", "ns", PYKVM, None, "value", (Goal("<=", 150e6),)),
                Comparison(
                    "first byte", "first", "ns", PYKVM, MICROVM, "ratio", (Goal("<=", 1.0),)
                ),
                Comparison("first byte", "first", "ns", PYKVM, CVMM, "added"),
                Comparison("end", "end", "ns", PYKVM, CVMM, "added"),
            ),
        ),
        Case(
            name="hello-end",
            title="One ELF64 guest in every VMM: first serial byte and end",
            about=f"{HOW} This guest waits for the transmitter before each byte and ends by the "
            "debug-exit port.",
            sides=_any_sides(),
            comparisons=(
                Comparison(
                    "first byte", "first", "ns", PYKVM, MICROVM, "ratio", (Goal("<=", 1.0),)
                ),
                Comparison("first byte", "first", "ns", PYKVM, PC, "ratio", (Goal("<=", 1.0),)),
                Comparison("first byte", "first", "ns", PYKVM, CVMM, "added"),
                Comparison("end", "end", "ns", PYKVM, MICROVM, "ratio"),
                Comparison("end", "end", "ns", PYKVM, PC, "ratio"),
                Comparison("end", "end", "ns", PYKVM, CVMM, "added"),
            ),
            most_rounds=7,
        ),
        Case(
            name="memory",
            title="pykvm run hello64: peak memory",
            about=MEMORY_HOW,
            sides=_hello64_sides(memory=True),
            comparisons=(
                Comparison(
                    "without guest RAM",
                    "private",
                    "bytes",
                    PYKVM,
                    None,
                    "value",
                    (Goal("<=", 40.0 * MIB),),
                ),
                Comparison(
                    "without guest RAM",
                    "private",
                    "bytes",
                    PYKVM,
                    MICROVM,
                    "ratio",
                    (Goal("<", 1.0),),
                ),
                Comparison("without guest RAM", "private", "bytes", PYKVM, CVMM, "added"),
                Comparison("peak", "maxrss", "bytes", PYKVM, MICROVM, "ratio"),
                Comparison("guest RAM touched", "shared", "bytes", PYKVM, MICROVM, "ratio"),
            ),
            rounds=7,
        ),
    ]
