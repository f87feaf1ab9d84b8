"""PCI on /dev/kvm: BARs of memory that move under a running guest, INTx and MSI arrive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from asm64 import HALT, load, out, store

from pykvm import Machine, StopReason
from pykvm.devices.pci import Bar, MsiCapability, PciDevice, RamBlock, Registers
from pykvm.machine.boards.pc import PcBoard

SLOT = 9
FIRST, SECOND = 0xC800_0000, 0xD000_0000


@pytest.fixture
def pc() -> Iterator[Machine]:
    with Machine(board="pc", memory="16M") as m:
        yield m


def board(m: Machine) -> PcBoard:
    assert isinstance(m.board, PcBoard)
    return m.board


def config(offset: int, value: int) -> bytes:
    """A dword write to the configuration space of `SLOT`."""
    return out(0xCF8, 4, 1 << 31 | SLOT << 11 | offset) + out(0xCFC, 4, value)


def run(m: Machine, code: bytes) -> None:
    m.load(code + HALT, load=0x10000, entry=0x10000, mode="long")
    result = m.run(timeout=20)
    assert result.reason is StopReason.HALTED, result.report


def test_memory_at_a_bar_moves_under_the_guest(pc: Machine) -> None:
    block = RamBlock(0x4000, "frame")
    device = PciDevice(0x1234, 1, 0x038000, bars=[Bar("mem32", 0x4000, ram=block)])
    board(pc).add_pci(device, SLOT)
    block.view[0x3FF8:] = b"host was"
    code = config(0x10, FIRST) + config(4, 2)
    code += store(FIRST + 8, 8, 0x1111) + load(FIRST + 0x3FF8, 8, 0x20000)
    code += config(0x10, SECOND)
    code += store(SECOND + 16, 8, 0x2222) + load(SECOND + 8, 8, 0x20008)
    code += load(FIRST + 8, 8, 0x20010)
    code += config(0x10, 0x10_0000)  # over RAM: not decoded, RAM stays what it is
    code += store(0x10_0010, 8, 0x3333) + load(SECOND + 16, 8, 0x20018)
    code += config(0x10, FIRST) + load(FIRST + 16, 8, 0x20020)
    pc.memory.write_u64(0x10_0010, 7)
    run(pc, code)
    seen = pc.memory.read_struct("5Q", 0x20000)
    assert seen == (int.from_bytes(b"host was", "little"), 0x1111, 2**64 - 1, 2**64 - 1, 0x2222)
    assert pc.memory.read_u64(0x10_0010) == 0x3333
    assert bytes(block.view[8:24]) == (0x1111).to_bytes(8, "little") + (0x2222).to_bytes(
        8, "little"
    )
    slots = len(pc.vm.regions)
    device.close()
    assert len(pc.vm.regions) == slots - 1


def test_registers_at_a_bar_move_under_the_guest(pc: Machine) -> None:
    seen: list[tuple[int, int, int]] = []
    registers = Registers(
        "probe", lambda at, size: 0x40 + at, lambda at, size, value: seen.append((at, size, value))
    )
    bars = [Bar("mem32", 0x1000, registers), Bar("io", 16, registers)]
    board(pc).add_pci(PciDevice(0x1234, 1, 0xFF0000, bars=bars), SLOT)
    code = config(0x10, FIRST) + config(0x14, 0xC100) + config(4, 3)
    code += store(FIRST + 4, 4, 1) + out(0xC104, 2, 2)
    code += config(0x10, SECOND) + config(0x14, 0xC200)
    code += store(FIRST + 4, 4, 3) + out(0xC104, 2, 4)
    code += store(SECOND + 8, 1, 5) + out(0xC208, 1, 6) + load(SECOND + 12, 4, 0x20000)
    run(pc, code)
    assert seen == [(4, 4, 1), (4, 2, 2), (8, 1, 5), (8, 1, 6)]
    assert pc.memory.read_u32(0x20000) == 0x4C


def test_a_pin_reaches_the_ioapic_and_the_pic(pc: Machine) -> None:
    device = PciDevice(0x1234, 1, 0xFF0000, interrupt_pin=1)
    board(pc).add_pci(device, SLOT)
    pc.load(HALT, load=0x1000, entry=0x1000)  # the board assigns as firmware does
    irq = device.config.data[0x3C]
    gsi = 16 + SLOT % 8
    for level in (True, False):
        device.set_intx(level)
        ioapic = pc.vm.get_irqchip(2)
        assert bool(ioapic.irr >> gsi & 1) is level  # type: ignore[union-attr]
        pic = pc.vm.get_irqchip(irq >> 3)
        assert bool(pic.last_irr >> (irq & 7) & 1) is level  # type: ignore[union-attr]


def test_a_message_reaches_the_local_apic(pc: Machine) -> None:
    device = PciDevice(0x1234, 1, 0xFF0000)
    msi = MsiCapability(device)
    board(pc).add_pci(device, SLOT)
    pc.load(HALT, load=0x1000, entry=0x1000)
    vcpu = pc.vcpus[0]
    lapic = vcpu.get_lapic()
    lapic[0xF0] = 0x1FF  # software enable
    vcpu.set_lapic(lapic)
    device.write(msi.offset + 4, 4, 0xFEE0_0000)
    device.write(msi.offset + 12, 2, 0x51)
    device.write(msi.offset + 2, 2, 1)
    assert msi.send(0)
    assert vcpu.get_lapic().irr == [0x51]
