"""The DSDT: what is on the board, in AML (ACPI 6.5 chapters 5, 6 and 9).

`\\_SB` holds the processors, the PCI host bridge with the ISA devices behind it, and what is on
no bus. Without a PCI host the ISA devices are in `\\_SB` themselves.
"""

from __future__ import annotations

from pykvm.arch.acpi import resources
from pykvm.arch.acpi.aml import (
    Term,
    arg,
    device,
    eisa_id,
    method,
    name,
    package,
    scope,
    store,
    text,
)
from pykvm.arch.acpi.config import AcpiConfig, MmioDevice
from pykvm.arch.acpi.dsdt_pci import links, pci_host, reserved
from pykvm.arch.acpi.legacy import isa_devices
from pykvm.arch.acpi.madt import node_of_cpu
from pykvm.arch.acpi.table import Table, sdt

PRESENT, PRESENT_HIDDEN = 0x0F, 0x0B
"""_STA: present, enabled, working; shown to users or not (6.3.7)."""


def dsdt(config: AcpiConfig) -> Table:
    """The table; revision 2, so that integers have 64 bits."""
    body = _globals(config)
    inside: list[Term] = [*_processors(config)]
    pci = config.pci
    if pci is not None:
        inside += links(pci, pic_mode="pic" in config.legacy)
        inside.append(pci_host(config, pci))
        inside += reserved(pci)
    else:
        inside += isa_devices(config)
    inside += _board_devices(config)
    body += scope("\\_SB", *inside)
    return sdt(config, "DSDT", 2, body)


def _globals(config: AcpiConfig) -> bytes:
    sleep_type = 0
    if config.hardware_reduced:
        sleep_type = config.sleep.sleep_type_s5 if config.sleep else 0
    elif config.pm is not None:
        sleep_type = config.pm.sleep_type_s5
    body = b""
    if config.pci is not None:
        # The OS says which interrupt controllers it uses: 0 the 8259s, 1 the IOAPIC (5.8.1).
        body += name("\\PICF", 0)
        body += method("\\_PIC", 1, store(arg(0), "\\PICF"))
    if config.sleep is not None or not config.hardware_reduced:
        body += name("\\_S5", package(sleep_type, sleep_type, 0, 0))
    return body


def _processors(config: AcpiConfig) -> list[bytes]:
    nodes = node_of_cpu(config) if config.numa else {}
    cpus = []
    for uid in range(len(config.cpus)):
        parts: list[Term] = [
            name("_HID", text("ACPI0007")), name("_UID", uid), name("_STA", PRESENT),
        ]  # fmt: skip
        if uid in nodes:
            parts.append(name("_PXM", nodes[uid]))
        cpus.append(device(f"C{uid:03X}", *parts))
    return cpus


def _board_devices(config: AcpiConfig) -> list[bytes]:
    found = []
    if config.fw_cfg is not None:
        found.append(
            device(
                "FWCF",
                name("_HID", text("QEMU0002")),
                name("_STA", PRESENT_HIDDEN),
                name("_CRS", resources.template(resources.io(config.fw_cfg, 12))),
            )
        )
    if config.pvpanic is not None:
        found.append(
            device(
                "PEVT",
                name("_HID", text("QEMU0001")),
                name("_STA", PRESENT),
                name("_CRS", resources.template(resources.io(config.pvpanic, 1))),
            )
        )
    if config.hpet is not None:
        block = resources.memory32_fixed(config.hpet, 0x400, writable=False)
        found.append(
            device(
                "HPET",
                name("_HID", eisa_id("PNP0103")),
                name("_UID", 0),
                name("_CRS", resources.template(block)),
            )
        )
    found += [_virtio(n, where) for n, where in enumerate(config.virtio_mmio)]
    return found


def _virtio(number: int, where: MmioDevice) -> bytes:
    return device(
        f"VR{number:02X}",
        name("_HID", text("LNRO0005")),
        name("_UID", number),
        name(
            "_CRS",
            resources.template(
                resources.memory32_fixed(where.base, where.size),
                resources.interrupt(where.gsi, level=False),
            ),
        ),
    )
