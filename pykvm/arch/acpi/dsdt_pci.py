"""AML of the PCI host bridge: windows, interrupt routing, link devices, reserved ECAM.

Sources: ACPI 6.5 6.2.13 (_PRT), 6.2.11 (_OSC); PCI Firmware Specification 3.3, 4.1 and 4.5; Intel
ICH9 data sheet 13.1 for the PIRQ routing registers of the LPC bridge.
"""

from __future__ import annotations

from pykvm.arch.acpi import resources
from pykvm.arch.acpi.aml import (
    BYTE_ACCESS,
    PCI_CONFIG,
    Term,
    and_,
    arg,
    create_dword_field,
    device,
    eisa_id,
    else_,
    equal,
    fields,
    find_set_right_bit,
    if_,
    local,
    method,
    name,
    not_equal,
    or_,
    package,
    region,
    return_,
    shift_left,
    store,
    subtract,
    term,
    uuid,
)
from pykvm.arch.acpi.config import AcpiConfig, PciConfig
from pykvm.arch.acpi.legacy import isa_devices
from pykvm.arch.errors import ArchError

SLOTS, PINS = 32, 4
PIRQ_REGISTERS = (0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6A, 0x6B)
"""Configuration registers of the LPC bridge: ISA interrupt of PIRQ A to H; bit 7: not routed."""
NOT_ROUTED = 0x80
ALL_FUNCTIONS = 0xFFFF
OSC_UUID = "33DB4D5B-1FF7-401C-9657-7441C03DD766"
OSC_GRANTED = 0x1D
"""Hot plug, PME, AER, PCIe capability control: all left to the OS, there is no firmware."""
CONFIG_PORTS = (0xCF8, 8)
VGA_WINDOW = (0xA0000, 0xBFFFF)


def pirq(slot: int, pin: int, count: int = 8) -> int:
    """Which PIRQ (0 is A) pin `pin` (0 is INTA) of a slot on bus 0 asserts."""
    return (slot + pin) % count


def link_name(number: int) -> str:
    """Name of a PIRQ's link device."""
    return "LNK" + "ABCDEFGH"[number]


def _pic_mode(pci: PciConfig) -> bool:
    if pci.lpc_slot is None:
        return False
    if len(pci.pirq_gsis) > len(PIRQ_REGISTERS):
        raise ArchError(f"an LPC bridge routes 8 PIRQs, not {len(pci.pirq_gsis)}")
    return True


def links(pci: PciConfig, *, pic_mode: bool) -> list[bytes]:
    """Link devices: they read and write the LPC bridge's routing registers (6.2.13)."""
    if not pic_mode or not _pic_mode(pci):
        return []
    return [_link(n, pci) for n in sorted(_pirqs(pci))]


def _pirqs(pci: PciConfig) -> set[int]:
    """The PIRQs that something asserts."""
    return {pirq(slot, pin, len(pci.pirq_gsis)) for slot, pin in pci.pins}


def _link(number: int, pci: PciConfig) -> bytes:
    register = f"\\_SB.PCI0.ISA.PRQ{'ABCDEFGH'[number]}"
    current = resources.template(resources.irq_level([]))
    # The interrupt mask is at byte 1 of the descriptor. Without _STA a link is always there and on,
    # which also spares systems a method call at each of their many walks over all devices.
    return device(
        link_name(number),
        name("_HID", eisa_id("PNP0C0F")),
        name("_UID", number + 1),
        name("_PRS", resources.template(resources.irq_level(pci.pic_irqs))),
        method("_DIS", 0, or_(register, NOT_ROUTED, register)),
        name("BUF", current),
        _create_word_field("BUF", 1, "IRQM"),
        method(
            "_CRS", 0,
            if_(
                equal(and_(register, NOT_ROUTED), 0),
                shift_left(1, and_(register, 0x0F), "IRQM"),
            ),
            else_(store(0, "IRQM")),
            return_("BUF"),
            serialized=True,
        ),
        method(
            "_SRS", 1,
            _create_word_field(arg(0), 1, "IRQW"),
            find_set_right_bit("IRQW", local(0)),
            if_(not_equal(local(0), 0), subtract(local(0), 1, register)),
            serialized=True,
        ),
    )  # fmt: skip


def _create_word_field(source: Term, offset: int, path: str) -> bytes:
    return b"\x8b" + term(source) + term(offset) + term(path)


def pci_host(config: AcpiConfig, pci: PciConfig) -> bytes:
    """The host bridge of bus 0 with what is behind it."""
    pic_mode = "pic" in config.legacy and _pic_mode(pci)
    express = pci.ecam is not None
    parts: list[Term] = [name("_HID", eisa_id("PNP0A08" if express else "PNP0A03"))]
    if express:
        parts.append(name("_CID", eisa_id("PNP0A03")))
    parts += [
        name("_UID", 0), name("_SEG", 0), name("_BBN", 0), name("_CRS", _windows(config, pci)),
    ]  # fmt: skip
    if express:
        parts.append(_osc())
    parts += _routing(pci, pic_mode)
    legacy = isa_devices(config)
    if pci.lpc_slot is not None:
        parts.append(_isa_bridge(pci, pci.lpc_slot, legacy, pic_mode))
    else:
        parts += legacy
    return device("PCI0", *parts)


def _windows(config: AcpiConfig, pci: PciConfig) -> bytes:
    buses = pci.ecam.size >> 20 if pci.ecam else 256
    ports, count = CONFIG_PORTS
    ranges = [
        resources.bus_range(0, buses - 1),
        resources.io(ports, count),
        resources.io_range(0, ports - 1),
        resources.io_range(ports + count, 0xFFFF),
    ]
    if "vga" in config.legacy:
        ranges.append(resources.memory_range32(*VGA_WINDOW, cacheable=True))
    ranges += [resources.memory_range32(w.base, w.last) for w in pci.mmio32]
    if pci.mmio64 is not None:
        ranges.append(resources.memory_range64(pci.mmio64.base, pci.mmio64.last))
    return resources.template(*ranges)


def _osc() -> bytes:
    """Which PCI Express features the OS may control: all that it asks for and can be."""
    fits = if_(
        equal(arg(0), uuid(OSC_UUID)),
        create_dword_field(arg(3), 8, "CDW3"),
        and_("CDW3", OSC_GRANTED, local(0)),
        # Bit 3: the OS asked for another revision; bit 4: not all that it asked for was granted.
        if_(not_equal(arg(1), 1), or_("CDW1", 0x08, "CDW1")),
        if_(not_equal("CDW3", local(0)), or_("CDW1", 0x10, "CDW1")),
        store(local(0), "CDW3"),
    )
    return method(
        "_OSC", 4,
        create_dword_field(arg(3), 0, "CDW1"),
        fits,
        else_(or_("CDW1", 0x04, "CDW1")),  # bit 2: unknown UUID
        return_(arg(3)),
        serialized=True,
    )  # fmt: skip


def _routing(pci: PciConfig, pic_mode: bool) -> list[bytes]:
    """_PRT; its packages are made inside a method, where loading the table does not build them."""
    count = len(pci.pirq_gsis)
    direct = [
        package(slot << 16 | ALL_FUNCTIONS, pin, 0, pci.pirq_gsis[pirq(slot, pin, count)])
        for slot, pin in pci.pins
    ]
    for slot, pin in pci.pins:
        if not (0 <= slot < SLOTS and 0 <= pin < PINS):
            raise ArchError(f"PCI slot {slot} pin {pin}: there are slots 0 to 31, pins 0 to 3")
    if not pic_mode:
        return [method("_PRT", 0, return_(package(*direct)))]
    linked = [
        package(slot << 16 | ALL_FUNCTIONS, pin, f"\\_SB.{link_name(pirq(slot, pin, count))}", 0)
        for slot, pin in pci.pins
    ]
    modes = [if_("\\PICF", return_(package(*direct))), return_(package(*linked))]
    return [method("_PRT", 0, *modes)]


def _isa_bridge(pci: PciConfig, slot: int, legacy: list[bytes], pic_mode: bool) -> bytes:
    parts: list[Term] = [name("_ADR", slot << 16)]
    if pic_mode:
        units = [(f"PRQ{'ABCDEFGH'[n]}", 8) for n in range(len(pci.pirq_gsis))]
        # Registers 0x60 to 0x63, then 0x68 to 0x6b: bits 32 to 63 between them are others.
        units.insert(4, ("", 32))
        parts.append(region("PIRQ", PCI_CONFIG, PIRQ_REGISTERS[0], 12))
        parts.append(fields("PIRQ", BYTE_ACCESS, *units))
    return device("ISA", *parts, *legacy)


def reserved(pci: PciConfig) -> list[bytes]:
    """The ECAM as a motherboard resource: OSes use it only if something reserves it (4.1.2)."""
    if pci.ecam is None:
        return []
    block = resources.memory32_fixed(pci.ecam.base, pci.ecam.size)
    return [
        device(
            "MRES",
            name("_HID", eisa_id("PNP0C02")),
            name("_UID", 0),
            name("_CRS", resources.template(block)),
        )
    ]


__all__ = ["link_name", "links", "pci_host", "pirq", "reserved"]
