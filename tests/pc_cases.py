"""One case for each legacy PC device, for `pc_contract`."""

from __future__ import annotations

import struct

from pc_contract import Case, Rig, Step

from pykvm.devices import Device
from pykvm.devices.pc import (
    I8042,
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
    Window,
)
from pykvm.memory import GuestMemory


def cmos(rig: Rig) -> Cmos:
    return Cmos(rig.line(), rig.clock, start=1_700_000_000, ram_below_4g=64 << 20)


def i8042(rig: Rig) -> I8042:
    device = I8042(rig.line(), rig.line(), rig.clock, reset=rig.note("reset"))
    device.a20.on_change = rig.note("a20")
    return device


def acpi_pm(rig: Rig) -> AcpiPm:
    return AcpiPm(
        rig.line(), rig.clock, power_off=rig.note("power off"), on_sleep=rig.note("sleep"),
        timer_bits=24,
    )  # fmt: skip


def fw_cfg(rig: Rig) -> FwCfg:
    rig.memory = GuestMemory.anonymous([(0, 4096)])
    for at, (control, length, address) in enumerate(
        [
            (0x0019_000A, 100, 0x800), (0x0020_0018, 5, 0x900), (0x0021_000C, 3, 0),
            (2, 9, 0x850), (16, 4, 0x20), (0x0020_000A, 64, 0xFFF), (0, 0, 0), (4, 2, 0),
        ]
    ):  # fmt: skip
        rig.memory.write(16 * at, struct.pack(">IIQ", control, length, address))
    device = FwCfg(rig.memory)
    device.add_item(5, b"\x02\x00")
    device.add_file("etc/a", b"0123456789abcdef", writeable=True, on_write=rig.note("written"))
    device.add_file("etc/b", b"fixed")
    return device


def pc_testdev(rig: Rig) -> PcTestDev:
    return PcTestDev([rig.line() for _ in range(24)], rig.note("flush"))


class Sender:
    def __init__(self, rig: Rig) -> None:
        self.send = rig.note("msi")


def pic_line(pic: Pic8259, value: int) -> None:
    pic.set_irq(value % 16, value & 0x100 != 0)


def type_something(keyboard: I8042, value: int) -> int:
    if keyboard.typed_left < 100:
        keyboard.type_text("aB\n")
        keyboard.tap("ctrl-alt-delete")
    return keyboard.typed_left


def register(index: int, value: int) -> list[Step]:
    """A write to a register behind an index port at offset 0 and a data port at offset 1."""
    return [("write", 0, 1, index), ("write", 1, 1, value)]


CMOS_STARTS: list[list[Step]] = [
    [],
    [*register(11, 0x72), *register(10, 0x2D), ("wait", 0, 0, 3)],
    [*register(11, 0x82), *register(4, 0x11), *register(7, 0x31)],
    [*register(11, 0x32), *register(1, 0xFF), *register(3, 0xFF), *register(5, 0xFF)],
    [*register(10, 0x76), ("wait", 0, 0, 700), *register(10, 0x26)],
    [*register(11, 0x04), *register(6, 5), ("write", 2, 1, 9), ("write", 3, 1, 0x77)],
]
PM_STARTS: list[list[Step]] = [
    [],
    [("write", 2, 2, 0x0721), ("write", 0x80, 1, 2), ("power", 0, 0, 1)],
    [("write", 4, 2, 1), ("write", 2, 2, 1), ("wait", 0, 0, 900)],
    [("gpe", 0, 0, 0x103), ("write", 0x28, 1, 0xFF), ("write", 4, 1, 1)],
]
PIT_STARTS: list[list[Step]] = [
    [],
    [("write", 3, 1, 0x34), ("write", 0, 1, 0x9C), ("write", 0, 1, 0x2E)],
    [("write", 3, 1, 0x36), ("write", 0, 1, 0x00), ("write", 0, 1, 0x01), ("wait", 0, 0, 3)],
    [("write", 3, 1, 0x30), ("write", 0, 1, 0xFF), ("write", 0, 1, 0xFF), ("write", 3, 1, 0xC2)],
    [("gate", 0, 0, 1), ("write", 3, 1, 0xB6), ("write", 2, 1, 9), ("write", 2, 1, 3)],
    [("write", 3, 1, 0xB3), ("write", 2, 1, 0x99), ("gate", 0, 0, 0), ("gate", 0, 0, 1)],
    [("write", 3, 1, 0x70), ("write", 1, 1, 0x12), ("read", 1, 1, 0)],
]
PIC_STARTS: list[list[Step]] = [
    [],
    [
        ("write", 0, 1, 0x11), ("write", 1, 1, 0x20), ("write", 1, 1, 4), ("write", 1, 1, 1),
        ("write", 2, 1, 0x11), ("write", 3, 1, 0x28), ("write", 3, 1, 2), ("write", 3, 1, 1),
        ("write", 5, 1, 0x0E), ("line", 0, 0, 0x109), ("line", 0, 0, 0x101), ("take", 0, 0, 0),
    ],
    [("write", 0, 1, 0x1B), ("write", 1, 1, 0x40), ("write", 1, 1, 0x12), ("line", 0, 0, 0x103)],
]  # fmt: skip
IOAPIC_STARTS: list[list[Step]] = [
    [],
    [
        ("write", 0, 4, 0x12), ("write", 0x10, 4, 0x0000_8031), ("pin", 0, 0, 0x101),
        ("write", 0, 4, 0x14), ("write", 0x10, 4, 0x0000_0932), ("write", 0, 4, 0x15),
        ("write", 0x10, 4, 0x0300_0000), ("pin", 0, 0, 0x102), ("write", 0, 4, 0x12),
    ],
]  # fmt: skip


def to_mouse(*values: int) -> list[Step]:
    """Bytes to the mouse, its replies read."""
    steps: list[Step] = []
    for value in values:
        steps += [("write", 4, 1, 0xD4), ("write", 0, 1, value), ("read", 0, 1, 0)]
    return steps


KEYBOARD_STARTS: list[list[Step]] = [
    [],
    [*to_mouse(0xF3, 200, 0xF3, 100, 0xF3, 80, 0xF4), ("mouse", 0, 0, 5)],
    [*to_mouse(0xF0, 0xE7, 0xE8, 1), ("mouse", 0, 0, 500), ("button", 0, 0, 5)],
    [("type", 0, 0, 0), ("wait", 0, 0, 900), ("read", 0, 1, 0), ("wait", 0, 0, 900)],
    [("write", 4, 1, 0x60), ("write", 0, 1, 0x03), ("write", 4, 1, 0xD4), ("write", 0, 1, 0xF4),
     ("read", 0, 1, 0), ("mouse", 0, 0, 0x1234)],
    [("write", 0, 1, 0xF0), ("read", 0, 1, 0), ("write", 0, 1, 1), ("type", 0, 0, 0)],
    [("write", 0, 1, 0xED), ("read", 0, 1, 0), ("write", 0, 1, 5), ("write", 4, 1, 0xD1)],
    [("write", 4, 1, 0xD4), ("write", 0, 1, 0xF3), ("write", 4, 1, 0xD4), ("write", 0, 1, 200)],
]  # fmt: skip

CASES: dict[type[Device], Case] = {
    Cmos: Case(
        cmos, [0, 1, 2, 3], starts=CMOS_STARTS, look=lambda rtc: (rtc.utc, rtc.nmi_masked),
        values=(0, 1, 4, 7, 9, 10, 11, 12, 0x32, 0x26, 0x2F, 0x70, 0x82, 0xF2), wait_ns=1_000_000,
    ),
    I8042: Case(
        i8042, [0, 4], starts=KEYBOARD_STARTS,
        events={"type": type_something, "mouse": lambda d, v: d.move_mouse(v % 99, -(v % 7), 1),
                "button": lambda d, v: d.press_mouse(v)},
        values=(0x60, 0xD4, 0xD1, 0xD3, 0xAA, 0xF4, 0xED, 0xF3, 0xF0, 0xFF, 1, 2, 0xEA, 0x41,
                0xE8, 0xEE, 0xE7, 200, 100, 80),
        look=lambda d: (d.typed_left, d.keyboard.leds, d.keyboard.scan_set, d.a20.enabled),
    ),
    AcpiPm: Case(
        acpi_pm, [0, 2, 4, 5, 8, 0x20, 0x24, 0x28, 0x30, 0x34, 0x80, 0x81], sizes=(1, 2, 4),
        starts=PM_STARTS, values=(0, 1, 2, 3, 0x20, 0x21, 0x100, 0x721, 0x3C01, 0xFFFF),
        events={"power": lambda d, v: d.press_power_button(),
                "sleep": lambda d, v: d.press_sleep_button(),
                "gpe": lambda d, v: d.set_gpe(v & 0x0F, v & 0x100 != 0)},
        wait_ns=4_000_000,
    ),
    FwCfg: Case(
        fw_cfg, [0, 1, 4, 8], sizes=(1, 2, 4), look=lambda d: d.contents("etc/a"),
        values=(0, 1, 5, 0x19, 0x20, 0x21, *(n << 28 for n in range(8))),
    ),
    PcTestDev: Case(
        pc_testdev, [0, 1, 3, 4, 9, 0x10, 0x13, 0x27, 0x1_0000, 0x1_0123, 0x1_FFFC],
        sizes=(1, 2, 4),
    ),
    Pic8259: Case(
        lambda rig: Pic8259(rig.line()), [0, 1, 2, 3, 4, 5], starts=PIC_STARTS,
        events={"line": pic_line, "take": lambda d, v: d.acknowledge()},
        values=(0, 0x0A, 0x0B, 0x0C, 0x11, 0x20, 0x68, 0x80, 0xA0, 0xC3, 0x08, 0x101, 0x10B),
        outside=frozenset({"line"}),
    ),
    IoApic: Case(
        lambda rig: IoApic(Sender(rig), id=3), [0, 0x10, 0x40, 0x20], sizes=(1, 4),
        starts=IOAPIC_STARTS, values=(0, 1, 0x12, 0x13, 0x14, 0x8031, 0x31, 0x1_0031, 0x8931),
        events={"pin": lambda d, v: d.set_pin(v % 24, v & 0x100 != 0),
                "eoi": lambda d, v: d.eoi(v & 0xFF)},
        look=lambda d: (d.entries(), d.takes_extint), outside=frozenset({"pin"}),
    ),
    Pit8254: Case(
        lambda rig: Pit8254(rig.line(), rig.clock), [0, 1, 2, 3], starts=PIT_STARTS,
        events={"gate": lambda d, v: d.set_gate(v & 1 != 0)},
        values=(0, 1, 2, 9, 0x30, 0x34, 0x36, 0x38, 0xB1, 0xB2, 0xB4, 0xBA, 0xC2, 0xD8, 0xE2),
        look=lambda d: [d.output(n) for n in range(3)],
    ),
    Port92: Case(lambda rig: Port92(None, rig.note("reset")), [0]),
    ResetControl: Case(lambda rig: ResetControl(rig.note("reset")), [0], values=(2, 4, 6, 0xE)),
    PvPanic: Case(lambda rig: PvPanic(rig.note("event")), [0]),
    Speaker: Case(
        lambda rig: Speaker(rig.clock), [0], look=lambda d: d.tone_hz, wait_ns=1_000,
    ),
    Window: Case(lambda rig: Window(PvPanic(rig.note("event")), 7), [0]),
}  # fmt: skip
