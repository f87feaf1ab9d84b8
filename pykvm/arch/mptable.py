"""The MP table of Intel's MultiProcessor Specification 1.4: for kernels that read no ACPI.

One blob: the floating pointer (16 bytes) and behind it the configuration table. Systems look for
the pointer at multiples of 16 in the EBDA, in the last KiB of conventional memory and in
0xF0000-0xFFFFF.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from pykvm.arch.errors import ArchError
from pykvm.typed import NamedTuple

DEFAULT_BASE = 0xF0000
"""Guest-physical address that every system searches."""

FLOATING_SIZE, HEADER_SIZE = 16, 44
PROCESSOR, BUS, IOAPIC, IO_INTERRUPT, LOCAL_INTERRUPT = range(5)
INT, NMI, SMI, EXTINT = range(4)
"""Types of interrupt (4.3.4)."""
ALL_LAPICS = 0xFF
INTEGRATED_APIC = 0x14
"""Local APIC version: built into the processor."""
IOAPIC_VERSION = 0x11
LEVEL_HIGH, LEVEL_LOW = 0x0D, 0x0F
"""Interrupt flags: polarity in bits 1:0, trigger in bits 3:2; 0 is what the bus has."""
MAX_CPUS = 254


class PciInterrupt(NamedTuple):
    """Pin `pin` (0 is INTA) of slot `slot` on PCI bus 0 asserts IOAPIC input `gsi`."""

    slot: int
    pin: int
    gsi: int


def pci_interrupts(pirq_gsis: Sequence[int], pins: Iterable[tuple[int, int]]) -> list[PciInterrupt]:
    """Routing in which pin p of slot s asserts PIRQ (s + p) mod their number; for (s, p) pins."""
    count = len(pirq_gsis)
    return [PciInterrupt(slot, pin, pirq_gsis[(slot + pin) % count]) for slot, pin in pins]


def build(
    cpus: Sequence[int],
    base_gpa: int = DEFAULT_BASE,
    *,
    signature: int = 0,
    features: int = 0,
    ioapic_id: int | None = None,
    ioapic_base: int = 0xFEC0_0000,
    lapic_base: int = 0xFEE0_0000,
    timer_pin: int = 2,
    level_irqs: Sequence[int] = (9,),
    pci: Sequence[PciInterrupt] = (),
    pic: bool = True,
) -> bytes:
    """The blob for guest-physical `base_gpa` (a multiple of 16), the first CPU being the BSP.

    `cpus`: APIC IDs below 255. `signature`, `features`: EAX and EDX of CPUID leaf 1. `ioapic_id`
    None takes the first free APIC ID. `timer_pin`: IOAPIC input of ISA interrupt 0. `level_irqs`:
    ISA interrupts that are level-triggered, active high. `pic`: two 8259s are wired to LINT0.
    Raises `ArchError` for more CPUs than the table can name, or an APIC ID that it cannot hold.
    """
    if not 1 <= len(cpus) <= MAX_CPUS or max(cpus) >= ALL_LAPICS or min(cpus) < 0:
        raise ArchError(
            f"an MP table names 1 to {MAX_CPUS} CPUs with APIC IDs below 255, not {len(cpus)} up "
            f"to {max(cpus, default=0)}; leave it out, ACPI can"
        )
    if base_gpa % 16 or not 0 <= base_gpa < 1 << 32:
        raise ArchError(f"an MP table starts at a multiple of 16 below 4 GiB, not {base_gpa:#x}")
    if ioapic_id is None:
        ioapic_id = next(n for n in range(256) if n not in cpus)
    entries = [_processor(n == 0, apic_id, signature, features) for n, apic_id in enumerate(cpus)]
    isa = 0
    if pci:
        entries.append(struct.pack("<BB6s", BUS, 0, b"PCI".ljust(6)))
        isa = 1
    entries.append(struct.pack("<BB6s", BUS, isa, b"ISA".ljust(6)))
    entries.append(struct.pack("<BBBBI", IOAPIC, ioapic_id, IOAPIC_VERSION, 1, ioapic_base))
    entries += _isa_interrupts(isa, ioapic_id, timer_pin, level_irqs)
    for slot, pin, gsi in pci:
        entries.append(_interrupt(INT, LEVEL_LOW, 0, slot << 2 | pin, ioapic_id, gsi))
    if pic:
        entries.append(_local(EXTINT, isa, 0, 0))
    entries.append(_local(NMI, isa, ALL_LAPICS, 1))
    table = _header(b"".join(entries), len(entries), lapic_base)
    return _floating(base_gpa + FLOATING_SIZE) + table


def _processor(boot: bool, apic_id: int, signature: int, features: int) -> bytes:
    flags = 1 | boot << 1
    return struct.pack(
        "<BBBBII8x", PROCESSOR, apic_id, INTEGRATED_APIC, flags, signature & 0xFFF, features
    )


def _isa_interrupts(
    bus: int, ioapic_id: int, timer_pin: int, level_irqs: Sequence[int]
) -> list[bytes]:
    found = []
    for irq in range(16):
        pin = timer_pin if irq == 0 else irq
        if irq == 2 or (irq != 0 and pin == timer_pin):  # the cascade is no interrupt
            continue
        flags = LEVEL_HIGH if irq in level_irqs else 0
        found.append(_interrupt(INT, flags, bus, irq, ioapic_id, pin))
    return found


def _interrupt(kind: int, flags: int, bus: int, source: int, ioapic: int, pin: int) -> bytes:
    return struct.pack("<BBHBBBB", IO_INTERRUPT, kind, flags, bus, source, ioapic, pin)


def _local(kind: int, bus: int, lapic: int, lint: int) -> bytes:
    return struct.pack("<BBHBBBB", LOCAL_INTERRUPT, kind, 0, bus, 0, lapic, lint)


def _header(entries: bytes, count: int, lapic_base: int) -> bytes:
    table = bytearray(
        struct.pack(
            "<4sHBB8s12sIHHIHBx",
            b"PCMP", HEADER_SIZE + len(entries), 4, 0, b"PYKVM".ljust(8), b"PC".ljust(12),
            0, 0, count, lapic_base, 0, 0,
        )
        + entries
    )  # fmt: skip
    table[7] = -sum(table) & 0xFF
    return bytes(table)


def _floating(table_gpa: int) -> bytes:
    pointer = bytearray(struct.pack("<4sIBBBBBBBB", b"_MP_", table_gpa, 1, 4, 0, 0, 0, 0, 0, 0))
    pointer[10] = -sum(pointer) & 0xFF
    return bytes(pointer)
