"""The life of descriptors: closing, order, finalizers, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest
from driver_guest import HLT, guest, held, out, start, store

from pykvm._native import ffi
from pykvm.errors import PykvmError
from pykvm.kvm import ClosedError, InvalidArgument, Kvm, KvmError, Vcpu
from pykvm.kvm import constants as c
from pykvm.kvm.exits import HltExit


def one_round(kvm: Kvm) -> None:
    """A VM with one of everything that holds a descriptor or a mapping; left for the caller."""
    vm = kvm.create_vm()
    vm.enable_dirty_ring(256)
    vm.create_irqchip()
    vm.create_pit2()
    region = vm.add_memory(0, 1 << 20, log_dirty=True)
    region.write(0x1000, store(0x3000, 1) + out(0x10, 1))
    vcpus = [start(vm.create_vcpu(i)) for i in range(2)]
    vm.register_coalesced(0x40, 1, pio=True)
    vcpus[0].run()
    assert (0, 3) in vm.harvest_dirty_rings()  # some kernels count pages that were only read
    vm.kernel_stats()
    vcpus[1].kernel_stats()
    vm.create_device(c.KVM_DEV_TYPE_VFIO)
    vm.resize_memory(region, 2 << 20)
    vm.close()


def test_nothing_is_left_after_200_rounds() -> None:
    with Kvm() as kvm:
        before = held()
        for _ in range(200):
            with kvm.create_vm() as vm:
                vm.add_memory(0, 1 << 20).write(0x1000, HLT)
                vcpu = start(vm.create_vcpu(0))
                assert isinstance(vcpu.run(), HltExit)
                vcpu.kernel_stats()
        assert held() == before


def test_nothing_is_left_of_one_of_everything() -> None:
    with Kvm() as kvm:
        one_round(kvm)
        before = held()
        for _ in range(20):
            one_round(kvm)
        assert held() == before


def test_nothing_is_left_when_all_is_only_dropped() -> None:
    before = held()
    for _ in range(20):
        vm = Kvm().create_vm()
        vm.add_memory(0, 1 << 20).write(0x1000, HLT)
        vcpu = start(vm.create_vcpu(0))
        assert isinstance(vcpu.run(), HltExit)
        vcpu.kernel_stats()
        del vm, vcpu
    assert held() == before


def test_a_vcpu_keeps_what_it_needs() -> None:
    vcpu = Kvm().create_vm().create_vcpu(0)
    held()  # collects garbage
    vcpu.vm.add_memory(0, 1 << 20).write(0x1000, HLT)
    assert isinstance(start(vcpu).run(), HltExit)
    vcpu.vm.close()


def test_nothing_is_left_after_failures() -> None:
    with Kvm() as kvm:
        before = held()
        for _ in range(20):
            with kvm.create_vm() as vm:
                vm.add_memory(0, 0x10000)
                vcpu = vm.create_vcpu(0)
                for attempt in (
                    lambda vm=vm: vm.add_memory(0, 0x1000),
                    lambda vm=vm: vm.add_memory(1 << 60, 0x1000),
                    lambda vm=vm: vm.add_memory(0x20000, 0x1000, huge_pages="1G"),
                    lambda vm=vm: vm.add_memory(0x20000, 0x800, guest_memfd=True),
                    lambda vm=vm: vm.create_vcpu(0),
                    lambda vm=vm: vm.create_vcpu(1 << 20),
                    lambda vm=vm: vm.create_device(4711),
                    lambda vcpu=vcpu: vcpu.set_msr(0xDEAD, 1),
                ):
                    with pytest.raises(PykvmError):
                        attempt()
        assert held() == before


def test_closing_a_vm_closes_its_vcpus_first() -> None:
    with Kvm() as kvm:
        vm = kvm.create_vm()
        region = vm.add_memory(0, 4096)
        vcpus = [vm.create_vcpu(i) for i in range(4)]
        vm.close()
        assert all(vcpu.closed for vcpu in vcpus)
        assert region.closed
        assert vm.regions == []
        assert vm.vcpus == []
        vm.close()
        for vcpu in vcpus:
            vcpu.close()


def test_use_after_close_names_the_object() -> None:
    with Kvm() as kvm:
        vm = kvm.create_vm()
        vcpu = vm.create_vcpu(7)
        device = vm.create_device(c.KVM_DEV_TYPE_VFIO)
        assert device is not None
        stats = vm.stats_fd
        vm.close()
        uses = {
            "vCPU 7 is closed": [
                vcpu.run,
                vcpu.get_regs,
                lambda: vcpu.regs.rip,
                lambda: vcpu.fpu,
                lambda: vcpu.get_msr(0x10),
                lambda: vcpu.ready_for_interrupt,
                vcpu.kernel_stats,
            ],
            "this VM is closed": [
                lambda: vm.create_vcpu(0),
                vm.create_irqchip,
                vm.get_clock,
                lambda: vm.fd,
                vm.__enter__,
                vm.kernel_stats,
            ],
            "this KVM device of type 4 is closed": [lambda: device.get_attribute(1, 1)],
            "this statistics descriptor is closed": [stats.read],
        }
        for words, calls in uses.items():
            for call in calls:
                with pytest.raises(ClosedError, match=words):
                    call()
    with pytest.raises(ClosedError, match="/dev/kvm is closed"):
        kvm.create_vm()
    assert [repr(thing) for thing in (vm, kvm)] == ["<Vm closed>", "<Kvm closed>"]


def test_closing_one_vcpu_leaves_the_others() -> None:
    with guest(HLT) as (vm, vcpu):
        second = start(vm.create_vcpu(1))
        vcpu.close()
        assert vm.vcpus == [second]
        assert isinstance(second.run(), HltExit)


def test_exit_data_that_is_still_held_survives_the_close() -> None:
    with guest(out(0x10, 0x42)) as (vm, vcpu):
        exit_ = vcpu.run()
        data = exit_.data
        vm.close()
        assert bytes(data) == b"\x42"
        assert not vcpu._native


def test_a_body_that_raises_still_closes() -> None:
    before = held()
    with contextlib.suppress(ZeroDivisionError), guest(HLT):
        raise ZeroDivisionError
    assert held() == before


def test_descriptors_are_not_inherited() -> None:
    with guest(HLT) as (vm, vcpu):
        for owner in (vm, vcpu, vm.kvm, vm.stats_fd):
            assert not os.get_inheritable(owner.fd), owner


def test_leaving_them_open_at_exit_is_quiet() -> None:
    code = """
from pykvm.kvm import Kvm
vm = Kvm().create_vm()
vm.enable_dirty_ring(256)
vm.add_memory(0, 1 << 20, log_dirty=True)
vcpu = vm.create_vcpu(0)
vcpu.harvest_dirty_ring()
vm.kernel_stats()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# -- statistics --------------------------------------------------------------------------------


def test_statistics_of_vm_and_vcpu_count_what_happens() -> None:
    with guest(out(0x10, 1) * 5 + HLT) as (vm, vcpu):
        before = vcpu.kernel_stats()
        for _ in range(6):
            vcpu.run()
        after = vcpu.kernel_stats()
        exits = [n for n in after if n.endswith("exits") and after[n] != before[n]]
        assert exits, after
        assert set(before) == {d.name for d in vcpu.stats_fd.descriptors}
        assert isinstance(after["halt_poll_success_hist"], list)
        assert "remote_tlb_flush" in vm.kernel_stats()
        assert vm.stats_fd.id.startswith("kvm-")
        assert "vcpu-0" in vcpu.stats_fd.id


def test_descriptors_of_statistics_are_sensible() -> None:
    with guest(HLT) as (vm, vcpu):
        for desc in vm.stats_fd.descriptors + vcpu.stats_fd.descriptors:
            assert desc.type in (
                "cumulative",
                "instant",
                "peak",
                "linear histogram",
                "log histogram",
            )
            assert desc.unit in ("", "bytes", "seconds", "cycles", "boolean")
            assert desc.base in (2, 10)
            assert desc.size >= 1
            assert (desc.size > 1) == desc.type.endswith("histogram")
        by_name = {d.name: d for d in vcpu.stats_fd.descriptors}
        poll = by_name["halt_poll_success_ns"]
        assert (poll.unit, poll.base, poll.exponent) == ("seconds", 10, -9)


def test_the_vm_is_gone_when_it_is_closed() -> None:
    # A statistics descriptor or a mapping that is left would keep the VM alive in the kernel.
    def alive() -> set[str]:
        path = "/sys/kernel/debug/kvm"
        return set(os.listdir(path)) if os.path.isdir(path) else set()

    before = alive()
    with guest(HLT) as (vm, vcpu):
        vcpu.kernel_stats()
        vm.kernel_stats()
    assert alive() == before


def test_errors_are_not_mixed_up_between_objects() -> None:
    with guest(HLT) as (vm, vcpu):
        with pytest.raises(KvmError, match="KVM_GET_REGS"):
            vm.ioctl("KVM_GET_REGS", ffi.new("struct kvm_regs *"))
        with pytest.raises(InvalidArgument):
            vm.add_memory(0, 4096)
        assert isinstance(vcpu, Vcpu)
        assert isinstance(vcpu.run(), HltExit)
