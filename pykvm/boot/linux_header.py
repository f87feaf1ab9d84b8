"""The setup header of a Linux bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel
Header").

Only what the header's version defines is believed: later fields read as 0. Offsets are those in
the file, which are also those in `struct boot_params`.
"""

from __future__ import annotations

import struct

from pykvm.boot.detect import is_bzimage
from pykvm.boot.errors import ImageError
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.boot.source import Source

HEADER_START = 0x1F1
HEADER_LIMIT = 0x290
"""One past the last byte that a setup header can have in `struct boot_params`."""
SECTOR = 512
OLDEST = 0x200
"""Boot protocol 2.00 (Linux 1.3.73), the first with this header."""

LOADED_HIGH = 0x01
CAN_USE_HEAP = 0x80
XLF_KERNEL_64 = 1 << 0
XLF_CAN_BE_LOADED_ABOVE_4G = 1 << 1

_INITRD_ADDR_MAX = 0x37FFFFFF  # before protocol 2.03
_CMDLINE_SIZE = 255  # before protocol 2.06

# name → (offset, struct format, first protocol version that has it)
_FIELDS = {
    "syssize": (0x1F4, "I", 0x204),
    "kernel_version": (0x20E, "H", 0x200),
    "loadflags": (0x211, "B", 0x200),
    "code32_start": (0x214, "I", 0x200),
    "initrd_addr_max": (0x22C, "I", 0x203),
    "kernel_alignment": (0x230, "I", 0x205),
    "relocatable_kernel": (0x234, "B", 0x205),
    "min_alignment": (0x235, "B", 0x20A),
    "xloadflags": (0x236, "H", 0x20C),
    "cmdline_size": (0x238, "I", 0x206),
    "payload_offset": (0x248, "I", 0x208),
    "payload_length": (0x24C, "I", 0x208),
    "pref_address": (0x258, "Q", 0x20A),
    "init_size": (0x260, "I", 0x20A),
}


class SetupHeader:
    """The header of one bzImage, checked against the file. Raises `ImageError`.

    All addresses are guest-physical.
    """

    def __init__(self, source: Source) -> None:
        name, data = source.name, source.data
        self.name = name
        if not is_bzimage(data):
            raise ImageError(
                f"{name}: this is not a Linux bzImage (no setup header at offset 0x1f1): give a "
                "bzImage, or leave the format out"
            )
        if len(data) < HEADER_LIMIT:
            raise ImageError(
                f"{name}: {len(data)} bytes are too few for a Linux setup header: the file is "
                "truncated, copy it again"
            )
        self.version: int
        (self.version,) = struct.unpack_from("<H", data, 0x206)
        if not OLDEST <= self.version < 0x300:
            raise ImageError(
                f"{name}: its boot protocol version {self.version >> 8}.{self.version & 255:02} "
                "is not 2.00 or a later 2.x: give a Linux kernel from 1995 or later"
            )
        # Without a size of its own a header of the first versions ends at 0x224.
        self.end = min(max(0x202 + data[0x201], 0x224), HEADER_LIMIT)
        self.raw = bytes(data[HEADER_START : self.end])
        """The header's bytes, for `struct boot_params` at the same offset."""
        self.setup_size = ((data[HEADER_START] or 4) + 1) * SECTOR
        """Bytes of the real-mode part, the boot sector included."""
        if self.setup_size >= len(data):
            raise ImageError(
                f"{name}: its real-mode part of {self.setup_size} bytes is all of the file's "
                f"{len(data)}: the file is truncated, copy it again"
            )
        self._data = data
        self._check_size()

    def _field(self, name: str) -> int:
        offset, layout, since = _FIELDS[name]
        if self.version < since:
            return 0
        value: int = struct.unpack_from("<" + layout, self._data, offset)[0]
        return value

    def _check_size(self) -> None:
        # A signature may follow the kernel, so more bytes than syssize says are no error.
        need = self.setup_size + self._field("syssize") * 16 - 16
        if need > len(self._data):
            raise ImageError(
                f"{self.name}: its header says that the kernel has about {need} bytes and the "
                f"file has {len(self._data)}: it is truncated, copy it again"
            )

    @property
    def kernel(self) -> memoryview:
        """The protected-mode part: everything after the real-mode part."""
        return self._data[self.setup_size :]

    @property
    def setup(self) -> memoryview:
        """The real-mode part."""
        return self._data[: self.setup_size]

    @property
    def kernel_version(self) -> str:
        """What the kernel calls itself; empty if it does not say."""
        at = self._field("kernel_version")
        if not at or at + SECTOR >= self.setup_size:
            return ""
        text = bytes(self._data[at + SECTOR : min(at + SECTOR + 128, self.setup_size)])
        return text.partition(b"\0")[0].decode("ascii", "replace")

    @property
    def loaded_high(self) -> bool:
        """The protected-mode part goes to 1 MiB or above (bzImage), not to 0x10000 (zImage)."""
        return bool(self._field("loadflags") & LOADED_HIGH)

    @property
    def loadflags(self) -> int:
        """The bits of `loadflags`."""
        return self._field("loadflags")

    @property
    def has_entry64(self) -> bool:
        """Whether there is a 64-bit entry point, 0x200 bytes into the protected-mode part."""
        return bool(self._field("xloadflags") & XLF_KERNEL_64)

    @property
    def has_entry32(self) -> bool:
        """Whether the protected-mode part is known to start with the 32-bit entry.

        Before protocol 2.08 the only promise is the 16-bit entry, and images that use the header
        as a wrapper (iPXE) keep no more than that.
        """
        return self.version >= 0x208

    @property
    def above_4g(self) -> bool:
        """Whether the initrd may lie above 4 GiB."""
        return bool(self._field("xloadflags") & XLF_CAN_BE_LOADED_ABOVE_4G)

    @property
    def initrd_addr_max(self) -> int:
        """The highest address that a byte of the initrd may have."""
        return self._field("initrd_addr_max") or _INITRD_ADDR_MAX

    @property
    def cmdline_size(self) -> int:
        """Longest command line in bytes, without its terminating zero."""
        return self._field("cmdline_size") or _CMDLINE_SIZE

    @property
    def relocatable(self) -> bool:
        """Whether the protected-mode part runs at any aligned address."""
        return bool(self._field("relocatable_kernel"))

    @property
    def alignment(self) -> int:
        """Alignment of a relocated kernel in bytes, a power of two of at least 4 KiB."""
        value = self._field("kernel_alignment") or 1 << 20
        if value & (value - 1):
            raise ImageError(
                f"{self.name}: its header's kernel_alignment {value:#x} is no power of two: the "
                "header is damaged, copy the file again"
            )
        return max(value, 0x1000)

    @property
    def min_alignment(self) -> int:
        """The least alignment that the kernel bears when memory is tight."""
        shift = self._field("min_alignment")
        return 1 << shift if 12 <= shift <= 30 else self.alignment

    @property
    def preferred(self) -> int:
        """Where the protected-mode part wants to be."""
        if not self.loaded_high:
            return 0x10000
        return self._field("pref_address") or 0x100000

    @property
    def init_size(self) -> int:
        """Bytes from its load address that the kernel uses before it looks at the memory map."""
        return max(self._field("init_size"), len(self._data) - self.setup_size)

    @property
    def payload(self) -> memoryview | None:
        """The compressed vmlinux inside; None if the header does not tell of one."""
        offset, length = self._field("payload_offset"), self._field("payload_length")
        if not offset or not length:
            return None
        if offset + length > len(self.kernel):
            raise ImageError(
                f"{self.name}: its header puts {length} bytes of compressed kernel at offset "
                f"{offset:#x} of a protected-mode part of {len(self.kernel)}: the file is "
                "truncated, copy it again"
            )
        return self.kernel[offset : offset + length]
