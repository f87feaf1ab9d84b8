"""virtio-net: pykvm and QEMU with the same guest, on a TAP and on a stream socket.

    .venv/bin/python benchmarks/virtio_net.py [--rounds 5] [--scale 1.0] [--out FILE]

The guest (guests/virtio-bench) drives the card from ring 3 and polls, so its vCPU is busy for the
whole measurement. On the TAP the host's kernel answers pings and throws datagrams away; on the
stream a process of this benchmark does. The CPU time of a frame is what the VMM's process used,
less what the same VMM needs for one ping (start and end), less the time measured (the vCPU). All
programs take turns in each round; the table has medians. Needs root for the TAP.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks.virtio_blk import CPU, GUEST, run  # noqa: E402

TAP = "pykvmbench0"
PEER, GUEST_IP = "10.213.7.1", "10.213.7.2"

# (name, words for the guest, requests)
CASES = [
    ("ping, 64 bytes, 1 under way", "op=echo size=64 qd=1", 5000),
    ("ping, 64 bytes, 16 under way", "op=echo size=64 qd=16", 20000),
    ("ping, 1400 bytes, 16 under way", "op=echo size=1400 qd=16", 20000),
    ("datagrams out, 64 bytes", "op=stream size=64 qd=64", 50000),
    ("datagrams out, 1472 bytes", "op=stream size=1472 qd=64", 50000),
]


class Peer:
    """The far end of a stream: answers ARP and pings, takes everything else."""

    def __init__(self, path: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                connection.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
            with connection:
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        have = b""
        while True:
            try:
                more = connection.recv(1 << 18)
            except OSError:
                return
            if not more:
                return
            have += more
            at, answers = 0, []
            while len(have) - at >= 4:
                end = at + 4 + int.from_bytes(have[at : at + 4], "big")
                if end > len(have):
                    break
                answer = self._answer(have[at + 4 : end])
                if answer:
                    answers.append(struct.pack(">I", len(answer)) + answer)
                at = end
            have = have[at:]
            if answers:
                try:
                    connection.sendall(b"".join(answers))
                except OSError:
                    return

    @staticmethod
    def _answer(frame: bytes) -> bytes:
        mine = b"\x02\0\0\0\0\x99"
        if frame[12:14] == b"\x08\x06" and frame[21] == 1:
            head = frame[6:12] + mine + frame[12:21] + b"\2"
            return (head + mine + frame[38:42] + frame[22:32]).ljust(60, b"\0")
        if frame[12:14] == b"\x08\0" and frame[23] == 1 and frame[34] == 8:
            total = int.from_bytes(frame[36:38], "big") + 0x0800
            total = (total & 0xFFFF) + (total >> 16)
            ip = frame[14:26] + frame[30:34] + frame[26:30]
            head = frame[6:12] + mine + frame[12:14] + ip
            return head + b"\0\0" + total.to_bytes(2, "big") + frame[38:]
        return b""


def child(net: str, words: str) -> None:
    """One machine; the guest's line goes to stdout."""
    from pykvm import Machine

    with Machine(memory="64M") as machine:
        machine.add_net(net)
        machine.load(str(GUEST), cmdline=words)
        print(machine.run(timeout=120).serial.decode())


def qemu(netdev: str, words: str) -> list[str]:
    return [
        "qemu-system-x86_64", "-M", "microvm,isa-serial=on,rtc=off", "-accel", "kvm", "-cpu", CPU,
        "-m", "64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", "stdio", "-global", "virtio-mmio.force-legacy=false",
        "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-kernel", str(GUEST), "-append", words,
        "-netdev", f"{netdev},id=n", "-device", "virtio-net-device,netdev=n",
    ]  # fmt: skip


def measure(name: str, pykvm_net: str, qemu_net: str, options: argparse.Namespace) -> list[str]:
    def command(peer: str, words: str) -> list[str]:
        words = f"net {words} ip={GUEST_IP} peer={PEER}"
        if peer == "pykvm":
            return [sys.executable, __file__, "--child", pykvm_net, words]
        return qemu(qemu_net, words)

    peers = ["pykvm", "qemu"]
    lines = [f"\n{name}", f"{'':32}" + "".join(f"{p:>14}{'MB/s':>8}{'CPU':>8}" for p in peers)]
    base = {
        peer: statistics.median(
            run(command(peer, "op=echo size=64 qd=1 count=1"))[1] for _ in range(3)
        )
        for peer in peers
    }
    for case, words, most in CASES:
        count = max(10, int(most * options.scale))
        rates: dict[str, list[float]] = {peer: [] for peer in peers}
        moved: dict[str, list[float]] = {peer: [] for peer in peers}
        costs: dict[str, list[float]] = {peer: [] for peer in peers}
        for number in range(options.rounds):
            for peer in peers if number % 2 else peers[::-1]:
                found, cpu = run(command(peer, f"{words} count={count}"))
                seconds = found["ns"] / 1e9
                rates[peer].append(found["requests"] / seconds)
                moved[peer].append(found["bytes"] / seconds / 1e6)
                costs[peer].append((cpu - base[peer] - seconds) / found["requests"] * 1e6)
        row = f"{case:32}"
        for peer in peers:
            row += f"{statistics.median(rates[peer]):12.0f}/s{statistics.median(moved[peer]):8.1f}"
            row += f"{statistics.median(costs[peer]):8.1f}"
        lines.append(row)
        print(row, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of requests")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    lines = [
        f"virtio-net, {time.strftime('%Y-%m-%d')}, Linux {platform.release()}, {os.cpu_count()} "
        f"CPUs, {options.rounds} rounds, medians; CPU: microseconds of the VMM a request"
    ]
    subprocess.run(["ip", "tuntap", "add", TAP, "mode", "tap"], check=True)
    try:
        subprocess.run(["ip", "addr", "add", f"{PEER}/24", "dev", TAP], check=True)
        subprocess.run(["ip", "link", "set", TAP, "up"], check=True)
        tap = f"tap,ifname={TAP},script=no,downscript=no,vhost=off"
        lines += measure("TAP", f"tap={TAP}", tap, options)
    finally:
        subprocess.run(["ip", "link", "del", TAP], check=False)
    with tempfile.TemporaryDirectory(prefix="pykvm-net-") as directory:
        path = f"{directory}/peer"
        Peer(path)
        stream = f"stream,server=off,addr.type=unix,addr.path={path}"
        lines += measure("Stream socket", f"stream=unix:{path}", stream, options)
    text = "\n".join(lines) + "\n"
    print("\n" + text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:4])
    else:
        main()
