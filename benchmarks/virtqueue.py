"""Requests a second through a virtqueue and a back end, without a guest.

`python benchmarks/virtqueue.py [--output PAGE.md]`

The driver puts requests of three buffers (16 bytes to read, 4 KiB and a status byte to write, as a
disk has) into the ring, in batches of 1 to 256; what is timed is the device: taking a batch,
serving it, giving it back, asking whether to interrupt. Back ends: `null` serves nothing, `memory`
copies 4 KiB into the guest for each. Sides: the reference in Python, the native queue used by a
device in Python, and the native queue used by an engine in C. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import ctypes
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import host, report, rounds, toolchain  # noqa: E402
from benchmarks.harness.model import BenchError, Case, Comparison, Sample, Side  # noqa: E402
from pykvm._native import ffi  # noqa: E402
from pykvm.devices.virtio.queue import VirtQueue, make_queue  # noqa: E402
from pykvm.memory import GuestMemory  # noqa: E402

BATCHES = (1, 8, 32, 256)
REQUESTS, SLOTS, BLOCK = 256, 3, 4096
RING, HEADERS, DATA = 0x10000, 0x40000, 0x100000
REFERENCE, NATIVE, ENGINE = "reference", "native, Python device", "native, C engine"
_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT, _WRITE, _AVAIL, _USED = 1, 2, 1 << 7, 1 << 15


class Driver:
    """Keeps `REQUESTS` requests in place and makes batches of them available, again and again."""

    def __init__(self, packed: bool, native: bool) -> None:
        self.memory = GuestMemory.anonymous([(0, 4 << 20)])
        self.packed = packed
        self.queue: VirtQueue = make_queue(0, 1024, native=native)
        queue = self.queue
        queue.memory = self.memory
        queue.packed, queue.event_idx = packed, True
        queue.size = REQUESTS * SLOTS if packed else 1024
        queue.desc, queue.driver, queue.device = RING, RING + 0x8000, RING + 0x10000
        queue.check()
        queue.ready = True
        self.avail, self.wrap, self.index = 0, True, 0
        self._laps = {wrap: self._descriptors(wrap) for wrap in (True, False)}
        if not packed:
            self.memory.write(RING, b"".join(self._laps[True]))
            heads = [SLOTS * (n % REQUESTS) for n in range(queue.size)]
            self.memory.write(queue.driver + 4, struct.pack(f"<{queue.size}H", *heads))

    def _descriptors(self, wrap: bool) -> list[bytes]:
        """The descriptors of each request, as one piece."""
        mark = (_AVAIL if wrap else _USED) if self.packed else 0
        found = []
        for n in range(REQUESTS):
            rows = [
                (HEADERS + 32 * n, 16, _NEXT),
                (DATA + BLOCK * n, BLOCK, _NEXT | _WRITE),
                (HEADERS + 32 * n + 16, 1, _WRITE),
            ]
            raw = b""
            for i, (address, length, flags) in enumerate(rows):
                last = (n, flags | mark) if self.packed else (flags, SLOTS * n + i + 1)
                raw += _DESCRIPTOR.pack(address, length, *last)
            found.append(raw)
        return found

    def offer(self, count: int) -> None:
        """Makes the next `count` requests available; a batch never crosses the end."""
        memory, queue = self.memory, self.queue
        if self.packed:
            raw = self._laps[self.wrap][self.avail : self.avail + count]
            memory.write(RING + 16 * SLOTS * self.avail, b"".join(raw))
            self.avail += count
            if self.avail == REQUESTS:
                self.avail, self.wrap = 0, not self.wrap
        else:
            self.index = self.index + count & 0xFFFF
            memory.write_u16(queue.driver + 2, self.index)

    def check(self, count: int) -> None:
        """That all came back."""
        if self.packed:
            done = (self.queue.next_used, self.queue.used_wrap)
            good = done == (self.avail * SLOTS, self.wrap)
        else:
            good = self.memory.read_u16(self.queue.device + 2) == self.index
        if not good:
            raise BenchError(f"requests were lost in a batch of {count}")


def python_device(disk: bytes | None) -> Callable[[VirtQueue, int], None]:
    """A device in Python."""

    def serve(queue: VirtQueue, count: int) -> None:
        done = []
        for n, chain in enumerate(queue.pop_batch(count)):
            if disk is not None:
                chain.writable[0][:] = disk[BLOCK * n : BLOCK * (n + 1)]
                chain.writable[1][0] = 0
            done.append((chain, BLOCK + 1))
        queue.push_batch(done)
        queue.should_notify()

    return serve


def c_engine(disk: bytes | None) -> Callable[[VirtQueue, int], None]:
    """A device in C, called once a batch."""
    library = ctypes.CDLL(toolchain.built("virtq_engine.so"))
    notify = ctypes.byref(ctypes.c_int())

    def serve(queue: VirtQueue, count: int) -> None:
        place = ctypes.c_void_p(int(ffi.cast("uintptr_t", queue.c)))
        library.engine_serve(place, count, disk, BLOCK, notify)

    return serve


def measure(packed: bool, name: str, copies: bool, total: int) -> Sample:
    """One run: requests a second, by size of the batch."""
    disk = bytes(REQUESTS * BLOCK) if copies else None
    serve = c_engine(disk) if name == ENGINE else python_device(disk)
    sample: Sample = {}
    for batch in BATCHES:
        driver = Driver(packed, native=name != REFERENCE)
        queue, spent = driver.queue, 0
        for _ in range(max(total // batch, 2)):
            driver.offer(batch)
            started = time.perf_counter_ns()
            serve(queue, batch)
            spent += time.perf_counter_ns() - started
        driver.check(batch)
        sample[f"batch {batch}"] = max(total // batch, 2) * batch / spent * 1e9
    return sample


def build() -> None:
    """The engine in C."""
    native = toolchain.ROOT / "native"
    sources = [toolchain.SOURCES / "peers" / "virtq_engine.c", *(native / "src").glob("virtq*.c")]
    toolchain.BUILD.mkdir(parents=True, exist_ok=True)
    toolchain.compile_c(
        toolchain.BUILD / "virtq_engine.so", sources, "-shared", "-fPIC",
        f"-I{native / 'include'}",
    )  # fmt: skip


def all_cases(total: int) -> list[Case]:
    """Both formats with both back ends."""
    found = []
    for packed in (False, True):
        for copies in (False, True):
            form = "packed" if packed else "split"
            back_end = "memory" if copies else "null"
            sides = tuple(
                Side(name, partial(measure, packed, name, copies, count))
                for name, count in ((REFERENCE, total // 4), (NATIVE, total), (ENGINE, total * 8))
            )
            comparisons = tuple(
                Comparison(f"batch {batch}, {name}", f"batch {batch}", "per_second",
                           name, REFERENCE, "ratio")
                for batch in BATCHES for name in (NATIVE, ENGINE)
            )  # fmt: skip
            found.append(
                Case(
                    name=f"virtqueue-{form}-{back_end}",
                    title=f"{form.capitalize()} ring, {back_end} back end: requests a second",
                    about="Requests of three direct descriptors (16 bytes, 4 KiB, 1 byte), event "
                    "indices on; only the device's part is timed. A C engine is called from Python "
                    "once a batch.",
                    sides=sides,
                    comparisons=comparisons,
                    rounds=9,
                )
            )
    return found


def main() -> int:
    """Measures, prints, and writes the page where `--output` says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=8192, help="a run and size of batch")
    parser.add_argument("--output", type=Path, help="the page to write, Markdown")
    options = parser.parse_args()
    try:
        build()
    except BenchError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 125
    facts = host.facts()
    results = []
    for case in all_cases(options.requests):
        results.append(rounds.run_case(case, options.rounds))
        report.print_case(results[-1])
    if options.output:
        options.output.write_text(report.markdown(facts, results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
