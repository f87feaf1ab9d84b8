"""What the fuzzing tests of the loaders share: guarded memory, the check of one case, and the count
of the cases that were really run."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from pykvm.arch.e820 import build_e820
from pykvm.boot import ImageError, LoadedImage, load_image
from pykvm.boot.environment import VGA_TEXT, BootEnvironment, FramebufferInfo

K, M, G = 1 << 10, 1 << 20, 1 << 30
HIGH = 0xFFFFFFFF80000000

CASES: Counter[str] = Counter()
"""Cases run in this process, by the name of the test."""

PROMISED: dict[str, int] = {}
"""How many each fuzzing test means to run."""

# Values at the edges of what a size, an address or a count may be.
EDGES = [
    *(0, 1, 2, 3, 7, 8, 0x1F, 0x20, 0x38, 0x40, 0x7F, 0xFF, 0x7FF, 0x1000, 0x7FFF, 0x8000),
    *(0xFFFE, 0xFFFF, 0x10000, 0x9F000, 0xFFFFF, M, M + 1, 2 * M, 64 * M - 1, 64 * M),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFF000, 0xFFFFFFFF, 4 * G, 4 * G - 4096, 1 << 46),
    *((1 << 47) - 1, 1 << 47, 1 << 63, HIGH, (1 << 64) - (1 << 47), (1 << 64) - 4096),
    *((1 << 64) - 1, (1 << 64) - 0x80),
]


class StrictMemory:
    """Guest memory that remembers what was touched, and fails on anything outside."""

    def __init__(self, ram: list[tuple[int, int]]) -> None:
        self.ram = ram
        self.touched: list[tuple[int, int]] = []

    def contains(self, gpa: int, n: int, /) -> bool:
        return any(start <= gpa and gpa + n <= start + size for start, size in self.ram)

    def write(self, gpa: int, data: bytes | memoryview, /) -> None:
        self._touch(gpa, len(data))

    def fill(self, gpa: int, n: int, byte: int, /) -> None:
        assert byte == 0
        self._touch(gpa, n)

    def _touch(self, gpa: int, n: int) -> None:
        assert n >= 0
        assert self.contains(gpa, n), f"write to {gpa:#x}+{n:#x} of {self.ram}"
        self.touched.append((gpa, gpa + n))


def check(
    data: bytes, memory_size: int, *, count: str, ram: Any = None, **kwargs: Any
) -> LoadedImage | None:
    """Load and place; the image, or None if it was refused properly. `count`: the test's name."""
    CASES[count] += 1
    try:
        image = load_image(data, memory_size=memory_size, ram=ram, **kwargs)
    except ImageError as error:
        text = str(error)
        assert text.isprintable()
        assert " -0x" not in text
        assert len(text) < 600
        assert ": " in text
        return None
    memory = StrictMemory([(0, memory_size)] if ram is None else ram)
    image.place(memory)
    pieces = sorted(p for p in memory.touched if p[0] < p[1])
    for (_, end), (start, _) in pairwise(pieces):
        assert end <= start, "two pieces overlap"
    assert image.state.mode == image.mode
    assert image.state.linear_rip == image.entry
    assert sum(len(d) for _, d in image.state.memory) <= 2 * M
    for base, rom in image.roms:
        assert base + len(rom) == 4 * G
        assert len(rom) <= 16 * M
    assert all(note.isprintable() for note in image.notes)
    for name, address in image.symbols().items():
        assert name.isprintable()
        assert 0 <= address < 1 << 64
    image.symbol_at(image.entry)
    assert image.symbol_table.problem.isprintable()
    return image


def mutated(data: bytes, program: bytes, hot: int) -> bytes:
    """`data` with the damage that `program` describes, five bytes a step; an empty one does none.

    Most steps go to the first `hot` bytes, where headers are.
    """
    out = bytearray(data)
    for at in range(0, len(program) - 4, 5):
        where = int.from_bytes(program[at : at + 2], "little")
        code, value = program[at + 2], int.from_bytes(program[at + 3 : at + 5], "little")
        size = len(out)
        if not size:
            return b""
        near = min(hot, size)
        place = where % near // 2 * 2 if code & 0x80 else where * 37 % size
        kind = code & 7
        width = 1 << (code >> 3 & 3)
        if kind < 4:
            number = EDGES[value % len(EDGES)] if kind < 3 else value
            field = (number & (1 << 8 * width) - 1).to_bytes(width, "little")
            out[place : min(place + width, size)] = field[: size - place]
        elif kind == 4:
            out[place] ^= value & 0xFF or 1
        elif kind == 5:
            old = int.from_bytes(out[place : place + width], "little")
            new = old + (value % 64) - 32 & (1 << 8 * width) - 1
            field = new.to_bytes(width, "little")
            out[place : min(place + width, size)] = field[: size - place]
        elif kind == 6:
            del out[place:]
        else:
            out += program[at : at + 5] * (value % 50)
    return bytes(out)


RAMS: list[Any] = [
    None, None, None, None,
    [(0, 640 * K), (M, 63 * M)],
    [(0, 64 * M), (4 * G, 64 * M)],
    [(0, 24 * M), (40 * M, 8 * M)],
]  # fmt: skip
SIZES = [64 * M] * 6 + [4 * K, 64 * K, 640 * K, M + 1, 20 * M, 5 * G]
MAPS: list[Any] = [
    (), (), (),
    build_e820([(0, 64 * M)], acpi=[(62 * M, M)], nvs=[(63 * M, M)]),
    [(0, 64 * M, 1)],
    [(0, 0x9FC00, 1), (M, 15 * M, 1), (17 * M, 40 * M, 1), (4 * G, 64 * M, 1)],
    [(n * 0x20000, 0x10000, n % 5) for n in range(400)],
    [(0, 1 << 64, 1)],
    [(64 * M, 0, 1)],
    [(0, 64 * M, 2)],
]  # fmt: skip
RESERVED: list[Any] = [
    (), (), (), [(0xE0000, 0x20000)], [(63 * M, M)], [(16 * M, 4096), (16 * M + 100, 9000)],
    [(0xFEB00000, 0x1000)], [(0, 0x1000)], [(0x1000, 0)], [((1 << 64) - 1, 9)],
]  # fmt: skip
SCREENS = [None, None, VGA_TEXT, FramebufferInfo(0xC0000000, 1024, 768, 4096, 32)]
PROTOCOLS = ["auto", "auto", "auto", "64", "32", "16", "pvh", "64", "x"]
CMDLINES = ["", "", "console=ttyS0 quiet", "x" * 300, "y" * 2047, "z" * 2048, "a\0b", "\ud800", "é"]
INITRDS: list[Any] = [None, None, None, b"initrd", bytes(100000), bytes(20 * M), b"", bytes(60 * M)]
MODULES: list[Any] = [(), (), (), [b"one"], [b"", (b"two", "name")], [(b"x", "\0")], [b"m"] * 20]
FORMATS = ["auto"] * 12 + [
    *("flat", "elf", "multiboot", "multiboot2", "bzimage", "pvh", "linux64", "linux32", "firmware"),
]


def surroundings(choice: bytes) -> dict[str, Any]:
    """Memory, format and environment for a case; all zeros is a plain machine."""
    picks = iter(choice.ljust(12, b"\0"))

    def pick(options: Any) -> Any:
        return options[next(picks) % len(options)]

    ram = pick(RAMS)
    memory = pick(SIZES) if ram is None else sum(size for _, size in ram)
    return {
        "memory_size": memory,
        "ram": ram,
        "format": pick(FORMATS),
        "environment": BootEnvironment(
            e820=pick(MAPS),
            reserved=pick(RESERVED),
            framebuffer=pick(SCREENS),
            protocol=pick(PROTOCOLS),
            cmdline=pick(CMDLINES),
            initrd=pick(INITRDS),
            modules=pick(MODULES),
            fast_boot=bool(next(picks) & 1),
            rsdp=pick([None, 0xE0000, 1 << 40]),
            rsdp_data=b"RSD PTR " + bytes(28),
        ),
    }
