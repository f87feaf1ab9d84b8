"""Memory slots: adding, moving, resizing, removing; read-only; what is refused and how."""

from __future__ import annotations

import errno
import mmap
import threading
import time

import pytest
from driver_guest import ENTRY, HLT, expect_out, guest, set_ds, start, store

from pykvm.kvm import ClosedError, InvalidArgument, Kvm, KvmError, MemoryRegion, Unsupported, Vm
from pykvm.kvm.exits import HltExit, MmioExit

# mov al, [0]; out 0x10, al  (in DS)
LOAD = b"\xa0\x00\x00\xe6\x10"


@pytest.fixture
def vm():
    with Kvm() as kvm, kvm.create_vm() as made:
        yield made


def test_the_guest_sees_the_region_and_the_region_the_guest() -> None:
    with guest(store(0x3000, 0x5A) + HLT) as (vm, vcpu):
        region = vm.regions[0]
        assert isinstance(vcpu.run(), HltExit)
        assert region.read(0x3000, 1) == b"\x5a"


def test_slots_are_counted_up_and_reused(vm: Vm) -> None:
    first, second, third = (vm.add_memory(i << 20, 4096) for i in range(3))
    assert [r.slot for r in vm.regions] == [0, 1, 2]
    vm.remove_memory(second)
    assert second.closed
    assert vm.regions == [first, third]
    assert vm.add_memory(0x8000_0000, 4096).slot == 1
    assert vm.add_memory(0x9000_0000, 4096, slot=17).slot == 17
    assert vm.region_at(0x9000_0FFF) is vm.region_of_slot(17)
    assert vm.region_at(0x9000_1000) is None
    with pytest.raises(InvalidArgument, match=r"slot=99 .*no memory in that slot"):
        vm.region_of_slot(99)


@pytest.mark.parametrize(
    ("gpa", "size", "slot", "words", "number"),
    [
        (0x1000, 0x1000, None, r"gpa=0x1000 .*overlaps the memory at 0x0..0xffff", errno.EEXIST),
        (0xF000, 0x2000, None, "overlaps", errno.EEXIST),
        (0x20000, 0x1000, 0, "slot=0 .*holds 0x0..0xffff", errno.EEXIST),
        (0x20800, 0x1000, None, "gpa=0x20800 .*multiple of 4 KiB", errno.EINVAL),
        (0x20000, 0x1001, None, "size=0x1001 .*multiple of 4 KiB", errno.EINVAL),
        (0x20000, 0, None, "size=0x0 .*not 0", errno.EINVAL),
        (-0x1000, 0x1000, None, "gpa=-0x1000", errno.EINVAL),
        (0x20000, 0x1000, -1, "slot=-0x1", errno.EINVAL),
        (0x20000, 0x1000, 0x7FFF, "slot=32767 .*has the slots 0 to", errno.EINVAL),
        (0x20000, 0x1000, 5 << 16, "no address space 5", errno.EINVAL),
        ((1 << 64) - 0x1000, 0x2000, None, "ends above 2.64", errno.EINVAL),
        (0x20000, 1 << 43, None, "a slot holds at most", errno.EINVAL),
        (1 << 60, 0x1000, None, "gpa=0x1000000000000000 .*place it lower", errno.EINVAL),
    ],
)
def test_impossible_places(
    vm: Vm, gpa: int, size: int, slot: int | None, words: str, number: int
) -> None:
    region = vm.add_memory(0, 0x10000)
    with pytest.raises(Exception, match=words) as info:
        vm.add_memory(gpa, size, slot=slot)
    assert getattr(info.value, "errno", None) == number
    assert vm.regions == [region]
    vm.add_memory(0x10000, 0x1000)  # nothing half-made is in the way


def test_neighbours_do_not_overlap(vm: Vm) -> None:
    vm.add_memory(0x1000, 0x1000)
    vm.add_memory(0, 0x1000)
    vm.add_memory(0x2000, 0x1000)
    assert [r.gpa for r in vm.regions] == [0, 0x1000, 0x2000]


def test_readonly_memory_reads_and_its_writes_come_out() -> None:
    with guest(set_ds(0xF000) + LOAD + store(0, 0x77) + LOAD + HLT) as (vm, vcpu):
        vm.resize_memory(vm.regions[0], 0xF_0000)
        rom = vm.add_memory(0xF_0000, 0x1000, readonly=True)
        rom.write(0xF_0000, b"\x21")
        expect_out(vcpu, 0x10, 0x21)
        exit_ = vcpu.run()
        assert isinstance(exit_, MmioExit)
        assert (exit_.gpa, exit_.is_write, exit_.value) == (0xF_0000, True, 0x77)
        expect_out(vcpu, 0x10, 0x21)


def test_moving_memory_moves_its_contents() -> None:
    with guest(set_ds(0x2000) + LOAD + HLT) as (vm, vcpu):
        vm.resize_memory(vm.regions[0], 0x1_0000)
        region = vm.add_memory(0x5_0000, 0x1000)
        region.write(0x5_0000, b"\x99")
        vm.move_memory(region, 0x2_0000)
        assert (region.gpa, region.read(0x2_0000, 1)) == (0x2_0000, b"\x99")
        expect_out(vcpu, 0x10, 0x99)
        with pytest.raises(InvalidArgument, match="overlaps"):
            vm.move_memory(region, 0xF000)
        assert region.gpa == 0x2_0000
        vm.move_memory(region, 0x2_0000)  # onto itself is no overlap


@pytest.mark.parametrize("size", [0x8000, 0x4_0000])
def test_resizing_keeps_what_fits(vm: Vm, size: int) -> None:
    old = vm.add_memory(0, 0x1_0000)
    old.write(0, b"first")
    old.write(0x7FF0, b"in the middle of")
    old.write(0xFFF0, b"at the very end.")
    new = vm.resize_memory(old, size)
    assert old.closed
    assert vm.regions == [new]
    assert (new.slot, new.size) == (0, size)
    pages = sum(length for _, length in new.extents()) // 0x1000
    assert pages == (3 if size > 0x1_0000 else 2)  # the holes stay holes
    assert new.read(0, 5) == b"first"
    assert new.read(0x7FF0, 16) == b"in the middle of"
    if size > 0x1_0000:
        assert new.read(0xFFF0, 32) == b"at the very end." + bytes(16)
        assert new.read(size - 1, 1) == b"\0"


def test_a_refused_resize_leaves_all_as_it_was(vm: Vm) -> None:
    low = vm.add_memory(0, 0x1000)
    vm.add_memory(0x2000, 0x1000)
    low.write(0, b"kept")
    with pytest.raises(InvalidArgument, match="overlaps the memory at 0x2000"):
        vm.resize_memory(low, 0x3000)
    with pytest.raises(InvalidArgument, match="multiple of 4 KiB"):
        vm.resize_memory(low, 0x1800)
    assert vm.regions[0] is low
    assert low.read(0, 4) == b"kept"


def test_memory_is_not_pulled_from_under_a_running_vcpu() -> None:
    with guest(b"\xeb\xfe") as (vm, vcpu):  # jmp $
        thread = threading.Thread(target=vcpu.run)
        thread.start()
        try:
            deadline = time.monotonic() + 10
            while not vcpu._native.tid and time.monotonic() < deadline:
                time.sleep(0.001)
            region = vm.regions[0]
            for change in (
                lambda: vm.resize_memory(region, 0x20_0000),
                lambda: vm.move_memory(region, 0x100_0000),
                vm.close,
            ):
                with pytest.raises(InvalidArgument, match="vCPU 0 is running in another thread"):
                    change()
            vm.add_memory(0x1000_0000, 0x1000)  # adding is fine
        finally:
            vcpu.kick()
            thread.join(10)
        assert not thread.is_alive()
        vm.resize_memory(region, 0x20_0000)
        start(vcpu, ENTRY)


def test_memory_of_another_vm_is_refused(vm: Vm) -> None:
    with vm.kvm.create_vm() as other:
        foreign = other.add_memory(0, 0x1000)
        for use in (
            lambda: vm.remove_memory(foreign),
            lambda: vm.move_memory(foreign, 0x5000),
            lambda: vm.get_dirty_log(foreign),
        ):
            with pytest.raises(InvalidArgument, match="not memory of this VM"):
                use()


def test_memory_that_the_caller_brings(vm: Vm) -> None:
    with MemoryRegion(0x4000, 0x2000) as mine:
        mine.write(0x4000, b"mine")
        assert vm.add_memory(0x4000, 0x2000, region=mine) is mine
        with pytest.raises(InvalidArgument, match="it is in slot 0 of a VM already"):
            vm.add_memory(0x4000, 0x2000, region=mine)
        vm.close()
        assert mine.slot is None
        assert mine.read(0x4000, 4) == b"mine"
    with vm.kvm.create_vm() as other, MemoryRegion(0x4000, 0x2000) as mine:
        with pytest.raises(InvalidArgument, match="it is 0x2000 bytes at 0x4000, not 0x1000"):
            other.add_memory(0x4000, 0x1000, region=mine)
        why = "no guest_memfd of its own|lacks KVM_CAP_USER_MEMORY2"  # the latter before 6.8
        with pytest.raises(KvmError, match=why):
            other.add_memory(0x4000, 0x2000, region=mine, guest_memfd=True)
        other.add_memory(0x4000, 0x2000, region=mine)
        other.remove_memory(mine)
        assert not mine.closed
        mine.close()
        with pytest.raises(ClosedError, match="region at 0x4000 is closed"):
            other.add_memory(0x4000, 0x2000, region=mine)


def test_views_outlive_the_vm() -> None:
    with Kvm() as kvm:
        vm = kvm.create_vm()
        region = vm.add_memory(0, 0x1000)
        region.write(0, b"still here")
        view = region.view
        vm.close()
        assert bytes(view[:10]) == b"still here"
        with pytest.raises(ClosedError, match="region"):
            region.read(0, 1)
        with pytest.raises(ClosedError, match="this VM is closed"):
            vm.add_memory(0, 0x1000)


def test_guest_memfd(vm: Vm) -> None:
    for argument in ("readonly", "log_dirty"):
        if vm.check_extension("KVM_CAP_USER_MEMORY2"):
            with pytest.raises(InvalidArgument, match=f"{argument}=True"):
                vm.add_memory(0, 0x1000, guest_memfd=True, **{argument: True})
    if not vm.check_extension("KVM_CAP_GUEST_MEMFD"):
        with pytest.raises(Unsupported, match="KVM_CAP_"):
            vm.add_memory(0, 0x1000, guest_memfd=True)
        return
    region = vm.add_memory(0, 0x1_0000, guest_memfd=True)
    assert region.guest_memfd is not None
    assert region.flags == 4
    for change in (
        lambda: vm.move_memory(region, 0x10_0000),
        lambda: vm.resize_memory(region, 0x2_0000),
        lambda: vm.set_log_dirty(region, True),
    ):
        with pytest.raises(InvalidArgument, match="slot=0"):
            change()
    vm.remove_memory(region)
    assert vm.regions == []


def test_guest_and_host_see_the_same_guest_memfd(vm: Vm) -> None:
    if not vm.check_extension("KVM_CAP_GUEST_MEMFD_FLAGS") & 1:
        with pytest.raises(Unsupported):
            vm.set_private(0, 0x1000)  # no way to look into one, nor to make one
        return
    region = vm.add_memory(0, 1 << 20, guest_memfd=True)
    region.write(ENTRY, store(0x3000, 0x5A) + LOAD.replace(b"\0\0", b"\0\x30") + HLT)
    vcpu = start(vm.create_vcpu(0))
    expect_out(vcpu, 0x10, 0x5A)
    assert region.read(0x3000, 1) == b"\x5a"
    assert list(region.extents()) == [(0, 1 << 20)]  # a guest_memfd does not know its holes
    with mmap.mmap(region.guest_memfd or -1, 1 << 20) as direct:
        assert direct[0x3000] == 0x5A


def test_private_memory_or_a_clear_refusal(vm: Vm) -> None:
    vm.add_memory(0, 0x1_0000)
    if vm.check_extension("KVM_CAP_MEMORY_ATTRIBUTES"):
        with pytest.raises(InvalidArgument, match="multiples of 4 KiB"):
            vm.set_private(0x10, 0x1000)
    else:
        with pytest.raises(Unsupported, match="KVM_CAP_MEMORY_ATTRIBUTES"):
            vm.set_private(0, 0x1000)
