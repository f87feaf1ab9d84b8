"""virtio-mem and virtio-pmem by a driver without a guest; discarded blocks are measured."""

from __future__ import annotations

import os
import pathlib
import struct
import time

import pytest
from virtio_small import RAM, Driver

from pykvm.datapath.loop import IoThread
from pykvm.devices.virtio.mem import (
    ACK,
    ERROR,
    MIXED,
    NACK,
    PLUG,
    PLUGGED,
    STATE,
    UNPLUG,
    UNPLUG_ALL,
    UNPLUGGED,
    VirtioMem,
)
from pykvm.devices.virtio.pmem import VirtioPmem
from pykvm.memory import GuestMemory, MemoryRegion

BASE, BLOCK, COUNT = 1 << 32, 64 << 10, 16


class Bench:
    """A memory device of 16 blocks."""

    def __init__(self, requested: int | str = 0) -> None:
        self.region = MemoryRegion(BASE, COUNT * BLOCK, kind="device")
        self.ram = MemoryRegion(0, RAM)
        self.device = VirtioMem(self.region, requested, block_size=BLOCK, node=1)
        self.driver = Driver(self.device, memory=GuestMemory([self.ram, self.region]))

    def request(self, kind: int, block: int = 0, count: int = 1, odd: int = 0) -> tuple[int, int]:
        """The answer's type, and the state in it."""
        raw = struct.pack("<H6xQH6x", kind, BASE + block * BLOCK + odd & (1 << 64) - 1, count)
        return struct.unpack("<H6xH", self.driver.ask(0, raw, 10))

    @property
    def blocks(self) -> int:
        return os.fstat(self.region.fd).st_blocks * 512


def test_plugging_up_to_what_is_requested() -> None:
    bench = Bench("512K")
    assert bench.request(PLUG, 0, 4) == (ACK, 0)
    assert bench.request(PLUG, 4, 5) == (NACK, 0)
    assert bench.request(PLUG, 4, 4) == (ACK, 0)
    assert bench.request(PLUG, 8, 1) == (NACK, 0)
    assert bench.device.plugged == bench.device.requested == 512 << 10
    assert bench.driver.transport.config(48, 4) == 512 << 10  # requested_size
    assert bench.driver.transport.config(40, 4) == 512 << 10  # plugged_size
    assert bench.driver.transport.config(8, 2) == 1  # the node


def test_unplugged_blocks_go_back_to_the_host() -> None:
    bench = Bench("1M")
    bench.request(PLUG, 0, COUNT)
    bench.driver.memory.fill(BASE, COUNT * BLOCK, 7)
    assert bench.blocks == COUNT * BLOCK
    bench.device.requested = "256K"
    assert bench.driver.interrupts() & 2
    assert bench.request(UNPLUG, 2, 3) == (ACK, 0)
    assert bench.blocks == (COUNT - 3) * BLOCK
    assert bench.driver.memory.read(BASE + 2 * BLOCK, 3 * BLOCK) == bytes(3 * BLOCK)
    assert bench.device.plugged == (COUNT - 3) * BLOCK
    assert bench.request(UNPLUG_ALL) == (ACK, 0)
    assert bench.blocks == bench.device.plugged == 0


def test_states() -> None:
    bench = Bench("1M")
    bench.request(PLUG, 2, 2)
    assert bench.request(STATE, 2, 2) == (ACK, PLUGGED)
    assert bench.request(STATE, 4, 2) == (ACK, UNPLUGGED)
    assert bench.request(STATE, 0, COUNT) == (ACK, MIXED)


@pytest.mark.parametrize("kind", [PLUG, UNPLUG, STATE])
def test_senseless_requests_are_errors(kind: int) -> None:
    bench = Bench("1M")
    for block, count, odd in (
        (0, 0, 0), (0, 17, 0), (16, 1, 0), (-1, 1, 0), (15, 2, 0), (0, 1, 4096), (0, 0xFFFF, 0),
        (1 << 47, 1, 0),
    ):  # fmt: skip
        assert bench.request(kind, block, count, odd)[0] == ERROR
    assert bench.request(4)[0] == ERROR
    bench.request(PLUG, 0, 2)
    assert bench.request(PLUG, 1, 2)[0] == ERROR  # one of them is plugged
    assert bench.request(UNPLUG, 1, 2)[0] == ERROR  # one of them is not
    assert bench.device.plugged == 2 * BLOCK
    assert not bench.driver.broken


def test_short_requests_break_the_device() -> None:
    for out, room in ((b"x" * 23, 10), (bytes(24), 9), (b"", 10)):
        bench = Bench()
        bench.driver.give(0, out, room)
        assert bench.driver.broken


def test_resets_of_driver_and_machine() -> None:
    bench = Bench("1M")
    bench.request(PLUG, 0, 3)
    bench.driver.memory.fill(BASE, 3 * BLOCK, 7)
    bench.driver.go()
    assert bench.device.plugged == 3 * BLOCK  # the driver's own reset
    assert bench.driver.memory.read_u8(BASE) == 7
    saved = bench.driver.outer.save()
    bench.driver.outer.load(saved)
    assert bench.driver.memory.read_u8(BASE) == 7
    bench.driver.outer.reset()
    assert bench.device.plugged == bench.blocks == 0
    bench.driver.outer.load(saved)
    assert bench.request(STATE, 0, 3) == (ACK, PLUGGED)
    assert bench.request(STATE, 3, 13) == (ACK, UNPLUGGED)
    from pykvm.devices import DeviceStateError

    with pytest.raises(DeviceStateError):
        bench.driver.outer.load({**saved, "mem_blocks": [0, 17]})


def test_what_cannot_be() -> None:
    bench = Bench()
    for wrong in ("2M", 4096, -1, "x"):
        with pytest.raises(ValueError, match=r"region|blocks|negative|size"):
            bench.device.requested = wrong
    for size in (0, 5000, 3 << 20):
        with pytest.raises(ValueError, match="block"):
            VirtioMem(bench.region, block_size=size)


# -- persistent memory ---------------------------------------------------------------------------


def open_file(tmp_path: pathlib.Path) -> int:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 16))
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


@pytest.mark.parametrize("threaded", [False, True])
def test_flushes(threaded: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fd = open_file(tmp_path)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    device = VirtioPmem(1 << 32, 1 << 16, fd)
    thread = IoThread("test") if threaded else None
    device.io = thread
    driver = Driver(device)
    assert driver.transport.config(0, 4) == 0
    assert driver.transport.config(4, 4) == 1
    assert driver.transport.config(8, 4) == 1 << 16
    for _ in range(3):
        driver.give(0, struct.pack("<I", 0), 4)
    driver.give(0, struct.pack("<I", 9), 4)
    answers = driver.answers(0)
    while threaded and len(answers) < 4:
        time.sleep(0.001)
        answers += driver.answers(0)
    device.freeze()  # waits for what is under way
    assert sorted(answers) == [bytes(4)] * 3 + [struct.pack("<I", 1)]
    assert 1 <= len(synced) <= 3
    assert set(synced) == {fd}
    device.thaw()
    driver.outer.close()
    if thread is not None:
        thread.stop()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_flush_that_fails_says_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    device = VirtioPmem(1 << 32, 1 << 16, open_file(tmp_path))
    driver = Driver(device)
    assert driver.ask(0, struct.pack("<I", 0), 4) == struct.pack("<I", 1)
    assert device.statistics["flush"].errors == 1
    device.close()


def test_nothing_to_flush(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setattr(os, "fdatasync", lambda fd: pytest.fail("a snapshot was synced"))
    device = VirtioPmem(1 << 32, 1 << 16, open_file(tmp_path), flushes=False)
    assert Driver(device).ask(0, struct.pack("<I", 0), 4) == bytes(4)
    device.close()


def test_short_flush_requests_break_the_device(tmp_path: pathlib.Path) -> None:
    for out, room in ((b"abc", 4), (bytes(4), 3), (bytes(4), 0)):
        driver = Driver(VirtioPmem(1 << 32, 1 << 16))
        driver.give(0, out, room)
        assert driver.broken
