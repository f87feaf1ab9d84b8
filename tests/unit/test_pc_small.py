"""A20, port 0x92, port 0xcf9, pvpanic, the test device, the speaker port, and the package."""

from __future__ import annotations

import pytest

import pykvm.devices.pc
from pykvm.bus import MmioBus, PioBus
from pykvm.devices import ManualClock, RecordingIrqLine
from pykvm.devices.pc import (
    I8042,
    A20Gate,
    AcpiPm,
    Cmos,
    FwCfg,
    IoApic,
    PcTestDev,
    Pic8259,
    Pit8254,
    Port92,
    PvPanic,
    ResetControl,
    Speaker,
)


def test_the_package_is_lazy_and_complete() -> None:
    for name in pykvm.devices.pc.__all__:
        assert getattr(pykvm.devices.pc, name).__name__ == name
    with pytest.raises(AttributeError, match="Floppy"):
        pykvm.devices.pc.Floppy  # noqa: B018


def test_all_of_them_fit_together_on_a_bus() -> None:
    """A PC with user-space interrupt controllers: no two ranges overlap."""

    def nobody(*access: object) -> int:
        raise AssertionError(access)

    buses = {"pio": PioBus(nobody), "mmio": MmioBus(nobody)}  # type: ignore[arg-type]
    clock = ManualClock()
    pit = Pit8254(clock=clock)
    for device in (
        Cmos(clock=clock), I8042(clock=clock), Port92(), ResetControl(), AcpiPm(clock=clock),
        FwCfg(), PvPanic(), PcTestDev(), Pic8259(), IoApic(), pit, Speaker(clock, pit),
    ):  # fmt: skip
        for kind, address, length, part in device.ranges():
            buses[kind].add_device(part, address, length)
    pio = buses["pio"]
    pio.write(0x70, 2, 0x5A0F)  # index and data in one access
    assert pio.read(0x71, 1) == 0x5A
    pio.write(0xE0, 4, 0x1234_5678)
    assert pio.read(0xE2, 2) == 0x1234
    pio.write(0x510, 2, 0)
    assert pio.read(0x511, 4) == int.from_bytes(b"QEMU", "little")
    assert pio.read(0x4D0, 2) == 0
    assert buses["mmio"].read(0xFEC0_0000, 4) == 0


def test_port_92_and_the_keyboard_controller_share_a20() -> None:
    changes: list[bool] = []
    gate = A20Gate(changes.append)
    resets: list[int] = []
    port = Port92(gate, lambda: resets.append(1))
    chip = I8042(clock=ManualClock(), a20=gate)
    assert port.read(0, 1) == 2
    port.write(0, 1, 0)
    chip.write(4, 1, 0xD0)
    assert not chip.read(0, 1) & 2
    chip.write(4, 1, 0xDF)
    assert port.read(0, 1) == 2
    assert changes == [False, True]
    port.write(0, 1, 3)
    port.write(0, 1, 3)
    assert len(resets) == 1, "bit 0 must rise"
    port.write(0, 1, 2)
    port.write(0, 1, 3)
    assert len(resets) == 2


def test_reset_control() -> None:
    resets: list[int] = []
    port = ResetControl(lambda: resets.append(1))
    port.write(0, 1, 0x02)
    assert (port.read(0, 1), resets) == (0x02, [])
    port.write(0, 1, 0x06)
    assert (port.read(0, 1), resets) == (0x06, [1])
    port.write(0, 1, 0x0E)
    assert resets == [1]
    port.reset()
    port.write(0, 1, 0x06)
    assert resets == [1, 1]


def test_pvpanic() -> None:
    events: list[int] = []
    port = PvPanic(events.append)
    assert port.read(0, 1) == 3
    for value in (1, 2, 4, 0xFF):
        port.write(0, 1, value)
    assert events == [1, 2, 3]


def test_the_test_device() -> None:
    lines = [RecordingIrqLine() for _ in range(24)]
    pages: list[int] = []
    ports, irqs, memory, bytes_ = (r.device for r in PcTestDev(lines, pages.append).ranges())
    ports.write(0, 4, 0x1122_3344)
    ports.write(1, 1, 0x99)
    assert ports.read(0, 4) == 0x1122_9944
    assert bytes_.read(2, 2) == 0x1122
    ports.write(4, 4, 0x0123_4567)
    ports.write(4, 2, 0xFFFF)
    assert pages == [0x0123_4000]
    irqs.write(5, 1, 1)
    irqs.write(23, 1, 0x80)
    assert [n for n, line in enumerate(lines) if line.level] == [5, 23]
    irqs.write(5, 1, 0)
    assert not lines[5].level
    memory.write(0xFFF8, 8, 0x0102_0304_0506_0708)
    assert memory.read(0xFFFC, 4) == 0x0102_0304
    memory.write(0xFFFE, 4, 0xAABB_CCDD)  # past the end
    assert memory.read(0xFFFE, 2) == 0xCCDD
    ports.reset()
    assert memory.read(0xFFF8, 8) == 0
    assert not lines[23].level


def test_speaker_and_counter_2() -> None:
    clock = ManualClock()
    pit = Pit8254(clock=clock)
    port = Speaker(clock, pit)
    pit.write(3, 1, 0xB6)
    pit.write(2, 1, 0xA9)
    pit.write(2, 1, 0x04)  # 1193 ticks: 1 kHz
    assert port.tone_hz is None
    port.write(0, 1, 0xFF)
    assert port.read(0, 1) & 0x0F == 0x0F
    assert round(port.tone_hz or 0) == 1000
    seen = set()
    for _ in range(100):
        clock.advance(77_000)
        seen.add(port.read(0, 1) & 0x30)
    assert seen == {0x00, 0x10, 0x20, 0x30}
    port.write(0, 1, 0)
    assert port.tone_hz is None
    assert Speaker(clock).read(0, 1) & 0x20 == 0
