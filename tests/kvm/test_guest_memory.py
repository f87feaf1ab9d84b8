"""GuestMemory under a running guest: one memory, seen from both sides."""

from __future__ import annotations

import pathlib

import pytest

from pykvm.arch import presets
from pykvm.kvm import Kvm
from pykvm.kvm.exits import HltExit
from pykvm.memory import GuestMemory, RegionError

# mov esi, 0x200000; mov edi, 0x5000; mov ecx, 0x400; rep movsd; hlt; jmp to the start
COPY = bytes.fromhex("be00002000 bf00500000 b900040000 f3a5 f4 ebec")


def test_guest_and_host_see_the_same_bytes() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.add_memory(0, 1 << 20)
        vm.add_memory(0x20_0000, 1 << 20)
        memory = GuestMemory(vm.regions)
        memory.write(0x1000, COPY)
        vcpu = vm.create_vcpu(0)
        presets.protected32(0x1000, tables=0x1_0000).apply(vcpu, memory)
        source, target = memory.view(0x20_0000, 4096), memory.view(0x5000, 4096)
        for turn in range(1, 4):
            source[:] = bytes((n * turn) & 0xFF for n in range(4096))
            assert isinstance(vcpu.run(), HltExit)
            assert target == source
            assert memory.read_u32(0x5004) == int.from_bytes(source[4:8], "little")
        # Pages given back to the host are zeros to the guest too, and can be used again.
        memory.fill(0x20_0000, 1 << 20)
        assert list(vm.regions[1].extents()) == []
        assert isinstance(vcpu.run(), HltExit)
        assert memory.read(0x5000, 4096) == bytes(4096)
        memory.write_u64(0x20_0FF8, 0x1122334455667788)
        assert isinstance(vcpu.run(), HltExit)
        assert memory.find((0x1122334455667788).to_bytes(8, "little")) == 0x5FF8
    assert bytes(target[-8:]) == (0x1122334455667788).to_bytes(8, "little")  # the VM is closed


def free_huge_pages() -> int:
    path = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    return int(path.read_text()) if path.exists() else 0


def test_huge_pages_are_used_or_their_lack_is_named() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        if free_huge_pages() < 2:
            with pytest.raises(RegionError, match="huge pages"):
                vm.add_memory(0, 4 << 20, huge_pages="2M")
            assert vm.regions == []
            return
        vm.add_memory(0, 4 << 20, huge_pages="2M").write(0x1000, b"\xf4")
        vcpu = vm.create_vcpu(0)
        presets.real_mode(0x1000).apply(vcpu)
        assert isinstance(vcpu.run(), HltExit)
