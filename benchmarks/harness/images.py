"""The guest code that all sides run: pykvm's own built guests, with their parameters set."""

from __future__ import annotations

import struct
from pathlib import Path

from .model import BenchError

IMAGES = Path(__file__).resolve().parents[2] / "pykvm" / "images"

PORT = 0x10
"""The port of the PIO loops: nothing in a Machine claims it by default."""

MMIO = 0xD0000000
"""The guest-physical address of the MMIO loops: above all RAM, below the interrupt controllers."""

MODES = {"pio-out": "real", "pio-in": "real", "mmio-write": "protected", "mmio-read": "protected"}
"""The loops, and the CPU mode each is entered in."""

PARAMETERS = 4
"""Offset of the parameters in the loop guests (guests/pio-loop, guests/mmio-loop)."""


def guest_image(name: str) -> Path:
    """Path of a built guest. Raises BenchError where guests/build.py has not made it."""
    for suffix in (".elf", ".bin"):
        path = IMAGES / f"{name}{suffix}"
        if path.exists():
            return path
    raise BenchError(f"guest {name} is not built: run python guests/build.py")


def loop_image(kind: str, exits: int) -> bytes:
    """A flat image for 0x1000 that makes `exits` exits of that kind, then writes to the debug-exit
    port.
    """
    if kind not in MODES:
        raise BenchError(f"no guest loop is called {kind}: one of {', '.join(MODES)}")
    direction = 1 if kind in ("pio-in", "mmio-read") else 0
    if MODES[kind] == "real":
        name, parameters = "pio-loop", struct.pack("<IHH", exits, PORT, direction)
    else:
        name, parameters = "mmio-loop", struct.pack("<III", exits, MMIO, direction)
    image = bytearray(guest_image(name).read_bytes())
    image[PARAMETERS : PARAMETERS + len(parameters)] = parameters
    return bytes(image)
