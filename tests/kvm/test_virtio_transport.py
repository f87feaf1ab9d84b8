"""Virtio transports on /dev/kvm: kicks and interrupts that no exit and no Python is needed for."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from asm64 import HALT, out, store
from pci_probe import Mechanism1
from virtio_driver import DONE, VERSION_1, DriverQueue, MmioTransport, PciTransport, start
from virtio_parts import Echo, written

from pykvm import Machine, StopReason
from pykvm.devices.virtio import VirtioMmio, VirtioPci
from pykvm.machine.boards import layout

BOARDS = ("microvm", "pc")
RINGS, CODE = 0x10_0000, 0x1_0000
VECTOR = 0x51


class Guest:
    """A machine with an Echo, whose driver is this test and whose kicks come from guest code."""

    def __init__(self, board: str, irqchip: str = "kernel", **options: Any) -> None:
        self.machine = Machine(board=board, memory="16M", irqchip=irqchip)  # type: ignore[arg-type]
        self.device = Echo()
        self.placed = self.machine.add_virtio(self.device, **options)
        self.load(HALT)
        self.transport: Any
        if isinstance(self.placed, VirtioPci):
            self.transport = PciTransport(
                Mechanism1(self.machine.pio), self.placed.slot, self.machine.mmio
            )
        else:
            self.transport = MmioTransport(self.machine.mmio, layout.VIRTIO_MMIO)

    def load(self, code: bytes) -> None:
        self.machine.load(code, load=CODE, entry=CODE, mode="long")

    def start(self) -> None:
        start(self.transport, VERSION_1)
        self.queues = [DriverQueue(self.machine.memory, RINGS + n * 0x2000, 16) for n in (0, 1)]
        for n, queue in enumerate(self.queues):
            self.transport.set_queue(n, 16, queue.desc, queue.driver, queue.device)
        self.transport.set_status(DONE)
        assert self.transport.status() == DONE

    def kick(self, index: int) -> bytes:
        """Guest code that notifies a queue."""
        if isinstance(self.placed, VirtioMmio):
            return store(layout.VIRTIO_MMIO + 0x50, 4, index)
        bar = self.placed.bars[4]
        assert bar is not None
        assert bar.address is not None
        return store(bar.address + 0x3000 + 4 * index, 2, index)

    def request(self, index: int) -> None:
        self.queues[index].add([(0x8000, 16, False), (0x8100, 16, True)])

    def run(self, code: bytes) -> dict[str, int]:
        """Runs guest code; the exits that it took."""
        for vcpu in self.machine.vcpus:
            vcpu.reset_stats()
        self.load(code + HALT)
        result = self.machine.run(timeout=30)
        assert result.reason is StopReason.HALTED, result.report or result.reason
        return result.exits

    def close(self) -> None:
        self.machine.close()


def make(board: str, irqchip: str = "kernel", **options: Any) -> Iterator[Guest]:
    guest = Guest(board, irqchip, **options)
    yield guest
    guest.close()


@pytest.fixture(params=BOARDS)
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    yield from make(request.param)


# -- kicks -----------------------------------------------------------------------------------------


def test_kicks_do_not_exit(guest: Guest) -> None:
    guest.start()
    for index in (0, 1):
        guest.request(index)
    exits = guest.run((guest.kick(0) + guest.kick(1)) * 20)
    assert exits.get("KVM_EXIT_MMIO", 0) == 0
    assert [len(queue.used()) for queue in guest.queues] == [1, 1]
    assert guest.device.threads == {"pykvm-io"}


def test_kicks_of_a_device_without_direct_ways_exit() -> None:
    for board in BOARDS:
        for one in make(board, direct=False, io_thread=False):
            one.start()
            one.request(1)
            assert one.run(one.kick(1) * 3)["KVM_EXIT_MMIO"] == 3
            assert len(one.queues[1].used()) == 1
            assert one.device.threads == {threading.current_thread().name}
            assert one.machine.io_threads == []


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("irqchip", ["split", "none"])
def test_other_irqchips(board: str, irqchip: str) -> None:
    for one in make(board, irqchip):
        one.start()
        one.request(0)
        assert one.run(one.kick(0)).get("KVM_EXIT_MMIO", 0) == 0
        assert len(one.queues[0].used()) == 1
        assert one.transport.acknowledge() == 1


def test_kicks_of_an_old_driver_do_not_exit() -> None:
    for one in make("pc", legacy=True):
        assert isinstance(one.placed, VirtioPci)
        bar = one.placed.bars[0]
        assert bar is not None
        base, pio, memory = bar.address, one.machine.pio, one.machine.memory
        assert base is not None
        pio.write(base + 18, 1, 3)
        pio.write(base + 8, 4, RINGS >> 12)
        pio.write(base + 18, 1, 7)
        memory.write(RINGS, (0x8000).to_bytes(8, "little") + b"\x10\0\0\0\0\0\0\0")
        memory.write_u16(RINGS + 16 * 16 + 2, 1)
        exits = one.run(out(base + 16, 2, 0) * 3)
        assert exits.get("KVM_EXIT_IO", 0) == 0
        assert memory.read_u16(RINGS + 0x1000 + 2) == 1


def test_doorbells_move_with_a_bar_while_the_device_is_live() -> None:
    for one in make("pc"):
        one.start()
        assert isinstance(one.placed, VirtioPci)
        old = one.kick(0)
        slot, new_place = one.placed.slot, 0xD000_0000
        move = b"".join(
            out(0xCF8, 4, 1 << 31 | slot << 11 | at) + out(0xCFC, 4, value)
            for at, value in ((0x20, new_place), (0x24, 0))
        )
        one.request(0)
        exits = one.run(move + old + store(new_place + 0x3000, 2, 0) * 3)
        assert exits["KVM_EXIT_MMIO"] == 1, "at the old place there is nobody any more"
        assert len(one.queues[0].used()) == 1


def test_after_a_reset_kicks_go_nowhere(guest: Guest) -> None:
    guest.start()
    kick = guest.kick(0)
    guest.transport.set_status(0)
    guest.start()
    guest.transport.set_status(0)
    assert guest.run(kick)["KVM_EXIT_MMIO"] == 1


# -- interrupts ------------------------------------------------------------------------------------


def pic_pending(machine: Machine, gsi: int) -> bool:
    chip: Any = machine.vm.get_irqchip(gsi >> 3)
    return bool(chip.irr >> (gsi & 7) & 1)


def test_mmio_signals_are_edges_of_the_line() -> None:
    for one in make("microvm"):
        one.start()
        gsi = one.machine.virtio_mmio[0][1]
        assert not pic_pending(one.machine, gsi)
        signal = one.placed.signal_for(0)
        signal.isr[0] |= signal.bits
        os.eventfd_write(signal.fd, 1)
        for _ in range(1000):  # KVM raises lines from a work queue
            if pic_pending(one.machine, gsi):
                break
            threading.Event().wait(0.01)
        assert pic_pending(one.machine, gsi)
        assert written(signal.fd) == 0, "KVM took it"
        assert one.transport.acknowledge() == 1


class Msix:
    """MSI-X of a device in a machine, with a LAPIC that takes interrupts."""

    def __init__(self, one: Guest) -> None:
        assert isinstance(one.placed, VirtioPci)
        self.one, self.placed = one, one.placed
        bar = one.placed.bars[1]
        assert bar is not None
        assert bar.address is not None
        self.table = bar.address
        self.enable_lapic()
        Mechanism1(one.machine.pio).write(one.placed.slot, 0, one.placed.msix.offset + 2, 2, 0x8000)

    def enable_lapic(self) -> None:
        vcpu = self.one.machine.vcpus[0]
        lapic = vcpu.get_lapic()
        lapic[0xF0] = 0x1FF
        for at in range(0x200, 0x280, 0x10):
            lapic[at] = 0
        vcpu.set_lapic(lapic)

    def set(self, vector: int, data: int, *, masked: bool = False) -> None:
        for at, value in ((0, 0xFEE0_0000), (4, 0), (8, data), (12, int(masked))):
            self.one.machine.mmio.write(self.table + 16 * vector + at, 4, value)

    def mask(self, vector: int, masked: bool) -> None:
        self.one.machine.mmio.write(self.table + 16 * vector + 12, 4, int(masked))

    @property
    def pending(self) -> int:
        return self.one.machine.mmio.read(self.table + self.placed.msix.pba_offset, 8)

    def queue(self, index: int, vector: int) -> None:
        self.one.transport.put(0x16, 2, index)
        self.one.transport.put(0x1A, 2, vector)

    def arrived(self) -> list[int]:
        found = list(self.one.machine.vcpus[0].get_lapic().irr)
        self.enable_lapic()
        return found


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_signals_become_messages(irqchip: str) -> None:
    for one in make("pc", irqchip):
        one.start()
        msix = Msix(one)
        msix.queue(0, 1)
        msix.queue(1, 2)
        fds = [one.placed.signal_for(n).fd for n in (0, 1)]
        msix.set(1, VECTOR)
        msix.set(2, VECTOR + 1)
        for n, fd in enumerate(fds):
            os.eventfd_write(fd, 1)
            assert written(fd) == 0, "KVM took it"
            assert msix.arrived() == [VECTOR + n]
        msix.mask(1, True)
        os.eventfd_write(fds[0], 1)
        assert msix.pending == 1 << 1
        assert msix.arrived() == []
        msix.set(1, VECTOR + 16)
        assert msix.arrived() == [VECTOR + 16]
        assert msix.pending == 0
        os.eventfd_write(fds[0], 1)
        assert msix.arrived() == [VECTOR + 16]
        one.device.config_changed()
        assert msix.arrived() == [], "the configuration has no vector"
        msix.set(0, VECTOR + 32)
        one.transport.put(0x10, 2, 0)
        one.device.config_changed()
        assert msix.arrived() == [VECTOR + 32]
        assert len(one.machine.vm.gsi_routes) >= 2


def test_no_interrupt_is_lost_while_a_vector_is_masked_and_moved() -> None:
    for one in make("pc"):
        one.start()
        msix = Msix(one)
        msix.queue(0, 1)
        fd = one.placed.signal_for(0).fd
        msix.set(1, 0x40)
        msix.arrived()
        for turn in range(200):
            data = 0x41 + turn % 64
            writer = threading.Thread(target=os.eventfd_write, args=(fd, 1))
            writer.start()
            msix.mask(1, True)
            msix.set(1, data)
            writer.join()
            one.machine.io_thread.call(lambda: None)
            assert msix.arrived(), f"turn {turn}: neither the old nor the new vector"
        assert msix.pending == 0


def test_a_pin_while_msix_is_off() -> None:
    for one in make("pc"):
        one.start()
        assert isinstance(one.placed, VirtioPci)
        signal = one.placed.signal_for(0)
        os.eventfd_write(signal.fd, 1)
        one.machine.io_thread.call(lambda: None)
        gsi = 16 + one.placed.slot % 8
        ioapic: Any = one.machine.vm.get_irqchip(2)
        assert ioapic.irr >> gsi & 1
        assert one.transport.acknowledge() == 1
        ioapic = one.machine.vm.get_irqchip(2)
        assert not ioapic.irr >> gsi & 1


# -- life ------------------------------------------------------------------------------------------


def test_pause_stops_devices_and_resume_lets_them_go_on(guest: Guest) -> None:
    guest.start()
    kick = guest.kick(0)
    guest.load(kick + b"\xeb\xfe")  # kicks, then spins
    machine = guest.machine
    machine.start()
    for _ in range(4):
        guest.request(0)
        guest.placed.kick(0)
    machine.io_thread.call(lambda: None)
    assert "request 0" in guest.device.log
    machine.pause()
    guest.device.take_log()
    guest.request(1)
    guest.placed.kick(1)
    assert guest.device.log == []
    machine.pause()
    machine.resume()
    for _ in range(1000):
        if "request 1" in guest.device.log:
            break
        threading.Event().wait(0.01)
    assert guest.device.take_log()[:2] == ["unquiesce", "request 1"]
    machine.pause()
    machine.stop()
    machine.wait(20)
    machine.resume()


def test_reset_and_close_while_paused_do_not_hang(guest: Guest) -> None:
    guest.start()
    guest.load(b"\xeb\xfe")
    machine = guest.machine
    machine.start()
    machine.pause()
    machine.stop()
    machine.wait(20)
    machine.reset()
    assert guest.transport.status() == 0
    machine.close()


def test_what_was_kicked_before_the_end_is_done(guest: Guest) -> None:
    guest.start()
    for _ in range(8):
        guest.request(0)
    guest.device.before = lambda queue: threading.Event().wait(0.002)
    guest.run(guest.kick(0))
    assert len(guest.queues[0].used()) == 8


def test_nothing_leaks() -> None:
    def there() -> tuple[int, int]:
        gc.collect()
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = None
    for turn in range(200):
        one = Guest(BOARDS[turn % 2], io_thread=[None, True, False][turn % 3])
        one.start()
        one.placed.signal_for(0)
        one.request(0)
        if turn % 10 == 0:
            one.run(one.kick(0))
        if turn % 4 == 1:
            one.machine.reset()
        one.close()
        if turn == 3:
            before = there()
    assert there() == before


def test_hostile_registers_with_threads(guest: Guest) -> None:
    """Registers, signals, freezes and resets from four threads at once: nothing raises or hangs."""
    import logging
    import random

    logging.disable(logging.WARNING)
    placed, machine = guest.placed, guest.machine
    guest.start()
    signal = placed.signal_for(0).fd
    errors: list[BaseException] = []
    spans = [r for r in machine.mmio.ranges if r.name.startswith("echo")]

    def body(seed: int) -> None:
        dice = random.Random(seed)
        try:
            for _ in range(400):
                what = dice.random()
                span = dice.choice(spans)
                offset = dice.choice([0x14, 0x16, 0x1A, 0x1C, 0x30, 0x44, 0x50, 0x64, 0x70, 0xC0])
                if span.length > 0x1000:
                    offset += dice.choice([0, 0, 0, 0x1000, 0x3000])
                offset = min(offset, span.length - 4)
                if what < 0.5:
                    value = dice.choice([0, 1, 3, 0x0B, 0x0F, 0x8000, dice.getrandbits(32)])
                    size = dice.choice([1, 2, 4])
                    span.write(offset, size, value & (1 << 8 * size) - 1)
                elif what < 0.7:
                    span.read(offset, 4)
                elif what < 0.8:
                    os.eventfd_write(signal, 1)
                elif what < 0.9:
                    placed.kick(dice.randrange(3))
                else:
                    guest.device.freeze()
                    guest.device.thaw()
        except BaseException as error:
            errors.append(error)

    try:
        threads = [threading.Thread(target=body, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a deadlock"
        assert errors == []
        guest.device.before = lambda queue: None
        guest.start()
        guest.device.take_log()
        guest.request(0)
        guest.placed.kick(0)
        machine.io_thread.call(lambda: None, timeout=20)
        assert len(guest.queues[0].used()) == 1
    finally:
        logging.disable(logging.NOTSET)
