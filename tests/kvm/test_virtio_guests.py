"""Tiny guests with their own virtio drivers (guests/lib/virtio*), on both transports."""

from __future__ import annotations

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
