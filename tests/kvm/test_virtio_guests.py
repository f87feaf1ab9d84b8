"""Tiny guests with their own virtio drivers (guests/lib/virtio*), on both transports."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pykvm import Machine, images

BOARDS = ("microvm", "pc")
RECORD = 0x4345_5200_0000_0000  # guests/virtio-records: each word of record n is RECORD + n


def record(number: int) -> bytes:
    """The sector that virtio-records writes for `number`."""
    return (RECORD + number).to_bytes(8, "little") * 64


@pytest.mark.parametrize("depth", [1, 8])
@pytest.mark.parametrize("board", BOARDS)
def test_records_that_are_told_safe_are_on_the_disk(board: str, depth: int) -> None:
    first, count, sectors = 60, 30, 64
    guest = images.find("virtio-records")
    with Machine(board=board, memory="32M") as m:  # type: ignore[arg-type]
        disk = m.add_disk(bytes(sectors * 512))
        m.load("virtio-records")
        guest.patch(m.memory, first=first, count=count, depth=depth)
        result = m.run(timeout=30)
        written = disk.backend.read(0, sectors * 512)
    assert result.exit_code == 0, result.report or result.serial
    *said, last = result.serial.decode().splitlines()
    assert last == "virtio-records: done"
    assert sorted(said) == sorted(f"safe {n}" for n in range(first, first + count))
    for number in range(first, first + count):
        at = number % sectors * 512
        assert written[at : at + 512] == record(number)
    untouched = range((first + count) % sectors, first)
    assert all(not any(written[n * 512 : n * 512 + 512]) for n in untouched)


def test_records_without_an_end_go_on_until_the_machine_stops() -> None:
    guest = images.find("virtio-records")
    with Machine(board="microvm", memory="32M") as m:
        m.add_disk(bytes(64 * 512))
        m.load("virtio-records")
        guest.patch(m.memory, first=7)
        result = m.run(timeout=0.5)
    assert result.reason == "timeout"
    said = result.serial.decode().splitlines()
    assert said[:2] == ["safe 7", "safe 8"]


def bench(board: str, words: str, disk: bytes) -> tuple[dict[str, Any], bytes]:
    """virtio-bench's line, and the disk afterwards."""
    with Machine(board=board, memory="32M") as m:  # type: ignore[arg-type]
        device = m.add_disk(disk)
        m.load("virtio-bench", cmdline=words)
        result = m.run(timeout=60)
        after = device.backend.read(0, len(disk))
    assert result.exit_code == 1, result.report or result.serial
    return json.loads(result.serial), after


@pytest.mark.parametrize("board", BOARDS)
def test_bench_disk(board: str) -> None:
    contents = bytes(n // 512 & 0xFF for n in range(1 << 20))
    said, after = bench(board, "blk op=randread bs=4096 qd=8 count=200", contents)
    assert after == contents
    assert said["transport"] == ("virtio-pci" if board == "pc" else "virtio-mmio")
    assert (said["requests"], said["errors"], said["bytes"]) == (200, 0, 200 * 4096)
    assert said["ticks"] > 0
    said, after = bench(board, "blk op=write bs=8K qd=4 count=16 area=128K", contents)
    assert (said["op"], said["bs"], said["requests"], said["errors"]) == ("write", 8192, 16, 0)
    assert after[1 << 17 :] == contents[1 << 17 :]
    assert all(
        after[n : n + 512] != contents[n : n + 512] for n in range(0, 1 << 17, 512) if n % 32768
    )
    said, _ = bench(board, "blk op=flush count=5", contents)
    assert (said["op"], said["requests"], said["errors"], said["kicks"]) == ("flush", 5, 0, 10)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("", "say what to measure: blk or net"),
        ("blk op=trim", "op must be randread, randwrite, read, write or flush"),
        ("blk op=read bs=1000", "bs must be sectors, qd 1 to 256, and all of it fit 16 MiB"),
        ("blk op=read bs=1M", "the disk is smaller than one request"),
        ("blk op=read qd=100", "the queue is too short for this depth"),
        ("blk op=read disk=1", "no disk"),
        ("net op=echo", "no network card"),
        ("net op=echo peer=10.0.2", "ip and peer must be addresses: 10.0.2.15"),
    ],
)
def test_bench_says_what_is_wrong(words: str, error: str) -> None:
    guest = images.find("virtio-bench")
    with Machine(board="microvm", memory="32M") as m:
        m.add_disk(bytes(64 * 512))
        m.load("virtio-bench")
        guest.patch(m.memory, cmdline=words.encode())
        result = m.run(timeout=10)
    assert json.loads(result.serial) == {"error": error}
    assert result.exit_code == 3
