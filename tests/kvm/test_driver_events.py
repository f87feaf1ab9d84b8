"""irqfd, ioeventfd and coalesced writes: I/O between guest and host without exits."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator

import pytest
from driver_guest import (
    CLI,
    HLT,
    IRET,
    STI,
    expect_out,
    guest,
    out,
    pic_init,
    set_ds,
    set_vector,
    store,
)

from pykvm.kvm import InvalidArgument, Kvm, KvmError, Vm
from pykvm.kvm.exits import HltExit, IoExit, MmioExit

EOI = out(0x20, 0x20)
WAIT = CLI + pic_init(0x20, 0xEF) + out(0x11, 0) + STI + HLT + CLI + out(0x11, 0xEE) + b"\xeb\xf7"


@pytest.fixture
def vm() -> Iterator[Vm]:
    with Kvm() as kvm, kvm.create_vm() as made:
        yield made


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.fixture
def event2() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def count(fd: int) -> int:
    """How often the eventfd was signalled since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


# -- irqfd -------------------------------------------------------------------------------------


def test_irqfd_interrupts_the_guest(event: int) -> None:
    with guest(WAIT, prepare=Vm.create_irqchip) as (vm, vcpu):
        set_vector(vm, 0x24, out(0x12, 4) + EOI + IRET)
        vm.assign_irqfd(event, 4)
        expect_out(vcpu, 0x11, 0)
        for _ in range(3):
            os.eventfd_write(event, 1)
            expect_out(vcpu, 0x12, 4)
            expect_out(vcpu, 0x11, 0xEE)
        vm.deassign_irqfd(event, 4)
        os.eventfd_write(event, 1)
        assert vm.get_irqchip(0).irr & 0x10 == 0


def test_irqfd_with_resample_is_level_triggered(event: int, event2: int) -> None:
    with guest(WAIT, prepare=Vm.create_irqchip) as (vm, vcpu):
        set_vector(vm, 0x24, out(0x12, 4) + EOI + IRET)
        vm.assign_irqfd(event, 4, resample_fd=event2)
        expect_out(vcpu, 0x11, 0)
        os.eventfd_write(event, 1)
        expect_out(vcpu, 0x12, 4)
        assert count(event2) == 0  # not acknowledged yet
        expect_out(vcpu, 0x11, 0xEE)
        assert select.select([event2], [], [], 5)[0] == [event2]
        assert count(event2) == 1
        vm.deassign_irqfd(event, 4)


def test_impossible_irqfds(vm: Vm, event: int) -> None:
    with pytest.raises(InvalidArgument, match=r"gsi=4 .*call create_irqchip\(\) first"):
        vm.assign_irqfd(event, 4)
    vm.create_irqchip()
    vm.assign_irqfd(event, 4)
    with pytest.raises(KvmError, match=r"gsi=4 .*raises an interrupt of a VM already") as info:
        vm.assign_irqfd(event, 4)
    assert info.value.errno == errno.EBUSY
    with open("/dev/null") as plain, pytest.raises(KvmError, match="gsi=5"):
        vm.assign_irqfd(plain, 5)
    with pytest.raises(InvalidArgument, match=r"fd=-0x1"):
        vm.assign_irqfd(-1, 4)
    with pytest.raises(InvalidArgument, match=r"gsi=-0x1"):
        vm.assign_irqfd(event, -1)
    vm.deassign_irqfd(event, 4)


# -- ioeventfd ---------------------------------------------------------------------------------


def test_ioeventfd_on_a_port(event: int) -> None:
    with guest(out(0x40, 1) + out(0x40, 2) + out(0x41, 3) + HLT) as (vm, vcpu):
        vm.assign_ioeventfd(event, 0x40, 1, pio=True)
        expect_out(vcpu, 0x41, 3)
        assert count(event) == 2
        vm.deassign_ioeventfd(event, 0x40, 1, pio=True)
        assert isinstance(vcpu.run(), HltExit)


def test_ioeventfd_with_datamatch(event: int) -> None:
    with guest(out(0x40, 1) + out(0x40, 2) + HLT) as (vm, vcpu):
        vm.assign_ioeventfd(event, 0x40, 1, pio=True, datamatch=2)
        expect_out(vcpu, 0x40, 1)
        assert isinstance(vcpu.run(), HltExit)
        assert count(event) == 1


@pytest.mark.parametrize("length", [0, 1, 2, 4])
def test_ioeventfd_of_each_length_on_mmio(event: int, length: int) -> None:
    writes = {
        1: b"\xc6\x06\x00\x00\x11",
        2: b"\xc7\x06\x00\x00\x22\x11",
        4: b"\x66\xc7\x06\x00\x00\x44\x33\x22\x11",
    }
    with guest(set_ds(0xF000) + b"".join(writes.values()) + HLT) as (vm, vcpu):
        vm.resize_memory(vm.regions[0], 0x1_0000)
        vm.assign_ioeventfd(event, 0xF_0000, length)
        sizes = []
        while isinstance(exit_ := vcpu.run(), MmioExit):
            sizes.append(exit_.size)
        assert isinstance(exit_, HltExit)
        if length == 0:  # a write of any length
            assert (sizes, count(event)) == ([], 3)
        else:
            assert sizes == [size for size in writes if size != length]
            assert count(event) == 1


def test_ioeventfd_of_8_bytes_is_accepted(vm: Vm, event: int) -> None:
    vm.assign_ioeventfd(event, 0xD000_0000, 8, datamatch=(1 << 64) - 1)
    vm.deassign_ioeventfd(event, 0xD000_0000, 8, datamatch=(1 << 64) - 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"address": 0x40, "length": 3}, r"length=3 .*0 \(any\), 1, 2, 4 or 8"),
        ({"address": 1 << 16, "length": 1, "pio": True}, "port=0x10000 .*must be in"),
        ({"address": 0xFFFF, "length": 2, "pio": True}, "past the last address"),
        ({"address": (1 << 64) - 1, "length": 4}, "past the last address"),
        ({"address": 0x40, "length": 0, "datamatch": 1}, "datamatch needs a length"),
        ({"address": 0x40, "length": 1, "datamatch": 256}, "datamatch=0x100"),
    ],
)
def test_impossible_ioeventfds(vm: Vm, event: int, arguments: dict, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        vm.assign_ioeventfd(event, **arguments)


def test_ioeventfd_collisions_and_absence(vm: Vm, event: int, event2: int) -> None:
    vm.assign_ioeventfd(event, 0x40, 1, pio=True)
    with pytest.raises(KvmError, match=r"port=0x40 .*is at this address already"):
        vm.assign_ioeventfd(event2, 0x40, 1, pio=True)
    with pytest.raises(KvmError, match=r"port=0x41 .*no such ioeventfd"):
        vm.deassign_ioeventfd(event, 0x41, 1, pio=True)
    with open("/dev/null") as plain, pytest.raises(KvmError, match=r"port=0x50 .*E"):
        vm.assign_ioeventfd(plain, 0x50, 1, pio=True)


# -- coalesced writes ----------------------------------------------------------------------------


def test_coalesced_ports_come_back_in_order() -> None:
    code = out(0x40, 1) + out(0x40, 2) + out(0x42, 3) + out(0x50, 9)
    with guest(code) as (vm, vcpu):
        assert vm.drain_coalesced() == []
        vm.register_coalesced(0x40, 4, pio=True)
        assert vm.coalesced_zones == [(True, 0x40, 4)]
        expect_out(vcpu, 0x50, 9)
        writes = vm.drain_coalesced()
        assert [(w.is_pio, w.address, w.value) for w in writes] == [
            (True, 0x40, 1),
            (True, 0x40, 2),
            (True, 0x42, 3),
        ]
        assert vm.drain_coalesced() == []


def test_coalesced_mmio_keeps_the_width() -> None:
    code = store(0, 0x11) + b"\xc7\x06\x08\x00\x22\x33" + b"\x66\xc7\x06\x10\x00\x44\x55\x66\x77"
    with guest(set_ds(0xF000) + code + out(0x50, 9)) as (vm, vcpu):
        vm.resize_memory(vm.regions[0], 0x1_0000)
        vm.register_coalesced(0xF_0000, 0x1000)
        expect_out(vcpu, 0x50, 9)
        assert [(w.is_pio, w.address, w.data) for w in vm.drain_coalesced()] == [
            (False, 0xF_0000, b"\x11"),
            (False, 0xF_0008, b"\x22\x33"),
            (False, 0xF_0010, b"\x44\x55\x66\x77"),
        ]


def test_a_full_ring_loses_nothing() -> None:
    # mov cx, 500; again: mov al, cl; out 0x40, al; loop again; out 0x50, 9
    code = b"\xb9\xf4\x01" + b"\x88\xc8\xe6\x40\xe2\xfa" + out(0x50, 9)
    with guest(code) as (vm, vcpu):
        vm.register_coalesced(0x40, 1, pio=True)
        seen = []
        exits = 0
        while True:
            exit_ = vcpu.run()
            assert isinstance(exit_, IoExit)
            seen += [w.value for w in vm.drain_coalesced()]
            if exit_.port == 0x50:
                break
            seen.append(exit_.value)
            exits += 1
        assert seen == [(500 - i) & 0xFF for i in range(500)]
        assert 1 <= exits <= 10


def test_zones_of_a_vcpu_made_later_and_of_two() -> None:
    with guest(out(0x40, 1) + HLT) as (vm, vcpu):
        vm.register_coalesced(0x40, 1, pio=True)
        second = vm.create_vcpu(1)
        vcpu.run()
        assert len(vm.drain_coalesced()) == 1
        second.sregs.cs.base = second.sregs.cs.selector = 0
        second.regs.rip = 0x1000
        second.run()
        vcpu.close()
        assert len(vm.drain_coalesced()) == 1


def test_unregistered_zones_exit_again() -> None:
    with guest(out(0x40, 1) + out(0x40, 2)) as (vm, vcpu):
        vm.register_coalesced(0x40, 1, pio=True)
        with pytest.raises(InvalidArgument, match=r"port=0x40 size=0x1 .*registered already"):
            vm.register_coalesced(0x40, 1, pio=True)
        vm.unregister_coalesced(0x40, 1, pio=True)
        expect_out(vcpu, 0x40, 1)
        with pytest.raises(InvalidArgument, match=r"port=0x40 size=0x1 .*no such zone"):
            vm.unregister_coalesced(0x40, 1, pio=True)


@pytest.mark.parametrize(
    ("address", "size", "pio"),
    [(0, 0, False), (0xFFFF, 2, True), (-1, 1, False), (0, 1 << 32, False)],
)
def test_impossible_zones(vm: Vm, address: int, size: int, pio: bool) -> None:
    with pytest.raises(InvalidArgument, match="non-empty and below the last address"):
        vm.register_coalesced(address, size, pio=pio)


def test_coalesced_writes_come_before_the_exit_in_a_loop() -> None:
    with guest(out(0x40, 1) + out(0x50, 9), prepare=lambda vm: None) as (vm, vcpu):
        assert vm.coalesced_page == 2
        vm.register_coalesced(0x40, 1, pio=True)
        exit_ = vcpu.run()
        assert isinstance(exit_, IoExit)
        assert (exit_.port, [w.value for w in vm.drain_coalesced()]) == (0x50, [1])
