"""The pc board: PCI, ACPI and the legacy devices of a PC."""

from __future__ import annotations

from pykvm.machine.boards import Microvm


class PcBoard(Microvm):
    """A PC as software expects it since the ICH9."""

    name = "pc"
    vga_window = True
