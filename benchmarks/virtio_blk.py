"""virtio-blk: pykvm and QEMU with the same guest and image, and fio on the host as the limit.

    .venv/bin/python benchmarks/virtio_blk.py [--rounds 5] [--scale 1.0] [--out FILE]

The guest (guests/virtio-bench) drives the disk from ring 3 and polls, so its vCPU is busy for the
whole measurement. The CPU time of a request is what the VMM's process used, less what the same VMM
needs for one request (start and end), less the time measured (the vCPU). All programs take turns in
each round; the table has medians.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
GUEST = ROOT / "pykvm" / "images" / "virtio-bench.elf"
MEBIBYTES = 256
CPU = "qemu64,-cx16,-xsave,-popcnt"

# (name, words for the guest, requests, fio's options)
CASES = [
    ("4 KiB random read, QD 1", "op=randread bs=4096 qd=1", 10000, "randread 4k 1"),
    ("4 KiB random read, QD 8", "op=randread bs=4096 qd=8", 20000, "randread 4k 8"),
    ("4 KiB random read, QD 32", "op=randread bs=4096 qd=32", 30000, "randread 4k 32"),
    ("4 KiB random write, QD 1", "op=randwrite bs=4096 qd=1", 10000, "randwrite 4k 1"),
    ("4 KiB random write, QD 8", "op=randwrite bs=4096 qd=8", 20000, "randwrite 4k 8"),
    ("4 KiB random write, QD 32", "op=randwrite bs=4096 qd=32", 30000, "randwrite 4k 32"),
    ("256 KiB sequential read, QD 8", "op=read bs=262144 qd=8", 2000, "read 256k 8"),
    ("256 KiB sequential write, QD 8", "op=write bs=262144 qd=8", 1000, "write 256k 8"),
    ("4 KiB write and flush", "op=flush bs=4096", 50, ""),
]
SETTINGS = {  # cache: (QEMU's aio modes, fio's direct)
    "writeback": (("threads", "io_uring"), 0),
    "none": (("native", "io_uring"), 1),
}


def pykvm(image: str, cache: str, words: str) -> list[str]:
    return [sys.executable, __file__, "--child", image, cache, words]


def child(image: str, cache: str, words: str) -> None:
    """One machine; the guest's line goes to stdout."""
    from pykvm import Machine

    with Machine(memory="64M", huge_pages="thp") as machine:  # as QEMU asks for its guest's
        machine.add_disk(image, format="raw", cache=cache)
        machine.load(str(GUEST), cmdline=words)
        serial = machine.run(timeout=120).serial
        print(serial if isinstance(serial, str) else bytes(serial).decode())


def qemu(image: str, cache: str, aio: str, words: str) -> list[str]:
    return [
        "qemu-system-x86_64", "-M", "microvm,isa-serial=on,rtc=off", "-accel", "kvm", "-cpu", CPU,
        "-m", "64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", "stdio", "-global", "virtio-mmio.force-legacy=false",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-kernel", str(GUEST), "-append", words,
        "-drive", f"if=none,id=d,file={image},format=raw,cache={cache},aio={aio}",
        "-device", "virtio-blk-device,drive=d",
    ]  # fmt: skip


def run(command: list[str]) -> tuple[dict[str, int], float]:
    """The guest's numbers, and the CPU seconds of the process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{command[0]}: no result: {done.stdout[-500:]}{done.stderr[-500:]}")
    found = json.loads(lines[-1])
    if found.get("error") or found.get("errors"):
        raise SystemExit(f"{command[0]}: {found}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found, cpu


def fio(image: str, direct: int, options: str) -> float:
    """Requests a second of the host itself."""
    kind, size, depth = options.split()
    done = subprocess.run(
        ["fio", "--name=x", f"--filename={image}", "--ioengine=io_uring", f"--direct={direct}",
         f"--rw={kind}", f"--bs={size}", f"--iodepth={depth}", f"--size={MEBIBYTES}M",
         "--runtime=1", "--time_based", "--output-format=json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    job = json.loads(done.stdout)["jobs"][0]
    return float(job["write" if "write" in kind else "read"]["iops"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of requests")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="pykvm-blk-", dir="/var/tmp")
    image = f"{directory}/disk.img"
    with open(image, "wb") as file:
        for _ in range(MEBIBYTES):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    lines = [
        f"virtio-blk, {time.strftime('%Y-%m-%d')}, Linux {platform.release()}, {os.cpu_count()} "
        f"CPUs, {options.rounds} rounds, medians; CPU: microseconds of the VMM a request",
    ]
    for cache, (modes, direct) in SETTINGS.items():
        peers = ["pykvm", *(f"qemu {aio}" for aio in modes)]

        def command(peer: str, words: str, cache: str = cache) -> list[str]:
            if peer == "pykvm":
                return pykvm(image, cache, words)
            return qemu(image, cache, peer.split()[1], words)

        lines.append(f"\ncache={cache}")
        lines.append(
            f"{'':32}" + "".join(f"{peer:>15}{'CPU':>8}" for peer in peers) + f"{'fio':>12}"
        )
        base = {
            peer: statistics.median(
                run(command(peer, "blk op=randread bs=4096 qd=1 count=1"))[1] for _ in range(3)
            )
            for peer in peers
        }
        for name, words, most, limit in CASES:
            count = max(10, int(most * options.scale))
            rates: dict[str, list[float]] = {peer: [] for peer in peers}
            costs: dict[str, list[float]] = {peer: [] for peer in peers}
            host: list[float] = []
            for number in range(options.rounds):
                turn = number % len(peers)
                for peer in peers[turn:] + peers[:turn]:
                    found, cpu = run(command(peer, f"blk {words} count={count}"))
                    seconds = found["ns"] / 1e9
                    rates[peer].append(found["requests"] / seconds)
                    costs[peer].append((cpu - base[peer] - seconds) / found["requests"] * 1e6)
                if limit and number < 3:
                    host.append(fio(image, direct, limit))
            row = f"{name:32}"
            for peer in peers:
                row += f"{statistics.median(rates[peer]):13.0f}/s"
                row += f"{statistics.median(costs[peer]):8.1f}"
            row += f"{statistics.median(host):10.0f}/s" if host else ""
            lines.append(row)
            print(row, flush=True)
    os.unlink(image)
    os.rmdir(directory)
    text = "\n".join(lines) + "\n"
    print("\n" + text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:5])
    else:
        main()
