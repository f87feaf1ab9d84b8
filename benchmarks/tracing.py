#!/usr/bin/env python3
"""What tracing costs an exit, and what a report of 10^5 and 10^6 exits costs.

    python benchmarks/tracing.py [--rounds 5] [--exits 20000] [--reports 100000 1000000]

The guest is `out 0x10, al` in a loop, answered by a native rule: an exit costs what KVM and pykvm's
C loop cost, so what a ring adds shows. The sides run in turn, round by round, after a warm-up.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pykvm import Machine  # noqa: E402
from pykvm.lab.report import Recorder, Recording, write_csv, write_html, write_perfetto  # noqa: E402
from pykvm.lab.tracing import TracedExit, Tracer  # noqa: E402

PORT = 0x10


def guest(exits: int) -> bytes:
    """mov ecx, exits; again: out 0x10, al; dec ecx; jnz again; cli; hlt (real mode)."""
    return b"\x66\xb9" + exits.to_bytes(4, "little") + b"\xe6\x10\x66\x49\x75\xfa\xfa\xf4"


def machine(exits: int, trace: int = 0) -> Machine:
    """A machine whose guest makes that many exits and one more."""
    made = Machine(memory="2M", irqchip="none", trace=trace)
    made.load(guest(exits))
    made.vm.rules.pio(PORT, write="drop")
    return made


def timed(made: Machine, exits: int) -> float:
    """Nanoseconds an exit."""
    begun = time.perf_counter_ns()
    made.run(timeout=600)
    took = time.perf_counter_ns() - begun
    counted = made.exit_counts().get("KVM_EXIT_IO", 0)
    if counted != exits:
        raise SystemExit(f"the guest made {counted} exits, not {exits}")
    return took / exits


def off(exits: int) -> float:
    """No ring at all."""
    with machine(exits) as made:
        made.vcpus[0].enable_trace(0)
        return timed(made, exits)


def recent(exits: int) -> float:
    """What every machine has: the last 64 exits, for reports of crashes."""
    with machine(exits) as made:
        return timed(made, exits)


def large(exits: int) -> float:
    """A ring that overwrites, of 64 Ki exits."""
    with machine(exits) as made:
        made.vcpus[0].enable_trace(1 << 16)
        return timed(made, exits)


def recorder(exits: int) -> float:
    """`Recorder`: every exit looked at while its vCPU stands there, and written to a file."""
    with machine(exits, Recorder.RING) as made, Recorder(made) as recording:
        took = timed(made, exits)
        recording.close()
        recording.recording.close()
        return took


def tracer(exits: int) -> float:
    """`Tracer`: every exit disassembled and named anew, as `pykvm trace` prints them."""
    exits //= 10
    seen = 0

    def count(_: TracedExit) -> None:
        nonlocal seen
        seen += 1

    with machine(exits, Tracer.RING) as made, Tracer(made, count):
        return timed(made, exits)


SIDES: dict[str, Callable[[int], float]] = {
    "no ring": off,
    "ring of 64 (always on)": recent,
    "ring of 65,536": large,
    "Recorder (--html)": recorder,
    "Tracer (text, JSON)": tracer,
}


def overhead(rounds: int, exits: int) -> list[str]:
    """The table of costs per exit."""
    samples: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(rounds + 1):
        for name, side in SIDES.items():
            took = side(exits)
            if number:  # the first is warm-up
                samples[name].append(took)
    lines = [f"{'':<26}{'ns/exit':>10}{'quartiles':>18}{'more than no ring':>20}"]
    for name, times in samples.items():
        low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        # Differences within a round, so that a slow minute slows both.
        more = statistics.median(a - b for a, b in zip(times, samples["no ring"], strict=True))
        median = statistics.median(times)
        lines.append(f"{name:<26}{median:>10.0f}{f'{low:.0f}..{high:.0f}':>18}{more:>20.0f}")
    return lines


def record(exits: int) -> Recording:
    """A real recording with that many exits."""
    with machine(exits - 1, Recorder.RING) as made:
        with Recorder(made) as taken:
            made.run(timeout=600)
        return taken.recording


def reports(sizes: list[int]) -> list[str]:
    """Time and size of each kind of report."""
    lines = [f"{'exits':>9}  {'report':<18}{'seconds':>9}{'MB':>9}{'peak RSS MiB':>14}"]
    with tempfile.TemporaryDirectory(prefix="pykvm-bench-") as folder:
        for exits in sizes:
            begun = time.perf_counter()
            with record(exits) as recording:
                took = time.perf_counter() - begun
                lines.append(f"{exits:>9}  {'recording it':<18}{took:>9.2f}{'':>9}{_rss():>14}")
                for name, write in (
                    ("HTML", write_html), ("Perfetto .json.gz", write_perfetto), ("CSV", write_csv),
                ):  # fmt: skip
                    path = f"{folder}/x{'.gz' if name.endswith('.gz') else ''}"
                    begun = time.perf_counter()
                    write(recording, path)
                    took = time.perf_counter() - begun
                    size = os.path.getsize(path) / 1e6
                    lines.append(f"{exits:>9}  {name:<18}{took:>9.2f}{size:>9.2f}{_rss():>14}")
    return lines


def _rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--exits", type=int, default=20_000)
    parser.add_argument("--reports", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--output", help="write the result there, too")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    lines = [
        f"Tracing, {time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Linux {platform.release()}, Python {platform.python_version()}",
        f"{options.rounds} rounds of {options.exits} exits (Tracer: a tenth); load at the start "
        f"{load:.1f}",
        "",
        *overhead(options.rounds, options.exits),
        "",
        *reports(options.reports),
    ]
    text = "\n".join(lines)
    print(text)
    if options.output:
        pathlib.Path(options.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
