"""Snapshots of whole machines, put back in place: real guests, stopped and going on."""

from __future__ import annotations

import gc
import os
import pathlib
import random
import threading
import time
from typing import Any

import pytest

from pykvm import Machine, images
from pykvm.devices.chardev import BufferChardev
from pykvm.machine import Status, StopReason
from pykvm.machine.snapshot import Snapshot, SnapshotError

GUESTS = ["hello16", "hello32", "hello64", "exceptions", "interrupts", "smp", "modes", "selfmod"]


def machine_for(name: str, **options: Any) -> Machine:
    image = images.find(name)
    machine = Machine(**{"cpus": image.cpus, "irqchip": image.irqchip, **options})
    machine.load(name)
    return machine


@pytest.mark.parametrize("board", ["microvm", "pc"])
@pytest.mark.parametrize("name", GUESTS)
def test_a_run_after_restore_is_the_run_after_the_snapshot(name: str, board: str) -> None:
    if board == "pc" and name not in ("hello64", "interrupts", "smp"):
        board = "microvm"  # the others use none of what a pc has
    with machine_for(name, board=board) as m:
        start = m.snapshot()
        first = m.run(timeout=20)
        end = m.snapshot()
        for _ in range(2):
            m.restore(start, verify=True)
            again = m.run(timeout=20)
            assert (again.reason, again.value, again.serial) == (
                first.reason, first.value, first.serial,
            )  # fmt: skip
            m.restore(end, verify=True)
        assert end.verify(m) is None
        assert start.verify(m) is not None


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_a_guest_is_interrupted_anywhere_and_ends_the_same(irqchip: str) -> None:
    """Timers, interrupts, SMP: a snapshot is taken while the guest runs in another thread."""
    for name in ("interrupts", "smp", "exceptions"):
        image = images.find(name)
        with Machine(cpus=image.cpus, irqchip=irqchip) as m:
            m.load(name)
            whole = m.run(timeout=30)
            m.reset()
            m.start(timeout=30)
            taken: list[tuple[Snapshot, int]] = []
            for _ in range(3):
                snapshot = m.snapshot()
                taken.append((snapshot, m.standard.captured.total if m.standard else 0))
            first = m.wait(40)
            assert first is not None
            assert first.serial == whole.serial
            for snapshot, _ in reversed(taken):
                m.restore(snapshot, verify=True)
                end = m.run(timeout=30)
                assert (end.reason, end.value) == (whole.reason, whole.value)
                assert whole.serial.endswith(end.serial)


def test_a_running_machine_is_restored_from_another_thread() -> None:
    with machine_for("echo") as m:
        assert m.standard is not None
        backend = BufferChardev()
        m.close()
    with Machine(serial=backend) as m:
        m.load("echo")
        m.start()
        assert backend.wait_for("", 1)
        backend.feed("one\r")
        assert backend.wait_for("one", 20)
        snapshot = m.snapshot()
        backend.feed("two\r")
        assert backend.wait_for("two", 20)
        m.restore(snapshot)
        assert m.status is Status.RUNNING
        backend.feed("three\r\x04")
        assert backend.wait_for("three", 20)
        result = m.wait(20)
        assert result is not None
        assert not result.reason.is_crash


def test_a_crashed_machine_runs_again_after_restore() -> None:
    with machine_for("triplefault") as m:
        snapshot = m.snapshot()
        for _ in range(3):
            result = m.run(timeout=10)
            assert result.reason is StopReason.SHUTDOWN
            assert m.status is Status.CRASHED
            m.restore(snapshot, verify=True)
            assert m.status is Status.READY
            assert m.crash_reason == ""


def test_snapshots_are_restored_in_any_order() -> None:
    """Random writes by the host between and after snapshots, against plain copies."""
    rng = random.Random(7)
    with Machine(memory="4M", board="bare", irqchip="none") as m:
        taken: list[tuple[Snapshot, bytes]] = []
        for _ in range(60):
            if taken and rng.random() < 0.5:
                snapshot, contents = rng.choice(taken)
                m.restore(snapshot, verify=True)
                assert m.memory.read(0, 4 << 20) == contents
            for _ in range(rng.randrange(4)):
                gpa = rng.randrange(0, (4 << 20) - 9000)
                kind = rng.randrange(5)
                if kind == 0:
                    m.memory.write(gpa, rng.randbytes(rng.randrange(1, 9000)))
                elif kind == 1:
                    m.memory.write_u64(gpa, rng.getrandbits(64))
                elif kind == 2:
                    m.memory.view(gpa, 5)[:] = b"view!"
                elif kind == 3:
                    m.memory.fill(gpa, 9000)
                else:
                    m.memory.discard(gpa, 9000)
            if rng.random() < 0.4:
                taken.append((m.snapshot(), m.memory.read(0, 4 << 20)))
            if len(taken) > 5:
                taken.pop(rng.randrange(5))


def test_only_what_was_written_is_put_back() -> None:
    with machine_for("exceptions", memory="256M") as m:
        snapshot = m.snapshot()
        m.restore(snapshot)
        assert m.last_restore is not None
        assert m.last_restore.pages == 0
        m.memory.write(0x500000, b"x")
        m.memory.write(0x7FFFFF, b"yz")
        m.restore(snapshot)
        assert m.last_restore.pages == 3
        assert set(m.last_restore.phases) >= {"dirty_log", "copy", "vcpus", "chips", "devices"}
        m.run(timeout=10)
        m.restore(snapshot, verify=True)
        assert 0 < m.last_restore.pages < 100


def test_disks_go_back_with_the_machine(tmp_path: pathlib.Path) -> None:
    """The guest writes to both disks; each restore puts their contents back."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 4096)
    with Machine() as m:
        overlaid = m.add_disk(path, snapshot=True)
        in_memory = m.add_disk(bytes(1 << 20))
        m.load("hello64")
        disks = [overlaid.backend, in_memory.backend]
        rng = random.Random(3)
        taken: list[tuple[Snapshot, list[bytes]]] = []
        for _ in range(40):
            for disk in disks:
                if rng.random() < 0.6:
                    disk.write(rng.randrange(0, 1 << 20) & -512, rng.randbytes(512))
            if rng.random() < 0.3:
                taken.append((m.snapshot(), [disk.read(0, 1 << 20) for disk in disks]))
            elif taken:
                snapshot, contents = rng.choice(taken)
                m.restore(snapshot, verify=True)
                assert [disk.read(0, 1 << 20) for disk in disks] == contents
    assert path.read_bytes() == bytes(range(256)) * 4096


@pytest.mark.parametrize("board", ["microvm", "pc"])
def test_a_guest_that_writes_its_disk_is_put_back_in_mid_request(board: str) -> None:
    with Machine(board=board) as m:
        disk = m.add_disk(bytes(4 << 20))
        m.load("virtio-records")
        start = m.snapshot()
        m.start(timeout=60)
        deadline = time.monotonic() + 30
        while disk.requests < 20 and time.monotonic() < deadline:
            time.sleep(0.001)
        middle = m.snapshot()
        contents = disk.backend.read(0, 4 << 20)
        time.sleep(0.05)
        m.stop()
        m.wait(30)
        assert disk.requests >= 20
        for snapshot in (middle, start, middle):
            m.restore(snapshot, verify=True)
            if snapshot is middle:
                assert disk.backend.read(0, 4 << 20) == contents
            before = disk.requests
            m.start(timeout=60)
            deadline = time.monotonic() + 30
            while disk.requests < before + 20 and time.monotonic() < deadline:
                time.sleep(0.001)
            m.stop()
            m.wait(30)
            assert disk.requests >= before + 20
            assert disk.errors == 0


def test_a_disk_that_is_written_in_place_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    with Machine() as m:
        m.add_disk(path)
        m.load("hello64")
        with pytest.raises(SnapshotError, match="written in place"):
            m.snapshot()
        snapshot = m.snapshot(disks="ignore")
        m.run(timeout=10)
        m.restore(snapshot, verify=True)


def test_input_that_waited_waits_again() -> None:
    backend = BufferChardev()
    with Machine(serial=backend) as m:
        m.load("echo")
        backend.feed("abc" * 20 + "\x04")
        snapshot = m.snapshot()
        outputs = set()
        for _ in range(3):
            outputs.add(m.run(timeout=20).serial)
            m.restore(snapshot, verify=True)
        assert len(outputs) == 1
        assert b"abcabc" in outputs.pop()


def test_another_machines_snapshot_is_refused() -> None:
    with machine_for("hello64") as m, machine_for("hello64") as other:
        snapshot = m.snapshot()
        with pytest.raises(SnapshotError, match="another machine"):
            other.restore(snapshot)


def test_not_inside_a_handler() -> None:
    with machine_for("hello64") as m:
        seen: list[str] = []

        @m.on_pio(0x3F8, size=1)
        def port(access: Any) -> None:
            if not seen:
                with pytest.raises(SnapshotError, match="handler"):
                    m.snapshot()
                seen.append("refused")

        m.run(timeout=10)
        assert seen


def test_the_verifier_names_what_differs() -> None:
    with machine_for("hello64") as m:
        snapshot = m.snapshot()
        vcpu = m.vcpus[0]
        m.memory.regions[0].view[0x123456] ^= 0xFF  # past all the tracking
        assert "0x123456" in (snapshot.verify(m) or "")
        m.memory.regions[0].view[0x123456] ^= 0xFF
        assert snapshot.verify(m) is None
        vcpu.regs.r12 = 77
        assert "r12 is 0x4d" in (snapshot.verify(m) or "")
        m.restore(snapshot, verify=True)
        vcpu.set_msr(0xC0000102, 0x1000)
        assert "KERNEL_GS_BASE" in (snapshot.verify(m) or "")
        m.restore(snapshot, verify=True)
        m.serial.write(7, 1, 0x5A)
        assert "scr" in (snapshot.verify(m) or "")
        m.restore(snapshot, verify=True)
        vcpu.debugregs = vcpu.debugregs.replace(db=(1, 2, 3, 4))
        assert "db[0]" in (snapshot.verify(m) or "")
        m.restore(snapshot, verify=True)


def test_ten_thousand_resets_do_not_grow() -> None:
    def used() -> tuple[int, int]:
        gc.collect()
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]), len(os.listdir("/proc/self/fd"))

    with machine_for("hello64", memory="8M") as m:
        m.add_disk(bytes(1 << 20))
        snapshot = m.snapshot()
        rng = random.Random(1)

        def turns(count: int) -> None:
            for turn in range(count):
                m.memory.write_u64(rng.randrange(0, 1 << 20) * 8 & 0x7FFFF8, turn)
                m.restore(snapshot, verify=turn % 1000 == 0)

        turns(2000)
        before = used()
        turns(8000)
        after = used()
        assert after[1] == before[1]
        assert after[0] - before[0] < 256  # pages
    assert threading.active_count() < 20


def test_memory_of_transparent_huge_pages_goes_back() -> None:
    with Machine(memory="16M", huge_pages="thp") as m:
        m.load("hello64")
        m.memory.write(0x800000, b"before")
        snapshot = m.snapshot()
        m.run(timeout=10)
        m.memory.write(0x800000, b"after.")
        m.memory.write(0xC00000, b"new")
        m.restore(snapshot, verify=True)
        assert m.memory.read(0x800000, 6) == b"before"
        assert m.memory.read(0xC00000, 3) == bytes(3)
        assert m.run(timeout=10).exit_code == 0
