"""PCI configuration space: enumeration both ways, BARs that are sized and moved, INTx, state."""

from __future__ import annotations

import json

import pytest
from pci_probe import Board, Ecam, probe

from pykvm.devices import DeviceStateError
from pykvm.devices.pci import (
    Bar,
    Ich9Lpc,
    PciDevice,
    PciError,
    PciTestDev,
    Q35HostBridge,
    RamBlock,
    Registers,
    Window,
    assign_bars,
)
from pykvm.devices.pci.config import ConfigSpace

COMMAND, BAR0, BAR1, BAR2 = 0x04, 0x10, 0x14, 0x18


class Store:
    """A BAR's contents that remember the last write."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


def device(name: str, *bars: Bar | None, pin: int = 0) -> PciDevice:
    return PciDevice(0x1234, 0x5678, 0xFF0000, bars=bars, interrupt_pin=pin, name=name)


def memory_bar(name: str, size: int = 0x1000, kind: str = "mem32") -> Bar:
    store = Store()
    return Bar(kind, size, Registers(name, store.read, store.write))  # type: ignore[arg-type]


@pytest.fixture
def board() -> Board:
    board = Board()
    board.bus.add(0, 0, Q35HostBridge(board.host))
    board.bus.add(0x1F, 0, Ich9Lpc(board.router))
    return board


def test_enumeration_by_ports_and_by_ecam_agree(board: Board) -> None:
    board.bus.add(3, 0, PciTestDev(membar=1 << 30))
    board.bus.add(4, 0, device("a"))
    board.bus.add(4, 5, device("b", None, None, memory_bar("wide", 1 << 20, "mem64")))
    by_ports = probe(board.ports)
    assert by_ports == probe(Ecam(board.mmio, 0xE000_0000))
    assert [(f.slot, f.function, f.vendor, f.device) for f in by_ports] == [
        (0, 0, 0x8086, 0x29C0), (3, 0, 0x1B36, 0x0005), (4, 0, 0x1234, 0x5678),
        (4, 5, 0x1234, 0x5678), (0x1F, 0, 0x8086, 0x2918),
    ]  # fmt: skip
    assert by_ports[1].bars == {
        0: ("mem32", 4096, False), 1: ("io", 256, False), 2: ("mem64", 1 << 30, True),
    }  # fmt: skip
    assert by_ports[3].bars == {2: ("mem64", 1 << 20, False)}
    assert [f.class_code for f in by_ports] == [0x060000, 0xFF0000, 0xFF0000, 0xFF0000, 0x060100]


def test_a_function_without_function_zero_sets_no_bit(board: Board) -> None:
    board.bus.add(5, 1, device("lonely"))
    assert board.ports.read(5, 0, 0, 4) == 0xFFFF_FFFF
    board.bus.add(5, 0, device("late"))
    assert board.ports.read(5, 0, 0x0E, 1) == 0x80


@pytest.mark.parametrize("width", [1, 2, 4])
def test_any_width_through_the_data_port(board: Board, width: int) -> None:
    whole = b"".join(board.ports.read(0x1F, 0, n, 4).to_bytes(4, "little") for n in (0, 4, 8, 12))
    parts = b"".join(
        board.ports.read(0x1F, 0, n, width).to_bytes(width, "little") for n in range(0, 16, width)
    )
    assert parts == whole


def test_only_an_enabled_dword_address_selects(board: Board) -> None:
    board.pio.write(0xCF8, 4, 0)  # the enable bit is clear
    assert board.pio.read(0xCFC, 4) == 0xFFFF_FFFF
    board.pio.write(0xCF8, 4, 0x8000_0000)
    assert board.pio.read(0xCFC, 4) == 0x29C0_8086
    board.pio.write(0xCF8, 2, 0x1234)
    board.pio.write(0xCFB, 1, 0)
    assert board.pio.read(0xCF8, 4) == 0x8000_0000
    board.pio.write(0xCF8, 4, 0x8001_0000)  # another bus
    assert board.pio.read(0xCFC, 4) == 0xFFFF_FFFF


def test_reset_control_lies_inside() -> None:
    board = Board()
    store = Store()
    board.host._reset_control = Registers("reset", lambda at, n: 0x42, store.write, 1)
    board.pio.write(0xCF9, 1, 6)
    board.pio.write(0xCF8, 4, 0x8000_0600)
    assert store.writes == [(0, 1, 6)]
    assert board.pio.read(0xCF9, 1) == 0x42
    assert board.pio.read(0xCF8, 4) == 0x8000_0600


def test_extended_space_is_all_ones(board: Board) -> None:
    ecam = Ecam(board.mmio, 0xE000_0000)
    assert ecam.read(0, 0, 0x100, 4) == 0xFFFF_FFFF
    assert ecam.read(0, 0, 0xFC, 4) == 0
    assert ecam.read(0, 0, 0xFE, 4) == 0xFFFF_0000
    ecam.write(0, 0, 0xFF0, 4, 0)


def test_bars_move_and_follow_the_command_register(board: Board) -> None:
    store = Store()
    bar = Bar("mem32", 0x1000, Registers("regs", store.read, store.write))
    board.bus.add(3, 0, device("mover", bar))
    write = board.ports.write
    write(3, 0, BAR0, 4, 0xC000_0FFF)
    assert board.at("regs") is None, "decoding is off"
    write(3, 0, COMMAND, 2, 2)
    assert board.at("regs") == (0xC000_0000, 0x1000)
    assert bar.address == 0xC000_0000
    board.mmio.write(0xC000_0010, 4, 7)
    assert store.writes == [(0x10, 4, 7)]
    write(3, 0, BAR0, 4, 0xC100_0000)
    assert board.at("regs") == (0xC100_0000, 0x1000)
    assert board.mmio.read(0xC000_0010, 4) == 0xFFFF_FFFF
    write(3, 0, BAR0, 4, 0xFFFF_FFFF)  # sizing with decoding on
    assert board.at("regs") is None
    assert board.ports.read(3, 0, BAR0, 4) == 0xFFFF_F000
    write(3, 0, BAR0, 4, 0xC200_0000)
    assert board.at("regs") == (0xC200_0000, 0x1000)
    write(3, 0, COMMAND, 2, 0)
    assert board.at("regs") is None


def test_a_64_bit_bar_moves_above_4_gib(board: Board) -> None:
    board.bus.add(3, 0, device("wide", memory_bar("regs", 0x4000, "mem64")))
    board.ports.write(3, 0, COMMAND, 2, 2)
    board.ports.write(3, 0, BAR0, 4, 0x4000)
    board.ports.write(3, 0, BAR1, 4, 0x12)
    assert board.at("regs") == (0x12_0000_4000, 0x4000)
    board.ports.write(3, 0, BAR1, 4, 0xFFFF_FFFF)  # beyond what a guest can address
    assert board.at("regs") is None


@pytest.mark.parametrize("place", [0, 0x1000, 0xFF000, 0xFEE0_0000, 0xE000_0000, 0xFFFF_F000])
def test_impossible_places_are_not_decoded(
    board: Board, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    board.bus.add(3, 0, device("bad", memory_bar("regs")))
    board.ports.write(3, 0, COMMAND, 2, 2)
    board.ports.write(3, 0, BAR0, 4, place)
    assert board.at("regs") is None
    board.ports.write(3, 0, COMMAND, 2, 2)
    board.ports.write(3, 0, COMMAND, 2, 6)
    assert len(caplog.records) <= 1, "it is said once"
    board.ports.write(3, 0, BAR0, 4, 0xC000_0000)
    assert board.at("regs") == (0xC000_0000, 0x1000)


def test_what_was_in_the_way_gives_way(board: Board) -> None:
    board.bus.add(3, 0, device("first", memory_bar("one")))
    board.bus.add(4, 0, device("second", memory_bar("two")))
    for slot in (3, 4):
        board.ports.write(slot, 0, BAR0, 4, 0xC000_0000)
        board.ports.write(slot, 0, COMMAND, 2, 2)
    assert board.at("one") == (0xC000_0000, 0x1000)
    assert board.at("two") is None
    board.ports.write(3, 0, BAR0, 4, 0xC100_0000)
    assert board.at("one") == (0xC100_0000, 0x1000)
    assert board.at("two") == (0xC000_0000, 0x1000)
    # They change places, with one step in which both are at one place.
    board.ports.write(3, 0, BAR0, 4, 0xC000_0000)
    assert board.at("one") is None
    board.ports.write(4, 0, BAR0, 4, 0xC100_0000)
    assert board.at("one") == (0xC000_0000, 0x1000)
    assert board.at("two") == (0xC100_0000, 0x1000)


def test_host_memory_behind_a_bar(board: Board) -> None:
    block = RamBlock(0x2000, "frame")
    board.bus.add(3, 0, device("vga", Bar("mem32", 0x2000, ram=block, prefetch=True)))
    board.ports.write(3, 0, BAR0, 4, 0xC000_0000)
    board.ports.write(3, 0, COMMAND, 2, 2)
    assert board.ram_maps == [(0xC000_0000, block, False)]
    board.ports.write(3, 0, BAR0, 4, 0xE000_0000)
    assert board.ram_maps == [], "not over the ECAM window"
    block.view[:4] = b"abcd"
    block.clear()
    assert bytes(block.view[:4]) == bytes(4)
    block.close()
    block.close()


def test_an_option_rom(board: Board) -> None:
    board.bus.add(3, 0, PciDevice(1, 2, 0x020000, rom=b"\x55\xaa" + bytes(5000)))
    rom = board.bus.get(3).rom  # type: ignore[union-attr]
    assert rom is not None
    board.ports.write(3, 0, 0x30, 4, 0xFFFF_FFFF)
    assert board.ports.read(3, 0, 0x30, 4) == 0xFFFF_E001
    board.ports.write(3, 0, 0x30, 4, 0xC000_0000)
    board.ports.write(3, 0, COMMAND, 2, 2)
    assert board.ram_maps == [], "the ROM has an enable bit of its own"
    board.ports.write(3, 0, 0x30, 4, 0xC000_0001)
    assert [(at, ro) for at, _, ro in board.ram_maps] == [(0xC000_0000, True)]
    assert rom.ram is not None
    assert bytes(rom.ram.view[:2]) == b"\x55\xaa"


def test_intx_is_shared_and_can_be_disabled(board: Board) -> None:
    one, two = device("one", pin=1), device("two", pin=1)
    board.bus.add(4, 0, one)
    board.bus.add(12, 0, two)
    line = board.gsi[4]
    one.set_intx(True)
    two.set_intx(True)
    one.set_intx(False)
    assert line.level
    assert line.history == [True]
    assert board.ports.read(12, 0, 6, 2) & 8
    assert not board.ports.read(4, 0, 6, 2) & 8
    board.ports.write(12, 0, COMMAND, 2, 0x400)
    assert not line.level
    assert board.ports.read(12, 0, 6, 2) & 8, "the status bit shows the pin, not the line"
    board.ports.write(12, 0, COMMAND, 2, 0)
    assert line.level
    board.bus.get(12).reset()  # type: ignore[union-attr]
    assert not line.level


def test_pins_rotate_over_the_lines(board: Board) -> None:
    for slot, pin, pirq in ((3, 1, 3), (3, 2, 4), (7, 1, 7), (8, 1, 0), (31, 4, 2)):
        assert board.router.pirq(slot, pin) == pirq


def test_lpc_routes_to_the_isa_interrupts(board: Board) -> None:
    one, two = device("one", pin=1), device("two", pin=1)
    board.bus.add(4, 0, one)
    board.bus.add(5, 0, two)
    one.set_intx(True)
    assert not board.isa[10].level
    board.ports.write(0x1F, 0, 0x68, 1, 10)  # PIRQE
    board.ports.write(0x1F, 0, 0x69, 1, 10)  # PIRQF
    assert board.isa[10].level
    two.set_intx(True)
    board.ports.write(0x1F, 0, 0x68, 1, 11)
    assert board.isa[10].level
    assert board.isa[11].level
    board.ports.write(0x1F, 0, 0x69, 1, 0x8A)  # off
    assert not board.isa[10].level
    board.ports.write(0x1F, 0, 0x68, 1, 8)  # not one that can be routed to
    assert not board.isa[11].level
    assert board.gsi[4].level


def test_the_pm_block_moves() -> None:
    board = Board()
    moved: list[int | None] = []
    board.bus.add(0x1F, 0, Ich9Lpc(pm_moved=moved.append))
    board.ports.write(0x1F, 0, 0x40, 4, 0xB001)
    board.ports.write(0x1F, 0, 0x44, 1, 0)
    board.ports.write(0x1F, 0, 0x44, 1, 0x80)
    board.ports.write(0x1F, 0, 0x44, 1, 0x82)
    assert moved == [0x600, 0xB000, None, 0xB000]
    board.bus.get(0x1F).reset()  # type: ignore[union-attr]
    assert moved[-1] == 0x600


def test_ecam_moves_and_shrinks(board: Board) -> None:
    board.ports.write(0, 0, 0x60, 4, 0xB000_0001)
    assert board.at("pci-ecam") == (0xB000_0000, 256 << 20)
    board.ports.write(0, 0, 0x60, 4, 0xB000_0005)
    assert board.at("pci-ecam") == (0xB000_0000, 64 << 20)
    board.ports.write(0, 0, 0x60, 4, 0x0000_0001)  # over RAM
    assert board.at("pci-ecam") is None
    board.ports.write(0, 0, 0x60, 4, 0xB000_0001)
    assert board.at("pci-ecam") == (0xB000_0000, 256 << 20)
    board.ports.write(0, 0, 0x60, 4, 0xB000_0000)
    assert board.at("pci-ecam") is None
    board.bus.get(0).reset()  # type: ignore[union-attr]
    assert board.at("pci-ecam") == (0xE000_0000, 256 << 20)


def test_assignment_is_complete_and_deterministic() -> None:
    def build() -> tuple[Board, list[tuple[str, int, int]]]:
        board = Board()
        board.bus.add(0, 0, Q35HostBridge(board.host))
        board.bus.add(0x1F, 0, Ich9Lpc(board.router))
        board.bus.add(3, 0, PciTestDev(membar=1 << 30))
        board.bus.add(4, 0, device("small", memory_bar("s", 16), memory_bar("t", 16), pin=1))
        placed = assign_bars(
            board.bus, Window(0xC000, 0x1000), [Window(0xC000_0000, 0x2000_0000)],
            Window(1 << 32, 1 << 35),
        )  # fmt: skip
        return board, [(d.name, index, address) for d, index, address in placed]

    board, placed = build()
    assert placed == build()[1]
    assert ("pci-testdev", 2, 1 << 32) in placed
    assert board.at("s") is not None
    assert board.at("t") is not None
    assert board.ports.read(4, 0, 0x3C, 1) == 10
    assert board.ports.read(0x1F, 0, 0x62, 1) == 11
    assert board.ports.read(3, 0, COMMAND, 2) == 7
    places = [board.at(n) for n in ("s", "t", "pci-testdev-mmio", "pci-testdev-membar")]
    assert len({at[0] // 4096 for at in places if at}) == 4, "a page each"


def test_what_does_not_fit_stays_unassigned(caplog: pytest.LogCaptureFixture) -> None:
    board = Board()
    board.bus.add(3, 0, device("big", memory_bar("large", 1 << 28), memory_bar("tiny")))
    assign_bars(board.bus, Window(0xC000, 0x1000), [Window(0xC000_0000, 0x10_0000)])
    assert board.at("large") is None
    assert board.at("tiny") == (0xC000_0000, 0x1000)
    assert "no room for BAR 0" in caplog.text


@pytest.mark.parametrize("bar", ["mmio", "portio"])
def test_the_test_device_counts(board: Board, bar: str) -> None:
    board.bus.add(3, 0, PciTestDev())
    assign_bars(board.bus, Window(0xC000, 0x1000), [Window(0xC000_0000, 1 << 20)])
    bus, base = (board.mmio, 0xC000_0000) if bar == "mmio" else (board.pio, 0xC000)
    names = []
    for number in range(256):
        bus.write(base, 1, number)
        width = bus.read(base + 1, 1)
        if width not in (1, 2, 4):
            break
        place, data = base + bus.read(base + 4, 4), bus.read(base + 8, 4)
        for _ in range(5):
            bus.write(place, width, data)
        assert bus.read(base + 12, 4) == 5
        bus.write(place, width, data ^ 1)
        assert bus.read(base + 12, 4) == (6 if number == 1 else 5)
        raw = bytes(bus.read(base + 16 + n, 1) for n in range(32))
        names.append(raw.split(b"\0")[0].decode())
    assert names == [f"{bar}-{n}-eventfd" for n in ("no", "wildcard", "datamatch")]


def test_state_goes_into_a_fresh_board() -> None:
    def build() -> Board:
        board = Board()
        board.bus.add(0, 0, Q35HostBridge(board.host))
        board.bus.add(0x1F, 0, Ich9Lpc(board.router))
        board.bus.add(3, 0, PciTestDev())
        board.bus.add(4, 0, device("irq", memory_bar("regs"), pin=1))
        return board

    board = build()
    assign_bars(board.bus, Window(0xC000, 0x1000), [Window(0xC000_0000, 1 << 20)])
    board.ports.write(0, 0, 0x60, 4, 0xB000_0001)
    board.mmio.write(board.at("pci-testdev-mmio")[0], 1, 1)  # type: ignore[index]
    board.bus.get(4).set_intx(True)  # type: ignore[union-attr]
    copy = build()
    for old, new in zip(board.bus, copy.bus, strict=True):
        saved = json.loads(json.dumps(old.save()))
        new.load(saved)
        assert new.save() == saved
    copy.host.load(board.host.save())

    def ranges(one: Board) -> set[tuple[str, int, int]]:
        return {(r.name, r.start, r.end) for r in (*one.mmio.ranges, *one.pio.ranges)}

    assert ranges(copy) == ranges(board)
    assert copy.gsi[4].level
    assert copy.isa[10].level
    assert copy.pio.read(0xCF8, 4) == board.pio.read(0xCF8, 4)


def test_a_state_of_another_device_is_refused(board: Board) -> None:
    one, two = device("one"), PciTestDev()
    with pytest.raises(DeviceStateError, match="config byte 0x0"):
        one.load(two.save() | {"tests": 0})
    with pytest.raises(DeviceStateError, match="config bytes"):
        one.load(one.save() | {"config": [1, 2]})
    with pytest.raises(DeviceStateError, match="unknown fields"):
        one.load(one.save() | {"more": 1})


def test_impossible_devices_are_refused(board: Board) -> None:
    regs = Registers("r", lambda a, n: 0, lambda a, n, v: None)
    with pytest.raises(PciError, match="power of two"):
        Bar("mem32", 0x3000, regs)
    with pytest.raises(PciError, match="power of two"):
        Bar("io", 512, regs)
    with pytest.raises(PciError, match="give one of them"):
        Bar("mem32", 4096)
    with pytest.raises(PciError, match="must be None"):
        device("x", memory_bar("a", kind="mem64"), memory_bar("b"))
    with pytest.raises(PciError, match="taken by q35"):
        board.bus.add(0, 0, device("x"))
    with pytest.raises(PciError, match="not a place"):
        board.bus.add(32, 0, device("x"))
    with pytest.raises(PciError, match="interrupt pin"):
        device("x", pin=5)
    with pytest.raises(PciError, match="whole 4 KiB pages"):
        RamBlock(100)


def test_masks() -> None:
    space = ConfigSpace()
    space.define(0x40, 4, 0x1234_5678, writable=0x0000_FF00, clearing=0x8000_0000)
    space.put(0x40, 4, 0x9234_5678)
    space.write(0x41, 1, 0xAB)
    assert space.get(0x40, 4) == 0x9234_AB78
    space.write(0x40, 4, 0x8000_0000)
    assert space.get(0x40, 4) == 0x1234_0078
    space.write(0xFE, 4, 0xFFFF_FFFF)
    assert space.read(0xFE, 4) == 0xFFFF_0000


def test_a_guest_that_moves_bars_about_cannot_fill_the_log(
    board: Board, caplog: pytest.LogCaptureFixture
) -> None:
    board.bus.add(3, 0, device("bad", memory_bar("regs")))
    board.ports.write(3, 0, COMMAND, 2, 2)
    for page in range(1, 50):
        board.ports.write(3, 0, BAR0, 4, page << 12)
        board.ports.write(0, 0, 0x60, 4, 0x1000_0001 * (page & 1))
    assert len(caplog.records) <= 20
