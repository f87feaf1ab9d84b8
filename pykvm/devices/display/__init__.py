"""What a guest shows: the standard VGA, a plain linear framebuffer, and how to look at them.

`Vga` is the device, `Screen` looks at it (text, ANSI, PNG), `TerminalView` keeps a terminal up to
date. Sources: IBM VGA as FreeVGA documents it, and the Bochs VBE extensions ("DISPI").
"""

from __future__ import annotations

from pykvm.devices.display.dispi import Dispi
from pykvm.devices.display.framebuffer import SimpleFramebuffer
from pykvm.devices.display.pci_vga import PciVga, legacy_ranges, read_vgabios
from pykvm.devices.display.picture import Picture, PictureError
from pykvm.devices.display.screen import Screen
from pykvm.devices.display.terminal import TerminalView
from pykvm.devices.display.textframe import TextFrame
from pykvm.devices.display.vga import Vga

__all__ = [
    "Dispi",
    "PciVga",
    "Picture",
    "PictureError",
    "Screen",
    "SimpleFramebuffer",
    "TerminalView",
    "TextFrame",
    "Vga",
    "legacy_ranges",
    "read_vgabios",
]
