"""A video mode for kernels that ask their boot loader for one: the VGA's linear mode, set through
its VBE registers as a boot loader would have the video BIOS do it."""

from __future__ import annotations

from collections.abc import Callable

from pykvm.boot.environment import FramebufferInfo
from pykvm.devices.display import dispi
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.machine.boards.pc import PcBoard

_CHANNELS = {
    16: ((11, 5), (5, 6), (0, 5)),
    24: ((16, 8), (8, 8), (0, 8)),
    32: ((16, 8), (8, 8), (0, 8)),
}
DEFAULT_BPP = 32
MAX_WIDTH, MAX_HEIGHT = 2560, 1600
MIN_WIDTH, MIN_HEIGHT = 320, 200


def video_modes(board: PcBoard) -> Callable[[int, int, int], FramebufferInfo | None]:
    """For `BootEnvironment.video_mode`: the mode nearest to a width, a height and bits per pixel;
    None while the VGA's frame buffer has no address. Nothing is switched yet."""

    def nearest(width: int, height: int, bpp: int) -> FramebufferInfo | None:
        address = board.frame_buffer()
        if address is None:
            return None
        bpp = bpp if bpp in _CHANNELS else DEFAULT_BPP
        width = min(max(width // 8 * 8, MIN_WIDTH), MAX_WIDTH)
        pitch = width * bpp // 8
        height = min(max(height, MIN_HEIGHT), MAX_HEIGHT, board.vga.vram_size // pitch)
        return FramebufferInfo(address, width, height, pitch, bpp, "rgb", *_CHANNELS[bpp])

    return nearest


def switch_on(board: PcBoard, screen: FramebufferInfo) -> None:
    """Sets the mode that the kernel was told of; a text screen is on already."""
    if screen.kind == "text":
        return
    registers = board.vga.dispi
    registers.write(dispi.ENABLE, 0)
    registers.write(dispi.XRES, screen.width)
    registers.write(dispi.YRES, screen.height)
    registers.write(dispi.BPP, screen.bpp)
    registers.write(dispi.ENABLE, dispi.ENABLED | dispi.LFB)
