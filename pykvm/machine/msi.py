"""Message-signalled interrupts into the in-kernel LAPICs, and host memory behind PCI BARs."""

from __future__ import annotations

from contextlib import suppress

from pykvm.kvm import Vm
from pykvm.kvm.errors import KvmError
from pykvm.kvm.region import MemoryRegion
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.devices.pci import RamBlock

LAPIC_MESSAGES = 0xFEE  # bits 20 and up of an address that interrupts (SDM vol. 3, 11.11.1)


class MsiSender:
    """Delivers messages to the LAPICs (KVM_SIGNAL_MSI). Without LAPICs they go nowhere."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._works = vm.irqchip != "none"

    def send(self, address: int, data: int) -> None:
        """One message: a guest-physical address and 32 bits of data, as a device writes them.

        What names no LAPIC goes nowhere: the guest chose it.
        """
        if not self._works or (address & 0xFFFF_FFFF) >> 20 != LAPIC_MESSAGES:
            return
        with suppress(KvmError):
            self._vm.signal_msi(address, data & 0xFFFF_FFFF)


class MappedRam:
    """Host memory that shows at a BAR, as a memory slot of its own."""

    def __init__(self, vm: Vm, address: int, block: RamBlock, readonly: bool) -> None:
        self._vm = vm
        self._region = MemoryRegion(address, block.size, fd=block.fd, name=block.name)
        try:
            vm.add_memory(address, block.size, region=self._region, readonly=readonly)
        except BaseException:
            self._region.close()
            raise

    def remove(self) -> None:
        """Takes the memory away from the guest."""
        if not self._vm.closed:
            self._vm.remove_memory(self._region)
        self._region.close()
