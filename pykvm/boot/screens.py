"""The screen that a multiboot kernel asks for, and what it gets."""

from __future__ import annotations

import struct

from pykvm.boot.environment import BootEnvironment, FramebufferInfo
from pykvm.typed import NamedTuple

DEFAULT_SIZE = (1024, 768, 32)
"""Width, height and bits per pixel for a kernel without a preference."""
MAX_SIDE = 1 << 15


class ScreenRequest(NamedTuple):
    """What the kernel prefers; 0 is no preference. Text counts in characters, with depth 0."""

    text: bool
    width: int
    height: int
    depth: int


def choose_screen(
    environment: BootEnvironment, request: ScreenRequest | None
) -> FramebufferInfo | None:
    """The screen for a kernel that asked for `request` (None: it did not ask); None if there is
    none.

    A preference is only that: the kernel gets the machine's nearest mode, or the screen as it is.
    """
    if request is None or request.text or environment.video_mode is None:
        return environment.framebuffer
    wanted = (request.width, request.height, request.depth)
    size = tuple(v if 0 < v <= MAX_SIDE else d for v, d in zip(wanted, DEFAULT_SIZE, strict=True))
    return environment.video_mode(*size) or environment.framebuffer


def framebuffer_fields(screen: FramebufferInfo, *, wide: bool) -> bytes:
    """Address to colour fields as both multiboot specifications lay them out; `wide`: multiboot 2,
    with 16 reserved bits behind the type."""
    kind = 2 if screen.kind == "text" else 1
    head = struct.pack(
        "<QIIIBB", screen.address, screen.pitch, screen.width, screen.height, screen.bpp, kind
    )
    head += bytes(2 * wide)
    if kind == 2:
        return head if wide else head + bytes(6)
    return head + bytes((*screen.red, *screen.green, *screen.blue))
