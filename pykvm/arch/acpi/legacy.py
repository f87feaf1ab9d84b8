"""AML of the devices that every PC has at the same ports: serial, keyboard, clock and so on."""

from __future__ import annotations

from pykvm.arch.acpi import resources
from pykvm.arch.acpi.aml import device, eisa_id, name
from pykvm.arch.acpi.config import AcpiConfig
from pykvm.typed import NamedTuple


class IsaDevice(NamedTuple):
    """Where a legacy device is: (first port, how many), and its ISA interrupt."""

    path: str
    hid: str
    ports: tuple[tuple[int, int], ...]
    irq: int | None = None
    uid: int | None = None


# The PIT, the 8259s and the speaker have no node: no system looks for one, and each costs time.
ISA_DEVICES = {
    "com1": IsaDevice("COM1", "PNP0501", ((0x3F8, 8),), 4, 1),
    "com2": IsaDevice("COM2", "PNP0501", ((0x2F8, 8),), 3, 2),
    "keyboard": IsaDevice("KBD", "PNP0303", ((0x60, 1), (0x64, 1)), 1),
    "mouse": IsaDevice("MOU", "PNP0F13", (), 12),
    "rtc": IsaDevice("RTC", "PNP0B00", ((0x70, 2),), 8),
}


def isa_devices(config: AcpiConfig) -> list[bytes]:
    """A Device term for each legacy device that is there, in a fixed order."""
    return [_device(found) for key, found in ISA_DEVICES.items() if key in config.legacy]


def _device(isa: IsaDevice) -> bytes:
    uid = [name("_UID", isa.uid)] if isa.uid is not None else []
    parts = [resources.io(base, count) for base, count in isa.ports]
    if isa.irq is not None:
        parts.append(resources.irq(isa.irq))
    return device(
        isa.path,
        name("_HID", eisa_id(isa.hid)),
        *uid,
        name("_STA", 0x0F),
        name("_CRS", resources.template(*parts)),
    )
