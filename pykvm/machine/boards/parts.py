"""The parts of every board: RAM, interrupt controllers, vCPUs."""

from __future__ import annotations

from collections.abc import Iterator

from pykvm.kvm import Kvm, Vcpu, Vm
from pykvm.kvm.cpuid import read_cpuid_table
from pykvm.machine.boards import layout
from pykvm.memory import GuestMemory
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine.cpus import Cpus

_HUGE = {"2M": 2 << 20, "1G": 1 << 30}


def add_irqchip(vm: Vm, irqchip: str, cpus: int = 1) -> None:
    """The interrupt controllers. After the memory: adding a slot then waits for KVM's readers.

    The order is KVM's: identity map and TSS first, then the chips, the PIT after them, and only
    then vCPUs.
    """
    vm.set_identity_map_addr(layout.IDENTITY_MAP)
    vm.set_tss_addr(layout.TSS_ADDRESS)
    if irqchip == "kernel":
        vm.create_irqchip()
        vm.create_pit2(speaker=True)
    elif irqchip == "split":
        vm.create_split_irqchip()
    if cpus > 1:
        vm.set_boot_cpu_id(0)


def add_ram(vm: Vm, size: int, huge_pages: str | None, *, vga_window: bool = False) -> GuestMemory:
    """RAM from 0, with the hole below 4 GiB where devices are, and on a PC the VGA window."""
    pieces = layout.ram_pieces(size, pc=vga_window)
    if huge_pages in _HUGE and len(pieces) > 1:
        pieces = list(_on_borders(pieces, _HUGE[huge_pages]))
    regions = []
    for gpa, length in pieces:
        page = _HUGE.get(huge_pages or "", 1)
        # What lies beside the VGA window is too small; otherwise a wrong size is an error.
        fits = len(pieces) == 1 or not (gpa % page or length < page)
        regions.append(vm.add_memory(gpa, length, huge_pages=huge_pages if fits else None))
    return GuestMemory(regions)


def _on_borders(pieces: list[tuple[int, int]], page: int) -> Iterator[tuple[int, int]]:
    """The pieces, cut where the first whole huge page begins."""
    for gpa, length in pieces:
        border = -(-gpa // page) * page
        if gpa < border < gpa + length:
            yield gpa, border - gpa
            yield border, gpa + length - border
        else:
            yield gpa, length


def make_vcpus(vm: Vm, count: int, kvm: Kvm, cpus: Cpus | None = None) -> list[Vcpu]:
    """vCPUs with the CPUID of a model, or just that which the host supports.

    A vCPU's id is its APIC ID: as the topology has it, else its index.
    """
    if cpus is not None:
        vcpus = [vm.create_vcpu(apic_id) for apic_id in cpus.apic_ids]
        for vcpu in vcpus:
            cpus.apply(vcpu)
        return vcpus
    table = read_cpuid_table(kvm, "KVM_GET_SUPPORTED_CPUID")
    vcpus = []
    for index in range(count):
        vcpu = vm.create_vcpu(index)
        set_cpuid(vcpu, table, index)
        vcpus.append(vcpu)
    return vcpus


def set_cpuid(vcpu: Vcpu, table: Any, index: int) -> None:
    """The host's CPUID table, with this vCPU's APIC id in it."""
    for entry in table.entries[0 : table.nent]:
        if entry.function == 1:
            entry.ebx = entry.ebx & 0x00FF_FFFF | index << 24
            entry.ecx |= 1 << 31  # a hypervisor is present
        elif entry.function in (0xB, 0x1F):
            entry.edx = index
    vcpu.set_cpuid(table)
