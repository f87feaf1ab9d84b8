"""What the machine tells a loader about itself: memory map, tables, command line, initrd, screen.

The machine fills one `BootEnvironment` and hands it to `load_image`; each boot protocol passes on
the part that it knows. Nothing here is x86 register state, and nothing is copied into the guest
before `LoadedImage.place`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pykvm.typed import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from pykvm.boot.modules import Module
    from pykvm.boot.source import ImageInput, Source

Protocol = Literal["auto", "64", "32", "16", "pvh"]
"""Which entry of a Linux kernel is used."""

PROTOCOLS: tuple[Protocol, ...] = ("auto", "64", "32", "16", "pvh")


class FramebufferInfo(NamedTuple):
    """A screen that is on when the kernel starts.

    `kind` "rgb" is a linear frame buffer, "text" the VGA text screen (width and height in
    characters then). `red`, `green` and `blue` are (lowest bit, number of bits) in a pixel.
    """

    address: int
    """Guest-physical address of the first pixel or character."""
    width: int
    height: int
    pitch: int
    """Bytes from one line to the next."""
    bpp: int
    """Bits of one pixel; 16 for text."""
    kind: Literal["rgb", "text"] = "rgb"
    red: tuple[int, int] = (16, 8)
    green: tuple[int, int] = (8, 8)
    blue: tuple[int, int] = (0, 8)

    @property
    def size(self) -> int:
        """Bytes that the visible part takes."""
        return self.pitch * self.height


VGA_TEXT = FramebufferInfo(0xB8000, 80, 25, 160, 16, "text")
"""The screen of a VGA card after power-on: mode 3."""


class BootEnvironment:
    """What a kernel is told, and what its loader must know.

    - `e820`: the guest-physical memory map as (base, size, type) entries, types as in
      `pykvm.arch.e820`; empty: made from the RAM and `reserved`.
    - `rsdp`: guest-physical address of the ACPI RSDP, None without ACPI; `rsdp_data` its bytes, for
      protocols that pass a copy (multiboot 2).
    - `cmdline`, `initrd`, `modules`: what the user gave. An initrd is the first module of kernels
      that know modules only.
    - `framebuffer`: the screen that is on at the start. `video_mode(width, height, bpp)`, if
      there, finds the nearest mode for a kernel that asks for one (None: there is none); what was
      chosen is `LoadedImage.framebuffer`, and the machine turns it on before the start.
    - `fast_boot`: take the kernel out of a compressed image on the host, so that no decompressor
      runs in the guest. That also leaves out what the decompressor does: no kernel KASLR.
    - `reserved`: (guest-physical address, size) pieces that the machine fills itself (ACPI tables,
      SMBIOS, MP table): loaders stay clear of them, and refuse images that are linked there.
    - `protocol`: the entry of a Linux kernel; "auto" takes the best that the image has.
    """

    __slots__ = (
        "cmdline", "e820", "fast_boot", "framebuffer", "initrd", "modules", "protocol", "reserved",
        "rsdp", "rsdp_data", "video_mode",
    )  # fmt: skip

    def __init__(
        self,
        e820: Sequence[tuple[int, int, int]] = (),
        rsdp: int | None = None,
        cmdline: str = "",
        initrd: Source | ImageInput | None = None,
        modules: Sequence[Module] = (),
        framebuffer: FramebufferInfo | None = None,
        fast_boot: bool = False,
        reserved: Sequence[tuple[int, int]] = (),
        protocol: Protocol | str = "auto",
        video_mode: Callable[[int, int, int], FramebufferInfo | None] | None = None,
        rsdp_data: bytes = b"",
    ) -> None:
        self.e820 = list(e820)
        self.rsdp = rsdp
        self.rsdp_data = rsdp_data
        self.cmdline = cmdline
        self.initrd = initrd
        self.modules: Sequence[Module] = modules
        self.framebuffer = framebuffer
        self.fast_boot = fast_boot
        self.reserved = list(reserved)
        self.protocol = protocol
        self.video_mode = video_mode

    def merged(self, cmdline: str, modules: Sequence[Module]) -> BootEnvironment:
        """This environment, with a command line and modules where it has none."""
        if not cmdline and not modules:
            return self
        copy = BootEnvironment(**{name: getattr(self, name) for name in self.__slots__})
        copy.cmdline = copy.cmdline or cmdline
        copy.modules = copy.modules or modules
        return copy
