"""MSI and MSI-X: enabling, masking, pending bits, and what is sent where."""

from __future__ import annotations

import json

import pytest
from pci_probe import Board, Mechanism1

from pykvm.devices.pci import Bar, MsiCapability, MsixCapability, PciDevice, PciError

ADDRESS = 0xFEE0_1000
COMMAND = 4


class Msix:
    """A device with five vectors, as a driver sees it."""

    def __init__(self, vectors: int = 5) -> None:
        self.board = Board()
        holder: list[MsixCapability] = []

        class Late:
            name, max_access = "table", 8

            def read(self, offset: int, size: int) -> int:
                return holder[0].registers().read(offset, size)

            def write(self, offset: int, size: int, value: int) -> None:
                holder[0].registers().write(offset, size, value)

        self.device = PciDevice(1, 2, 0x020000, bars=[Bar("mem32", 0x1000, Late())])
        self.msix = MsixCapability(self.device, vectors, 0)
        holder.append(self.msix)
        self.board.bus.add(3, 0, self.device)
        self.ports: Mechanism1 = self.board.ports
        self.ports.write(3, 0, 0x10, 4, 0xC000_0000)
        self.ports.write(3, 0, COMMAND, 2, 6)
        self.sent = self.board.msi.sent

    def control(self, value: int) -> None:
        self.ports.write(3, 0, self.msix.offset + 2, 2, value)

    def entry(self, vector: int, data: int, masked: bool = False) -> None:
        at = 0xC000_0000 + 16 * vector
        for offset, value in ((0, ADDRESS), (4, 0), (8, data), (12, int(masked))):
            self.board.mmio.write(at + offset, 4, value)

    def pending(self) -> int:
        return self.board.mmio.read(0xC000_0000 + self.msix.pba_offset, 8)


def test_the_capability_describes_the_table() -> None:
    one = Msix()
    at = one.msix.offset
    assert one.ports.read(3, 0, 0x34, 1) == at
    assert one.ports.read(3, 0, at, 1) == 0x11
    assert one.ports.read(3, 0, at + 2, 2) == 4  # vectors - 1
    assert one.ports.read(3, 0, at + 4, 4) == 0
    assert one.ports.read(3, 0, at + 8, 4) == 2048
    one.control(0xFFFF)
    assert one.ports.read(3, 0, at + 2, 2) == 0xC004


def test_messages_go_out_only_when_enabled() -> None:
    one = Msix()
    one.entry(2, 0x42)
    assert not one.msix.send(2)
    one.control(0x8000)
    assert one.msix.send(2)
    assert one.sent == [(ADDRESS, 0x42)]
    assert one.msix.send(77), "a vector that is not there goes nowhere"
    assert len(one.sent) == 1


def test_masked_vectors_stay_pending_until_unmasked() -> None:
    one = Msix()
    one.control(0x8000)
    one.entry(1, 0x31, masked=True)
    one.msix.send(1)
    one.msix.send(1)
    assert one.sent == []
    assert one.pending() == 2
    one.entry(1, 0x32, masked=True)
    one.board.mmio.write(0xC000_0000 + 16 + 12, 4, 0)
    assert one.sent == [(ADDRESS, 0x32)], "once, with what the table says now"
    assert one.pending() == 0


def test_the_function_mask_holds_all_back() -> None:
    one = Msix()
    for vector in range(5):
        one.entry(vector, vector)
    one.control(0xC000)
    for vector in (4, 0):
        one.msix.send(vector)
    assert one.pending() == 0b10001
    one.control(0x8000)
    assert one.sent == [(ADDRESS, 0), (ADDRESS, 4)]
    assert one.pending() == 0


def test_no_message_without_bus_mastering() -> None:
    one = Msix()
    one.entry(0, 7)
    one.control(0x8000)
    one.ports.write(3, 0, COMMAND, 2, 2)
    one.msix.send(0)
    assert one.sent == []


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_the_table_in_any_width(width: int) -> None:
    one = Msix()
    raw = bytes(range(16, 32))
    for at in range(0, 16, width):
        value = int.from_bytes(raw[at : at + width], "little")
        one.board.mmio.write(0xC000_0010 + at, width, value)
    read = b"".join(
        one.board.mmio.read(0xC000_0010 + at, width).to_bytes(width, "little")
        for at in range(0, 16, width)
    )
    # Address bits 1:0 are zero, and of the vector control only the mask bit is there.
    assert read == raw[:12] + b"\0\0\0\0"


def test_pending_bits_are_read_only() -> None:
    one = Msix()
    one.control(0x8000)
    one.msix.send(0)
    one.board.mmio.write(0xC000_0000 + one.msix.pba_offset, 8, 0)
    assert one.pending() == 1


def test_msix_state() -> None:
    one = Msix()
    one.entry(3, 0x33)
    one.control(0xC000)
    one.msix.send(3)
    saved = json.loads(json.dumps(one.device.save()))
    two = Msix()
    two.device.load(saved)
    assert two.device.save() == saved
    two.control(0x8000)
    assert two.sent == [(ADDRESS, 0x33)]
    two.device.reset()
    assert two.device.save()["msix_table"] == [0, 0, 0, 1] * 5


class Msi:
    """A device with `vectors` MSI messages."""

    def __init__(self, vectors: int = 4) -> None:
        self.board = Board()
        self.device = PciDevice(1, 2, 0x020000)
        self.msi = MsiCapability(self.device, vectors)
        self.board.bus.add(3, 0, self.device)
        self.sent = self.board.msi.sent
        self.put(4, 4, ADDRESS)
        self.put(12, 2, 0x50)
        self.board.ports.write(3, 0, COMMAND, 2, 4)

    def put(self, offset: int, size: int, value: int) -> None:
        self.board.ports.write(3, 0, self.msi.offset + offset, size, value)

    def get(self, offset: int, size: int) -> int:
        return self.board.ports.read(3, 0, self.msi.offset + offset, size)


def test_msi_sends_as_many_messages_as_were_granted() -> None:
    one = Msi()
    assert one.get(2, 2) == 0x0184  # 64 bits, maskable, four messages
    assert not one.msi.send(0)
    one.put(2, 2, 0x11)  # two granted
    for vector in range(4):
        assert one.msi.send(vector)
    assert [data for _, data in one.sent] == [0x50, 0x51, 0x50, 0x51]
    one.put(2, 2, 0x71)  # more than there are
    one.msi.send(3)
    assert one.sent[-1] == (ADDRESS, 0x53)


def test_msi_masking() -> None:
    one = Msi()
    one.put(2, 2, 0x21)
    one.put(16, 4, 0b10)
    one.msi.send(1)
    assert one.sent == []
    assert one.get(20, 4) == 0b10
    one.put(20, 4, 0)
    assert one.get(20, 4) == 0b10, "pending bits are read-only"
    one.put(16, 4, 0)
    assert one.sent == [(ADDRESS, 0x51)]
    assert one.get(20, 4) == 0


def test_impossible_capabilities_are_refused() -> None:
    device = PciDevice(1, 2, 3)
    with pytest.raises(PciError, match="power of two"):
        MsiCapability(device, 3)
    with pytest.raises(PciError, match="cannot be"):
        MsixCapability(device, 2049, 0)
    with pytest.raises(PciError, match="no room"):
        device.add_capability(9, bytes(250))
