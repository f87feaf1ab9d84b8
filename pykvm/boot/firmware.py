"""Firmware: a ROM image that ends at 4 GiB, entered at the architectural reset vector.

The first instruction is at 0xfffffff0 (SDM vol. 3A 10.1.4): CS has selector 0xf000 and base
0xffff0000, IP is 0xfff0, everything else is as a reset leaves it. The image's last 128 KiB are also
copied below 1 MiB, as chipsets show them there.
"""

from __future__ import annotations

from pykvm.arch.bits import CR0
from pykvm.arch.presets import real_mode
from pykvm.arch.state import TableState
from pykvm.boot.errors import ImageError, human_size, span
from pykvm.boot.image import LoadedImage, Segment
from pykvm.boot.layout import FOUR_GIB, HIGH_START, PAGE, Layout
from pykvm.boot.source import Source

MAX_SIZE = 16 << 20
SHADOW_SIZE = 128 << 10
"""Bytes of the image's end that are copied below 1 MiB."""
RESET_VECTOR = 0xFFFFFFF0
_CS_BASE = 0xFFFF0000


def load_firmware(source: Source, layout: Layout) -> LoadedImage:
    """A firmware image: its ROM, its copy below 1 MiB, and the reset state. Raises `ImageError`."""
    name, data = source.name, source.data
    size = len(data)
    if size % PAGE or not size:
        raise ImageError(
            f"{name}: firmware of {size} bytes is not a multiple of 4 KiB, as a ROM's size is: "
            "give the whole image"
        )
    if size > MAX_SIZE:
        raise ImageError(
            f"{name}: firmware of {human_size(size)} is larger than {human_size(MAX_SIZE)}: give "
            "the code part of the image alone"
        )
    base = FOUR_GIB - size
    if any(low < FOUR_GIB and base < high for low, high in layout.ram):
        raise ImageError(
            f"{name}: the firmware's place at {span(base, size)} is RAM "
            f"({layout.describe()}): leave the addresses below 4 GiB free"
        )
    notes = []
    shadow = min(size, SHADOW_SIZE)
    segments = []
    if layout.in_ram(HIGH_START - shadow, shadow):
        layout.claim(HIGH_START - shadow, shadow, "the firmware's copy below 1 MiB")
        part = data[size - shadow :]
        segments.append(Segment(HIGH_START - shadow, part, shadow, "the firmware's copy"))
    else:
        notes.append("there is no RAM below 1 MiB for a copy of the firmware")
    state = real_mode(0)
    del state.regs["rdx"]  # holds the CPU's signature after a reset
    state.regs["rip"], state.regs["rsp"] = RESET_VECTOR - _CS_BASE, 0
    state.segments["cs"] = state.segments["cs"].replace(selector=0xF000, base=_CS_BASE)
    state.idt = TableState(0, 0xFFFF)
    state.cr0 = int(CR0.CD | CR0.NW | CR0.ET)
    return LoadedImage(
        name=name,
        format="firmware",
        segments=segments,
        entry=RESET_VECTOR,
        mode="real",
        state=state,
        notes=notes,
        sources=(source,),
        roms=[(base, data)],
    )
