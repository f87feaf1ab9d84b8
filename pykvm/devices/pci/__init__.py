"""PCI: configuration space, BARs that move, INTx and MSI, the host bridge and LPC bridge of a Q35.

Each name is imported when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.devices.pci.assign import Window, assign_bars
    from pykvm.devices.pci.bar import Bar, BarMapper, Mapping, RamBlock, Registers
    from pykvm.devices.pci.bus import PciBus
    from pykvm.devices.pci.chipset import Ich9Lpc, Q35HostBridge
    from pykvm.devices.pci.config import PciError
    from pykvm.devices.pci.device import PciDevice
    from pykvm.devices.pci.host import PciHost
    from pykvm.devices.pci.intx import IntxRouter, SharedLine
    from pykvm.devices.pci.mapper import BusMapper
    from pykvm.devices.pci.msi import MsiCapability, MsiSender, MsixCapability
    from pykvm.devices.pci.testdev import PciTestDev

_HOMES = {
    "Bar": "bar",
    "BarMapper": "bar",
    "BusMapper": "mapper",
    "Ich9Lpc": "chipset",
    "IntxRouter": "intx",
    "Mapping": "bar",
    "MsiCapability": "msi",
    "MsiSender": "msi",
    "MsixCapability": "msi",
    "PciBus": "bus",
    "PciDevice": "device",
    "PciError": "config",
    "PciHost": "host",
    "PciTestDev": "testdev",
    "Q35HostBridge": "chipset",
    "RamBlock": "bar",
    "Registers": "bar",
    "SharedLine": "intx",
    "Window": "assign",
    "assign_bars": "assign",
}

__all__ = [
    "Bar",
    "BarMapper",
    "BusMapper",
    "Ich9Lpc",
    "IntxRouter",
    "Mapping",
    "MsiCapability",
    "MsiSender",
    "MsixCapability",
    "PciBus",
    "PciDevice",
    "PciError",
    "PciHost",
    "PciTestDev",
    "Q35HostBridge",
    "RamBlock",
    "Registers",
    "SharedLine",
    "Window",
    "assign_bars",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
