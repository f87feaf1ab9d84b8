"""The smaller virtio devices on real machines: memory slots, files, host memory that comes back.

The driver's side is in this process: it rings the registers on the machine's bus, and the requests
go through the machine's I/O thread.
"""

from __future__ import annotations

import os
import pathlib
import struct
import time
from collections.abc import Callable

import pytest
from virtio_driver import DONE, DriverQueue, MmioTransport, start

from pykvm import Machine
from pykvm.devices.chardev import BufferChardev
from pykvm.machine import MachineError
from pykvm.machine.boards import layout

pytestmark = pytest.mark.kvm
PAGE = 4096
MIB = 1 << 20


class Guest:
    """The driver of a machine's virtio-mmio device `slot`, with its rings at 16 MiB."""

    def __init__(self, machine: Machine, slot: int, queues: int) -> None:
        self.machine = machine
        base = layout.VIRTIO_MMIO + slot * layout.VIRTIO_MMIO_SIZE
        self.transport = MmioTransport(machine.mmio, base)
        start(self.transport, self.transport.features() & 0x1_0000_FFFF)
        self.queues = []
        for index in range(queues):
            queue = DriverQueue(machine.memory, 16 * MIB + 0x4000 * index, 16)
            self.transport.set_queue(index, 16, queue.desc, queue.driver, queue.device)
            self.queues.append(queue)
        self.transport.set_status(DONE)

    def request(self, index: int, out: bytes, room: int = 0) -> bytes:
        """One request, and its answer from the I/O thread."""
        at = 17 * MIB
        self.machine.memory.write(at, out + b"\xcc" * room)
        buffers = [(at, len(out), False), (at + len(out), room, True)]
        queue = self.queues[index]
        queue.add([buffer for buffer in buffers if buffer[1]])
        self.transport.kick(index)
        while not (done := queue.used()):
            time.sleep(0.001)
        return self.machine.memory.read(at + len(out), done[0][1])


def blocks(machine: Machine) -> int:
    """Bytes that the guest's memory takes on the host."""
    return sum(
        os.fstat(region.fd).st_blocks * 512
        for region in machine.memory.regions
        if region.kind != "file"
    )


def test_every_device_on_both_boards_and_nothing_is_left(tmp_path: pathlib.Path) -> None:
    image = tmp_path / "pmem"
    image.write_bytes(bytes(2 * MIB))

    def once(board: str) -> None:
        with Machine(memory="64M", board=board) as m:
            m.add_rng(rate=1 << 20)
            m.add_balloon("8M", period=1)
            m.add_console(f"file:{tmp_path / 'console'}")
            m.add_port("org.pykvm.test", BufferChardev())
            m.add_virtio_mem("1G", requested="256M")
            m.add_pmem(image)
            m.add_keyboard()
            m.add_pointer("mouse")
            m.add_gpu(640, 480)
            if board == "pc":
                m.add_serial2(BufferChardev())
            assert sum(size for _, size in m.memory.ram) <= 64 * MIB
            for _ in range(2):
                m.load("hello64")
                assert m.run(timeout=30).exit_code == 0
                m.reset()

    once("microvm")
    before = len(os.listdir("/proc/self/fd"))
    for board in ("microvm", "pc"):
        once(board)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_balloon_takes_and_gives_back_real_memory() -> None:
    with Machine(memory="64M") as m:
        balloon = m.add_balloon()
        guest = Guest(m, 0, 5)
        m.memory.fill(32 * MIB, 16 * MIB, 0x5A)
        full = blocks(m)
        numbers = range(32 * MIB // PAGE, 48 * MIB // PAGE)
        for at in range(0, len(numbers), 256):
            part = numbers[at : at + 256]
            guest.request(0, struct.pack(f"<{len(part)}I", *part))
        assert full - blocks(m) >= 16 * MIB - MIB
        assert balloon.discarded == 16 * MIB
        assert m.statistics()["virtio-balloon"]["inflate"]["bytes"] == 16 * MIB
        m.memory.fill(32 * MIB, 16 * MIB, 1)
        assert full - blocks(m) < MIB
        with pytest.raises(ValueError, match="more than the guest's"):
            balloon.target = "65M"


def test_memory_that_grows_and_shrinks() -> None:
    with Machine(memory="64M") as m:
        device = m.add_virtio_mem("128M", requested="64M", block_size="2M")
        gpa = device.region.gpa
        guest = Guest(m, 0, 1)

        def ask(kind: int, count: int) -> int:
            raw = struct.pack("<H6xQH6x", kind, gpa, count)
            return int(struct.unpack_from("<H", guest.request(0, raw, 10))[0])

        assert ask(0, 32) == 0
        m.memory.fill(gpa, 64 * MIB, 7)
        assert blocks(m) >= 64 * MIB
        assert device.plugged == 64 * MIB
        device.requested = 0
        assert ask(1, 32) == 0
        assert blocks(m) < 32 * MIB
        device.requested = "16M"
        assert ask(0, 8) == 0
        m.reset()
        assert device.plugged == 0
        assert device.requested == 16 * MIB


def test_persistent_memory_is_a_slot_of_the_vm(tmp_path: pathlib.Path) -> None:
    image = tmp_path / "pmem"
    image.write_bytes(b"stored!!" + bytes(2 * MIB - 8))
    with Machine(memory="64M") as m:
        pmem = m.add_pmem(image)
        m.load("hello64")
        for region in m.vm.regions:
            if region.gpa == pmem.gpa:
                assert region.slot is not None
                break
        else:
            pytest.fail("persistent memory is in no slot of the VM")
        assert m.memory.read(pmem.gpa, 8) == b"stored!!"


@pytest.mark.parametrize("mode", ["plain", "snapshot", "readonly"])
def test_what_reaches_the_file(mode: str, tmp_path: pathlib.Path) -> None:
    image = tmp_path / "pmem"
    image.write_bytes(b"old" + bytes(2 * MIB - 3))
    with Machine(memory="64M") as m:
        pmem = m.add_pmem(image, snapshot=mode == "snapshot", readonly=mode == "readonly")
        guest = Guest(m, 0, 1)
        m.memory.write(pmem.gpa, b"new")
        assert guest.request(0, bytes(4), 4) == bytes(4)
        m.reset()
        assert m.memory.read(pmem.gpa, 3) == b"new"  # it is persistent
        assert pmem.statistics["flush"].requests == 1
    assert image.read_bytes()[:3] == (b"new" if mode == "plain" else b"old")


def test_what_cannot_be_leaves_nothing(tmp_path: pathlib.Path) -> None:
    image = tmp_path / "pmem"
    image.write_bytes(bytes(2 * MIB))
    odd = tmp_path / "odd"
    odd.write_bytes(bytes(5000))
    with Machine(memory="64M") as m, Machine(memory="64M", board="bare") as bare:
        regions, fds = len(m.memory.regions), len(os.listdir("/proc/self/fd"))
        tries: list[tuple[Callable[[], object], str]] = [
            (lambda: m.add_pmem(odd), "truncate"),
            (lambda: m.add_pmem(tmp_path / "none"), "cannot be opened"),
            (lambda: m.add_pmem(image, readonly=True, snapshot=True), "not both"),
            (lambda: m.add_virtio_mem("3M"), "blocks"),
            (lambda: m.add_virtio_mem("1G", requested="2G"), "more than"),
            (lambda: m.add_virtio_mem("100000T"), "address"),
            (lambda: m.add_balloon("x"), "size"),
            (lambda: m.add_console(ports=99), "ports"),
            (lambda: m.add_gpu(0, 1), "not possible"),
            (lambda: m.add_pointer("pen"), "tablet"),
            (lambda: m.add_serial2("null"), "COM2"),
            (lambda: bare.add_rng(), "bare"),
            (lambda: bare.add_pmem(image), "bare"),
        ]
        for call, text in tries:
            with pytest.raises(MachineError, match=text):
                call()
        assert len(m.memory.regions) == regions
        assert len(os.listdir("/proc/self/fd")) == fds
        m.add_pmem(image)
        with pytest.raises(MachineError, match="in use"):
            m.add_pmem(image)
