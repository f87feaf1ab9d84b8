"""Executions a second of one ring-3 target: pykvm, Unicorn, and AFL++ with a native fork server.

    python benchmarks/fuzzing.py [--rounds N] [--seconds S] [--source FILE.c]

All get the same instrumented code and the same inputs. Unicorn (a Python package that this installs
nothing for: `pip install unicorn`) runs the same ELF file, with its context and the writable
segments put back after each run, and the heap's first 64 KiB; nothing else is checked or counted,
which is in its favour. AFL++ runs the target as a process of its own (afl-clang-fast, fork server),
and through `pykvm fuzz serve`; both with afl-fuzz for so many seconds. Medians, rounds in turn.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pykvm.fuzz import Program, Ring3  # noqa: E402
from pykvm.fuzz import layout as at  # noqa: E402
from pykvm.fuzz.build import build  # noqa: E402

HEAP, STACK, ROOM = 1 << 20, 256 << 10, 64 << 10
BACK = 64 << 10  # of the heap, what Unicorn puts back
INPUT_GVA = at.SHARED_GVA + at.INPUT
RETURN = at.STUB_GVA
MAIN = """
#include <stdint.h>
#include <stddef.h>
#include <unistd.h>
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int main(void)
{
    static uint8_t room[65536];
    return LLVMFuzzerTestOneInput(room, (size_t)read(0, room, sizeof(room))) & 0;
}
"""
NATIVE = """
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define pykvm_assert assert
"""


def inputs(count: int) -> list[bytes]:
    """Small messages that the parser reads some of, and none crashes."""
    dice = random.Random(1)
    return [b"PK\1\0" + bytes([4, n % 16]) + dice.randbytes(n % 16) for n in range(count)]


def in_pykvm(target: Ring3, seconds: float) -> float:
    """Executions a second."""
    return timed(lambda data: target.execute(data), seconds)


def timed(execute: Callable[[bytes], object], seconds: float) -> float:
    """Of a function that takes an input."""
    data, done = inputs(256), 0
    start = time.perf_counter()
    while (now := time.perf_counter()) < start + seconds:
        for one in data:
            execute(one)
        done += len(data)
    return done / (now - start)


class Unicorn:
    """The same program in Unicorn."""

    def __init__(self, path: pathlib.Path) -> None:
        import unicorn
        from unicorn import x86_const as x86

        program = Program(path)
        self.uc = uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.x86 = x86
        self.back: list[tuple[int, bytes]] = []
        for segment in program.segments:
            start = segment.gva & -at.PAGE
            end = (segment.gva + segment.size + at.PAGE - 1) & -at.PAGE
            uc.mem_map(start, end - start)
            uc.mem_write(segment.gva, segment.data)
            if segment.writable:
                self.back.append((segment.gva, segment.data.ljust(segment.size, b"\0")))
        uc.mem_map(at.SHARED_GVA, at.INPUT + ROOM)
        uc.mem_write(at.SHARED_GVA + at.HEAP_AT, struct.pack("<QQ", at.HEAP_GVA, HEAP))
        uc.mem_map(at.HEAP_GVA, HEAP)
        uc.mem_map(at.STACK_TOP_GVA - STACK, STACK)
        uc.mem_map(RETURN, at.PAGE)
        self.back.append((at.HEAP_GVA, bytes(BACK)))
        self.back.append((at.SHARED_GVA + at.COVERAGE, bytes(at.INPUT - at.COVERAGE)))
        sp = at.STACK_TOP_GVA - 136
        uc.mem_write(sp, struct.pack("<Q", RETURN))
        uc.reg_write(x86.UC_X86_REG_RSP, sp)
        self.entry = program.symbol("LLVMFuzzerTestOneInput")
        self.context = uc.context_save()

    def execute(self, data: bytes) -> None:
        """One run, and back."""
        uc, place = self.uc, INPUT_GVA + ROOM - len(data)
        uc.mem_write(place, data)
        uc.reg_write(self.x86.UC_X86_REG_RDI, place)
        uc.reg_write(self.x86.UC_X86_REG_RSI, len(data))
        uc.emu_start(self.entry, RETURN)
        for gva, old in self.back:
            uc.mem_write(gva, old)
        uc.context_restore(self.context)


def by_afl(command: list[str], seconds: int) -> float:
    """Executions a second of afl-fuzz on one core."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = pathlib.Path(folder, "seeds")
        seeds.mkdir()
        (seeds / "one").write_bytes(inputs(9)[8])
        environment = {
            **os.environ, "AFL_SKIP_BIN_CHECK": "1", "AFL_NO_UI": "1", "AFL_SKIP_CPUFREQ": "1",
            "AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        done = subprocess.run(
            ["afl-fuzz", "-i", str(seeds), "-o", f"{folder}/out", "-s", "1", "-V", str(seconds),
             "--", *command],
            env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        stats = pathlib.Path(folder, "out/default/fuzzer_stats")
        if done.returncode or not stats.exists():
            raise SystemExit(f"afl-fuzz failed: {done.stdout[-500:]}")
        for line in stats.read_text().splitlines():
            if line.startswith("execs_per_sec"):
                return float(line.split(":")[1])
    raise SystemExit("afl-fuzz said no speed")


def native(source: pathlib.Path, folder: str) -> pathlib.Path | None:
    """The target as a program of its own, instrumented by AFL++'s own compiler."""
    compiler = shutil.which("afl-clang-fast") or shutil.which("afl-cc")
    if compiler is None:
        return None
    text = source.read_text().replace('#include "pykvm_fuzz.h"', NATIVE)
    both = pathlib.Path(folder, "native.c")
    both.write_text(text + MAIN)
    made = pathlib.Path(folder, "native")
    done = subprocess.run(
        [compiler, "-O1", "-o", made, both], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"AFL++'s compiler failed: {(done.stdout + done.stderr)[-300:]}", file=sys.stderr)
        return None
    return made


def main() -> None:
    """Prints the medians, and how pykvm stands to each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="for each side in a round")
    parser.add_argument(
        "--source", type=pathlib.Path, default=ROOT / "guests" / "fuzz-parser" / "parser.c"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        elf = build([options.source], pathlib.Path(folder, "target.elf"))
        sides: dict[str, Callable[[], float]] = {}
        target = Ring3(elf, room=ROOM, heap=HEAP, stack=STACK)
        sides["pykvm"] = lambda: in_pykvm(target, options.seconds)
        try:
            emulator = Unicorn(elf)
            sides["unicorn"] = lambda: timed(emulator.execute, options.seconds)
        except ImportError:
            print("without Unicorn: pip install unicorn", file=sys.stderr)
        if shutil.which("afl-fuzz"):
            serve = [sys.executable, "-m", "pykvm", "fuzz", "serve", str(elf)]
            sides["afl-fuzz, pykvm"] = lambda: by_afl(serve, options.seconds)
            own = native(options.source, folder)
            if own is not None:
                sides["afl-fuzz, native"] = lambda: by_afl([str(own)], options.seconds)
        else:
            print("without AFL++: apt-get install afl++", file=sys.stderr)
        samples: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, measure in sides.items():
                samples[name].append(measure())
        ours = statistics.median(samples["pykvm"])
        print(f"{options.source.name}: executions a second, medians of {options.rounds} rounds")
        for name, values in samples.items():
            middle = statistics.median(values)
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            print(f"{name:18} {middle:10,.0f}  ({spread})  pykvm is {ours / middle:.1f}x")
        target.close()


if __name__ == "__main__":
    main()
