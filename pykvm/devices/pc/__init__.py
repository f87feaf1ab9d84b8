"""The legacy devices of a PC. Each name is imported when it is first used.

How each is made (all arguments have defaults unless marked; `irq`-like arguments are `IrqLine`s,
`clock` is a `Clock`; callbacks are called on the vCPU's thread with no lock held):

    Cmos(irq, clock, *, start=None, ram_below_4g=0, ram_above_4g=0, boot_order="cda")   IRQ 8
    I8042(keyboard_irq, mouse_irq, clock, *, a20=None, reset=None)                   IRQ 1, 12
        .keyboard, .mouse; .type_text(text) .tap("f12") .press(keys) .release(keys) .typed_left
    A20Gate(on_change=None)            shared by I8042 and Port92: `.enabled`
    Port92(a20=None, reset=None)
    ResetControl(reset=None)
    Speaker(clock, pit=None)
    AcpiPm(irq, clock, *, power_off=None, on_sleep=None)                     SCI, IRQ 9, level
    FwCfg(memory=None)                 .add_file(name, data) .add_item(key, data)
    PvPanic(on_event=None)             on_event(bits)
    PcTestDev(lines=(), flush=None)    lines: 24 IrqLines
    Pic8259(output=None)               the pair; .line(irq 0..15) .acknowledge() -> vector
    IoApic(sender=None, id=0)          .line(pin 0..23) .eoi(vector) .entries()
    Pit8254(irq, clock)                IRQ 0

A device is put on the buses by what `ranges()` gives: `PortRange(kind, address, length, device)`
with kind "pio" or "mmio". The first range's device is the object that `save`, `load` and `reset`
belong to; further ranges are `Window`s into it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.devices.pc.a20 import A20Gate, Port92, ResetControl
    from pykvm.devices.pc.acpi_pm import AcpiPm
    from pykvm.devices.pc.cmos import Cmos
    from pykvm.devices.pc.fwcfg import FwCfg
    from pykvm.devices.pc.i8042 import I8042
    from pykvm.devices.pc.ioapic import IoApic, MsiSender
    from pykvm.devices.pc.pctestdev import PcTestDev
    from pykvm.devices.pc.pic import Pic8259
    from pykvm.devices.pc.pit import Pit8254
    from pykvm.devices.pc.ps2keyboard import Ps2Keyboard
    from pykvm.devices.pc.ps2mouse import Ps2Mouse
    from pykvm.devices.pc.pvpanic import PvPanic
    from pykvm.devices.pc.speaker import Speaker
    from pykvm.devices.pc.window import PortRange, Window

_HOMES = {
    "A20Gate": "a20",
    "AcpiPm": "acpi_pm",
    "Cmos": "cmos",
    "FwCfg": "fwcfg",
    "I8042": "i8042",
    "IoApic": "ioapic",
    "MsiSender": "ioapic",
    "PcTestDev": "pctestdev",
    "Pic8259": "pic",
    "Pit8254": "pit",
    "Port92": "a20",
    "PortRange": "window",
    "Ps2Keyboard": "ps2keyboard",
    "Ps2Mouse": "ps2mouse",
    "PvPanic": "pvpanic",
    "ResetControl": "a20",
    "Speaker": "speaker",
    "Window": "window",
}

__all__ = [
    "I8042",
    "A20Gate",
    "AcpiPm",
    "Cmos",
    "FwCfg",
    "IoApic",
    "MsiSender",
    "PcTestDev",
    "Pic8259",
    "Pit8254",
    "Port92",
    "PortRange",
    "Ps2Keyboard",
    "Ps2Mouse",
    "PvPanic",
    "ResetControl",
    "Speaker",
    "Window",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
