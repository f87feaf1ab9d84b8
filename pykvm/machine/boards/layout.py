"""Where everything is: the address map of the boards. Guest-physical addresses, ports, GSIs.

RAM fills 0 to 3 GiB and goes on at 4 GiB; the gigabyte between belongs to devices. On the pc board
0xA0000-0xBFFFF is the VGA window instead of RAM.
"""

from __future__ import annotations

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# -- memory ------------------------------------------------------------------------------------

VGA_WINDOW, VGA_WINDOW_END = 0xA_0000, 0xC_0000
EBDA = 0x9_FC00  # extended BIOS data area: the last KiB of conventional memory
BIOS_AREA, BIOS_AREA_END = 0xE_0000, 0x10_0000  # tables for who starts without firmware
RAM_HOLE = 0xC000_0000  # RAM stops here and goes on at 4 GiB
HIGH_RAM = 4 * GIB

PCI_WINDOW, PCI_WINDOW_SIZE = 0xC000_0000, 0x2000_0000
FIRMWARE_ECAM = 0xB000_0000  # where SeaBIOS moves it
ECAM, ECAM_SIZE = 0xE000_0000, 0x1000_0000  # configuration space of buses 0 to 255
PCI_WINDOW2, PCI_WINDOW2_SIZE = 0xF000_0000, 0x0EC0_0000  # on the pc board, to the IOAPIC
VIRTIO_MMIO, VIRTIO_MMIO_SIZE = 0xFEB0_0000, 0x200  # one after the other
IOAPIC, IOAPIC_SIZE, IOAPIC_PINS = 0xFEC0_0000, 0x1000, 24
LAPIC = 0xFEE0_0000
IDENTITY_MAP = 0xFEFF_C000  # a page, and three, that VMX hosts without unrestricted guest need
TSS_ADDRESS = 0xFEFF_D000
PCI_WINDOW64_SIZE = 32 * GIB
FIRMWARE_END = 1 << 32
FIRMWARE_LOW_COPY = 128 * KIB  # the last part of a firmware image shows below 1 MiB, too

# -- ports -------------------------------------------------------------------------------------

PIC_MASTER, PIC_SLAVE, PIC_ELCR = 0x20, 0xA0, 0x4D0
PIT = 0x40
KEYBOARD_DATA, KEYBOARD_COMMAND = 0x60, 0x64
SPEAKER = 0x61
RTC = 0x70
POST_CODE = 0x80
PORT_92 = 0x92
DEBUGCON = 0xE9
DEBUG_EXIT = 0xF4
COM2 = 0x2F8
COM1 = 0x3F8
FIRMWARE_DEBUG = 0x402  # where firmware of the pc board prints its own log
PVPANIC = 0x505
FW_CFG, FW_CFG_DMA = 0x510, 0x514
PM_EVENT, PM_CONTROL, PM_TIMER, PM_GPE0 = 0x600, 0x604, 0x608, 0x620
PCI_CONFIG = 0xCF8
RESET_CONTROL = 0xCF9

# -- interrupts --------------------------------------------------------------------------------

COM1_IRQ, COM2_IRQ = 4, 3
KEYBOARD_IRQ, MOUSE_IRQ, RTC_IRQ, SCI_IRQ = 1, 12, 8, 9
PIRQ_GSI = 16  # PIRQ A to H are GSIs 16 to 23
PIRQS = 8


def virtio_mmio_gsi(slot: int) -> int:
    """The GSI of virtio-mmio device `slot`: those of the PICs that are free first, then 16 to 23.

    A kernel without ACPI and MP table has the PICs alone, so only the first nine work there.
    """
    order: list[int] = [5, 6, 7, 10, 11, 12, 14, 15, 3, *range(16, 24)]
    return order[slot % len(order)]


def low_ram(size: int, *, pc: bool) -> int:
    """How much of `size` bytes of RAM is below 4 GiB.

    On the pc board only 2 GiB where there is more than reaches 0xB0000000: that is where SeaBIOS
    puts the ECAM window.
    """
    if pc and size > FIRMWARE_ECAM:
        return 2 * GIB
    return min(size, RAM_HOLE)


def ram_pieces(size: int, *, pc: bool) -> list[tuple[int, int]]:
    """RAM of `size` bytes as (guest-physical address, size) pieces; a PC has the VGA window."""
    low = low_ram(size, pc=pc)
    pieces = [(0, low)]
    if pc and low > VGA_WINDOW:
        pieces = [(0, VGA_WINDOW)]
        if low > VGA_WINDOW_END:
            pieces.append((VGA_WINDOW_END, low - VGA_WINDOW_END))
    if size > low:
        pieces.append((HIGH_RAM, size - low))
    return pieces


def pci_window64(memory_size: int) -> int:
    """Where the 64-bit PCI window begins: the first 4 GiB border above RAM."""
    end = HIGH_RAM + memory_size - low_ram(memory_size, pc=True)
    return (end + HIGH_RAM - 1) // HIGH_RAM * HIGH_RAM
