"""A whole Linux boot, pykvm against QEMU: `python benchmarks/linux_boot.py [--tier own|stock]`.

The same kernel, initramfs and command line, on the same /dev/kvm, in turns: from the shell to the
first kernel line, to the point in front of the kernel's int3 self-test, to init, to power-off;
exits by reason; peak memory. `own` (default) boots the minimal kernel of guests/linux with a 32-bit
init; `stock` Debian's cloud kernel with a 64-bit one, for hosts with a CPU's ring 0 and for the
nested tier (`python tests/nested/shell.py python benchmarks/linux_boot.py --tier stock`).

On a KVM that refuses instructions QEMU stops at the self-test with "emulation failure": there the
first two points are compared and pykvm goes on alone. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "guests")]

from linux import assets, initramfs  # noqa: E402

from benchmarks.harness.stats import spread  # noqa: E402

# A point is reached when its text comes over the serial port.
POINTS = {
    "first line": rb"Linux version",
    "before int3": rb"x86/fpu: (x87 FPU|Enabled)",
    "init": rb"init: started",
    "power-off": rb"reboot: (Power down|System halted|machine restart)",
}
MASK = "noxsave clearcpuid=smap,popcnt,erms,fsrm rodata=off vdso32=0"
TUNABLES = "GLIBC_TUNABLES=glibc.cpu.hwcaps=-SSE2,-SSSE3,-SSE4_1,-SSE4_2,-AVX,-AVX2"
OWN = f"console=ttyS0 earlyprintk=serial,ttyS0 panic=-1 reboot=t tsc=reliable {MASK} {TUNABLES}"
STOCK = "console=ttyS0 earlyprintk=serial,ttyS0 panic=-1"
QEMU_CPU = {"own": "qemu64,-cx16,-xsave,-popcnt", "stock": "host"}
QUIET_EXIT = rb"emulation failure|KVM internal error"


@dataclass
class Run:
    """What one boot took: seconds to each point and to the end, peak resident bytes, exits."""

    seconds: dict[str, float] = field(default_factory=dict)
    memory: int = 0
    exits: dict[str, int] = field(default_factory=dict)
    ending: str = ""


class QemuStats:
    """KVM's own counters of QEMU's vCPU, by QMP `query-stats` (QEMU 7.1 and newer)."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._end: socket.socket | None = None
        self.last: dict[str, int] = {}

    def sample(self) -> None:
        """Takes the counters again; the last answer before the end counts."""
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            if self._end is None:
                end = socket.socket(socket.AF_UNIX)
                end.settimeout(0.5)
                end.connect(str(self._path))
                self._end = end
                self._ask({"execute": "qmp_capabilities"})
            answer = self._ask({"execute": "query-stats", "arguments": {"target": "vcpu"}})
            totals: dict[str, int] = {}
            for vcpu in answer["return"]:
                for row in vcpu["stats"]:
                    name, value = row["name"], row["value"]
                    if isinstance(value, int) and name.endswith(("exits", "insn_emulation")):
                        totals[name] = totals.get(name, 0) + value
            self.last = {name: n for name, n in totals.items() if n}

    def _ask(
        self, command: dict[str, object]
    ) -> dict[str, list[dict[str, list[dict[str, object]]]]]:
        assert self._end is not None
        self._end.sendall(json.dumps(command).encode() + b"\n")
        text = b""
        while True:
            text += self._end.recv(1 << 16)
            for line in text.splitlines():
                with contextlib.suppress(ValueError):
                    found = json.loads(line)
                    if "return" in found or "error" in found:
                        return dict(found)


def run(command: list[str], limit: float, stats: QemuStats | None, errors: pathlib.Path) -> Run:
    """Starts a VMM and follows its serial output."""
    result = Run()
    seen = bytearray()
    started = time.monotonic()
    with errors.open("wb") as complaints:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints
        )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    sampled = 0.0
    while True:
        now = time.monotonic()
        if selector.select(0.05):
            part = process.stdout.read()
            if part == b"":
                break
            seen += part or b""
            for name, pattern in POINTS.items():
                if name not in result.seconds and re.search(pattern, seen):
                    result.seconds[name] = time.monotonic() - started
        if stats is not None and now - sampled > 0.25:
            stats.sample()
            sampled = now
        stuck = stats is not None and re.search(QUIET_EXIT, errors.read_bytes())
        if stuck or now - started > limit or (stats is not None and "power-off" in result.seconds):
            if stats is not None:
                stats.sample()
            process.kill()
            break
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    result.seconds["end"] = time.monotonic() - started
    result.memory = usage.ru_maxrss * 1024
    text = errors.read_text(errors="replace")
    if stats is not None:
        result.exits = stats.last
    else:
        rows = re.findall(r"^\s*(KVM_EXIT_\w+)\s+([\d,]+)", text, re.M)
        result.exits = {name: int(n.replace(",", "")) for name, n in rows}
    complaint = re.search(rf"({QUIET_EXIT.decode()}).*", text)
    result.ending = complaint.group(0) if complaint else f"status {process.returncode}"
    return result


def commands(tier: str, work: pathlib.Path) -> dict[str, tuple[list[str], QemuStats | None]]:
    """The two command lines."""
    files = assets.load()
    bits, text = (32, OWN) if tier == "own" else (64, STOCK)
    initrd = work / "initrd"
    base = files[f"initramfs{bits}"].read_bytes()
    initrd.write_bytes(base + initramfs.script("echo a shell\n"))
    kernel = files["mmio"] / "vmlinux" if tier == "own" else files["stock"]
    memory = "64M" if tier == "own" else "256M"
    ours = [sys.executable, "-m", "pykvm", "run", str(kernel), "--initrd", str(initrd)]
    ours += ["--machine", "microvm", "--memory", memory, "--append", text, "--exits"]
    if tier == "own":
        ours.append("--no-acpi")
    monitor = work / "qmp"
    machine = "microvm,acpi=off,rtc=on" if tier == "own" else "microvm,rtc=on"
    theirs = ["qemu-system-x86_64", "-accel", "kvm", "-M", machine, "-cpu", QEMU_CPU[tier]]
    theirs += ["-m", memory, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    theirs += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", text]
    theirs += ["-serial", "stdio", "-qmp", f"unix:{monitor},server=on,wait=off"]
    found: dict[str, tuple[list[str], QemuStats | None]] = {
        "pykvm": (ours, None),
        "QEMU": (theirs, QemuStats(monitor)),
    }
    if tier == "stock":  # a compressed kernel, which QEMU cannot unpack on the host
        found["pykvm --fast-boot"] = ([*ours, "--fast-boot"], None)
    return found


def show(runs: dict[str, list[Run]]) -> None:
    """The table: medians of the rounds with their quartile distance, and ratios to QEMU's."""
    print(f"{'':18}" + "".join(f"{point:>22}" for point in (*POINTS, "end", "peak memory")))
    for name, found in runs.items():
        cells = []
        for point in (*POINTS, "end"):
            values = [r.seconds[point] for r in found if point in r.seconds]
            theirs = [r.seconds[point] for r in runs["QEMU"] if point in r.seconds]
            cells.append(cell(values, theirs, " s"))
        theirs = [r.memory / 2**20 for r in runs["QEMU"]]
        cells.append(cell([r.memory / 2**20 for r in found], theirs, " MiB"))
        print(f"{name:18}" + "".join(f"{text:>22}" for text in cells))
    for name, found in runs.items():
        last = found[-1]
        print(f"\n{name} ended with: {last.ending}; exits of the last round:")
        for reason, n in sorted(last.exits.items(), key=lambda row: -row[1]):
            print(f"  {n:9} {reason}")


def cell(values: list[float], theirs: list[float], unit: str) -> str:
    """`median ± quartile distance (ratio to QEMU's median)`."""
    if not values:
        return "not reached"
    ours = spread(values)
    ratio = f" ({ours.median / spread(theirs).median:.2f})" if theirs else ""
    return f"{ours.median:.1f}±{ours.iqr:.1f}{unit}{ratio}"


def main() -> int:
    parser = argparse.ArgumentParser(description="A Linux boot in pykvm and QEMU.")
    parser.add_argument("--tier", choices=("own", "stock"), default="own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300, help="seconds for one boot")
    arguments = parser.parse_args()
    runs: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        for number in range(arguments.rounds):
            for name, (command, stats) in commands(arguments.tier, work).items():
                done = run(command, arguments.limit, stats, work / "errors")
                runs.setdefault(name, []).append(done)
                times = ", ".join(f"{point} {s:.2f} s" for point, s in done.seconds.items())
                print(f"round {number + 1}, {name}: {times}", file=sys.stderr)
    show(runs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
