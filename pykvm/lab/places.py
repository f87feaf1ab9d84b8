"""Who answers at a port or address, in the words of the device's data sheet."""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine import Machine

# Registers of a 16550 by offset, when read and when written (PC16550D data sheet, table II).
_UART = (
    ("RBR", "THR"), ("IER", "IER"), ("IIR", "FCR"), ("LCR", "LCR"),
    ("MCR", "MCR"), ("LSR", "LSR"), ("MSR", "MSR"), ("SCR", "SCR"),
)  # fmt: skip
_DIVISOR = ("DLL", "DLM")  # in the place of the first two while LCR.DLAB is set
_LCR, _DLAB = 3, 0x80

# What a PC has at ports that nobody claims here: a guest that looks for it is worth a word.
_PC_PORTS = (
    (0x00, 0x0F, "DMA"), (0x20, 0x21, "PIC"), (0x40, 0x43, "PIT"), (0x60, 0x60, "keyboard"),
    (0x61, 0x61, "speaker"), (0x64, 0x64, "keyboard"), (0x70, 0x71, "CMOS"),
    (0x81, 0x8F, "DMA page"), (0x92, 0x92, "A20 gate"), (0xA0, 0xA1, "PIC"),
    (0x1F0, 0x1F7, "IDE"), (0x2E8, 0x2EF, "COM4"), (0x2F8, 0x2FF, "COM2"), (0x378, 0x37A, "LPT1"),
    (0x3C0, 0x3DF, "VGA"), (0x3E8, 0x3EF, "COM3"), (0x3F0, 0x3F7, "floppy"),
    (0x510, 0x511, "fw_cfg"), (0x604, 0x604, "ACPI power"), (0xCF9, 0xCF9, "reset"),
    (0xCF8, 0xCFB, "PCI address"), (0xCFC, 0xCFF, "PCI data"),
)  # fmt: skip


def describe_place(machine: Machine, bus: str, address: int, is_write: bool) -> str:
    """The device at an address of the "pio" or "mmio" bus and the register there, "" if unknown."""
    found = (machine.pio if bus == "pio" else machine.mmio).find(address)
    if found is None:
        if bus == "pio":
            for first, last, name in _PC_PORTS:
                if first <= address <= last:
                    return f"unclaimed ({name})"
        return "unclaimed"
    owner = found[0]
    register = _register(owner.device, address - owner.start, is_write)
    return f"{owner.name} {register}" if register else owner.name


def _register(device: Any, offset: int, is_write: bool) -> str:
    if type(device).__name__ != "Uart16550" or offset >= len(_UART):
        return ""
    if offset < 2 and device.read(_LCR, 1) & _DLAB:  # reading LCR changes nothing
        return _DIVISOR[offset]
    return _UART[offset][is_write]
