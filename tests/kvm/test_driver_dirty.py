"""Dirty page tracking: bitmaps with and without manual clearing, and rings."""

from __future__ import annotations

import pytest
from driver_guest import HLT, NOP, guest, out, set_ds, start, store

from pykvm.kvm import ClosedError, InvalidArgument, Kvm, KvmError
from pykvm.kvm.exits import DirtyRingFullExit, HltExit, IoExit


def stores(pages: list[int]) -> list[int]:
    """Without the code's page: KVM may map that writable at its first use, and call it dirty."""
    return [page for page in pages if page != 0x1000]


def pairs(entries: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same for the entries of a ring."""
    return [entry for entry in entries if entry != (0, 1)]


TOUCH = store(0x3000, 1) + store(0x5008, 2) + HLT  # pages 3 and 5


def test_dirty_log_reads_and_clears() -> None:
    with guest(TOUCH, log_dirty=True) as (vm, vcpu):
        region = vm.regions[0]
        vm.get_dirty_log(region)
        assert isinstance(vcpu.run(), HltExit)
        bitmap = vm.get_dirty_log(region)
        assert len(bitmap) == (1 << 20) // 4096 // 8
        assert int.from_bytes(bitmap, "little") & ~(1 << 1) == 1 << 3 | 1 << 5
        assert vm.dirty_pages(region) == []
        start(vcpu)
        vcpu.run()
        assert stores(vm.dirty_pages(region)) == [0x3000, 0x5000]


def test_dirty_pages_are_addresses_of_the_region() -> None:
    with guest(set_ds(0x8000) + store(0x1004, 1) + HLT) as (vm, vcpu):
        vm.resize_memory(vm.regions[0], 0x1_0000)
        high = vm.add_memory(0x8_0000, 0x4000, log_dirty=True)
        vcpu.run()
        assert vm.dirty_pages(high) == [0x8_1000]


def test_logging_can_be_switched_on_and_off() -> None:
    with guest(TOUCH) as (vm, vcpu):
        region = vm.regions[0]
        with pytest.raises(InvalidArgument, match=r"slot=0 .*writes are not logged"):
            vm.get_dirty_log(region)
        vm.set_log_dirty(region, True)
        vcpu.run()
        assert stores(vm.dirty_pages(region)) == [0x3000, 0x5000]
        vm.set_log_dirty(region, False)
        with pytest.raises(InvalidArgument, match="writes are not logged"):
            vm.get_dirty_log(region)


def test_manual_clearing_clears_only_what_it_is_told() -> None:
    with guest(TOUCH, log_dirty=True) as (vm, vcpu):
        region = vm.regions[0]
        vm.enable_manual_dirty_log()
        vcpu.run()
        assert stores(vm.dirty_pages(region)) == [0x3000, 0x5000]
        assert stores(vm.dirty_pages(region)) == [0x3000, 0x5000]  # reading does not clear
        vm.clear_dirty_log(region, (1 << 3).to_bytes(8, "little"), 0, 64)
        assert stores(vm.dirty_pages(region)) == [0x5000]
        vm.clear_dirty_log(region)
        assert vm.dirty_pages(region) == []
        start(vcpu)
        vcpu.run()
        assert stores(vm.dirty_pages(region)) == [0x3000, 0x5000]


def test_initially_set() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.enable_manual_dirty_log(initially_set=True)
        region = vm.add_memory(0, 0x10_0000)
        vm.set_log_dirty(region, True)
        assert len(vm.dirty_pages(region)) == 256


@pytest.mark.parametrize(
    ("bitmap", "first", "count", "words"),
    [
        (None, 1, None, "first_page=1 .*multiple of 64 below 100"),
        (None, 128, None, "first_page=128"),
        (None, -64, None, "first_page=-64"),
        (None, 0, 65, "num_pages=65 .*multiple of 64"),
        (None, 64, 64, "num_pages=64 .*last of the region's 100 pages"),
        (None, 0, 0, "num_pages=0"),
        (bytes(7), 0, 64, "bitmap of 7 bytes .*64 pages need 8"),
    ],
)
def test_impossible_clears(bitmap: bytes | None, first: int, count: int | None, words: str) -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.enable_manual_dirty_log()
        region = vm.add_memory(0, 100 * 4096, log_dirty=True)
        with pytest.raises(InvalidArgument, match=words):
            vm.clear_dirty_log(region, bitmap, first, count)
        vm.clear_dirty_log(region, None, 64)  # to the region's end
        vm.clear_dirty_log(region, bytes(8), 0, 64)


def with_ring(entries: int = 256):
    return lambda vm: vm.enable_dirty_ring(entries)


def test_dirty_ring_tells_slot_and_page() -> None:
    with guest(TOUCH, prepare=with_ring(), log_dirty=True) as (vm, vcpu):
        assert vm.dirty_ring_size == 256 * 16
        assert vcpu.harvest_dirty_ring() == []
        vcpu.run()
        found = vm.harvest_dirty_rings()
        assert pairs(found) == [(0, 3), (0, 5)]
        assert vm.harvest_dirty_rings() == []
        assert vm.reset_dirty_rings() == len(found)
        assert vm.reset_dirty_rings() == 0
        for _ in range(200):  # far enough to wrap around
            start(vcpu)
            vcpu.run()
            found = vcpu.harvest_dirty_ring()
            assert pairs(found) == [(0, 3), (0, 5)]
            assert vm.reset_dirty_rings() == len(found)


def test_dirty_ring_can_be_harvested_in_parts() -> None:
    with guest(TOUCH, prepare=with_ring(), log_dirty=True) as (_, vcpu):
        vcpu.run()
        found = []
        while one := vcpu.harvest_dirty_ring(limit=1):
            assert len(one) == 1
            found += one
        assert pairs(found) == [(0, 3), (0, 5)]
        assert vcpu.harvest_dirty_ring(limit=0) == []


def test_a_full_ring_stops_the_guest_and_goes_on() -> None:
    # bx = 0x100, cx = 224; again: es = bx; es:[0] = 1; bx += 0x100; loop again
    # An emulating KVM looks at the ring only now and then: the NOPs keep it from overrunning.
    code = b"\xbb\x00\x01" + b"\xb9\xe0\x00"
    loop = b"\x8e\xc3" + b"\x26\xc6\x06\x00\x00\x01" + b"\x81\xc3\x00\x01" + NOP * 40
    code += loop + b"\xe2" + bytes([256 - len(loop) - 2]) + out(0x10, 0x77)
    with guest(code, prepare=with_ring(), log_dirty=True) as (vm, vcpu):
        found = []
        exits = 0
        while not isinstance(exit_ := vcpu.run(), IoExit):
            assert isinstance(exit_, DirtyRingFullExit), str(exit_)
            found += vm.harvest_dirty_rings()
            vm.reset_dirty_rings()
            exits += 1
            assert exits < 100
        assert exit_.port == 0x10
        found += vm.harvest_dirty_rings()
        assert exits >= 1  # the kernel keeps some of the 256 entries back
        assert {page for slot, page in found if slot == 0} == set(range(1, 225))


def test_ring_and_bitmap_exclude_each_other() -> None:
    with (
        guest(TOUCH, prepare=with_ring(), log_dirty=True) as (vm, _),
        pytest.raises(KvmError, match=r"slot=0 .*dirty rings instead"),
    ):
        vm.get_dirty_log(vm.regions[0])


def test_impossible_rings() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        largest = vm.check_extension("KVM_CAP_DIRTY_LOG_RING") // 16
        for entries in (0, 128, 300, largest * 2):
            with pytest.raises(InvalidArgument, match=f"power of two from 256 to {largest}"):
                vm.enable_dirty_ring(entries)
        vcpu = vm.create_vcpu(0)
        with pytest.raises(InvalidArgument, match=r"call vm.enable_dirty_ring"):
            vcpu.harvest_dirty_ring()
        with pytest.raises(InvalidArgument, match="has 1 vCPUs already"):
            vm.enable_dirty_ring(256)
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.enable_dirty_ring(512)
        with pytest.raises(InvalidArgument, match="has dirty rings"):
            vm.enable_dirty_ring(512)


def test_a_closed_vcpu_has_no_ring() -> None:
    with guest(TOUCH, prepare=with_ring(), log_dirty=True) as (vm, vcpu):
        vcpu.run()
        ring = vcpu.dirty_ring
        vcpu.close()
        with pytest.raises(ClosedError, match="vCPU 0 is closed"):
            vcpu.harvest_dirty_ring()
        with pytest.raises(ClosedError, match="dirty ring"):
            ring.harvest()
        assert vm.harvest_dirty_rings() == []
