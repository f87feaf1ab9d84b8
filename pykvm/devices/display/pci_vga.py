"""The VGA's face on the PCI bus: QEMU's standard VGA 1234:1111, with its option ROM."""

from __future__ import annotations

import os

from pykvm.devices.display import dispi as vbe
from pykvm.devices.display.vga import MMIO_SIZE, WINDOW, WINDOW_SIZE, Vga
from pykvm.devices.pci.bar import Bar, Registers
from pykvm.devices.pci.device import PciDevice
from pykvm.errors import PykvmError
from pykvm.typed import NamedTuple

VENDOR, DEVICE = 0x1234, 0x1111
CLASS_VGA = 0x030000
#: Where Debian's package `seabios` puts the VGA firmware for this adapter.
VGABIOS = "/usr/share/seabios/vgabios-stdvga.bin"
_MAX_ROM = 1 << 20


class VgaRomError(PykvmError):
    """The VGA's option ROM cannot be used."""


class LegacyRange(NamedTuple):
    """A fixed range that goes with the adapter: `kind` is "pio" or "mmio"."""

    kind: str
    address: int
    length: int
    device: Vga | Registers


class PciVga(PciDevice):
    """The PCI function: BAR 0 is video memory, BAR 2 the registers, and an option ROM.

    The adapter behind it also has `legacy_ranges`, which a machine puts on its buses; reset and
    saved state of the adapter are the `Vga`'s own.
    """

    def __init__(self, vga: Vga, rom: bytes | None = None) -> None:
        frame_buffer = Bar("mem32", vga.vram_size, ram=vga.ram, prefetch=True)
        registers = Bar("mem32", MMIO_SIZE, vga.mmio)
        super().__init__(
            VENDOR, DEVICE, CLASS_VGA, revision=2, subsystem=(0x1AF4, 0x1100),
            bars=[frame_buffer, None, registers], rom=rom, name="vga pci",
        )  # fmt: skip
        self.vga = vga


def legacy_ranges(vga: Vga) -> list[LegacyRange]:
    """The ports and the memory window that every VGA has, and the VBE ports."""
    return [
        LegacyRange("pio", vga.port, vga.ports, vga),
        LegacyRange("pio", vbe.PORT, vbe.PORTS, vga.dispi_ports),
        LegacyRange("mmio", WINDOW, WINDOW_SIZE, vga.window),
    ]


def read_vgabios(path: str | os.PathLike[str] = VGABIOS) -> bytes:
    """The VGA's option ROM from the host. Raises `VgaRomError` with what to install."""
    try:
        with open(path, "rb") as file:
            image = file.read(_MAX_ROM + 1)
    except OSError as error:
        raise VgaRomError(
            f"the VGA option ROM {os.fspath(path)} cannot be read ({error.strerror}); "
            "install Debian's package seabios"
        ) from None
    if image[:2] != b"\x55\xaa" or len(image) > _MAX_ROM:
        raise VgaRomError(f"{os.fspath(path)} is not an option ROM: it must start with 55 AA")
    return image
