"""Task-state segments: the 32-bit and the 64-bit layout, each with an I/O permission bitmap.

Sources: SDM vol. 3A 7.2.1 and 7.7, vol. 1 19.5.2 (I/O bitmap); APM vol. 2 12.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, fields

from pykvm.arch.errors import DescriptorError

TSS32_SIZE = 104
"""Bytes of a 32-bit TSS without its bitmap."""
TSS64_SIZE = 104
"""Bytes of a 64-bit TSS without its bitmap."""

_TSS64 = struct.Struct("<I3QQ7QQHH")
_TSS32 = struct.Struct("<25IHH")

# The bitmap directly follows the structure. Without one its offset lies beyond the segment's
# limit, which is how a TSS says that ring 3 has no ports.


def io_bitmap(allowed: Iterable[int]) -> bytes:
    """An I/O permission bitmap that lets ring 3 use the `allowed` ports, and no other.

    As long as the highest allowed port needs, plus the byte of ones that must end every bitmap.
    Raises `DescriptorError` for a port outside 0..0xffff.
    """
    ports = set(allowed)
    for port in ports:
        if not 0 <= port <= 0xFFFF:
            raise DescriptorError(f"I/O port {port:#x} is outside 0..0xffff")
    bitmap = bytearray(b"\xff" * (max(ports, default=-1) // 8 + 2 if ports else 1))
    for port in ports:
        bitmap[port // 8] &= ~(1 << port % 8) & 0xFF
    return bytes(bitmap)


@dataclass
class Tss64:
    """A 64-bit TSS: stack pointers for rings 0 to 2 and the seven interrupt stacks.

    `ist[0]` is IST1. All are linear addresses of the top of a stack. `bitmap` is the I/O
    permission bitmap that follows the structure; empty means no ports for ring 3.
    """

    rsp0: int = 0
    rsp1: int = 0
    rsp2: int = 0
    ist: list[int] = field(default_factory=lambda: [0] * 7)
    bitmap: bytes = b""

    def to_bytes(self) -> bytes:
        """The TSS and its bitmap as they go into guest memory; the segment limit is len - 1."""
        if len(self.ist) != 7:
            raise DescriptorError(f"a 64-bit TSS has 7 interrupt stacks, not {len(self.ist)}")
        try:
            head = _TSS64.pack(0, self.rsp0, self.rsp1, self.rsp2, 0, *self.ist, 0, 0, TSS64_SIZE)
        except struct.error as error:
            raise DescriptorError(
                f"a stack pointer of the TSS is not a 64-bit address: {error}"
            ) from None
        return head + self.bitmap

    @classmethod
    def from_bytes(cls, raw: bytes) -> Tss64:
        """Read a TSS and what follows it as bitmap; `DescriptorError` when it is too short."""
        if len(raw) < TSS64_SIZE:
            raise DescriptorError(f"a 64-bit TSS has {TSS64_SIZE} bytes, not {len(raw)}")
        values = _TSS64.unpack_from(raw)
        base = values[-1]
        bitmap = bytes(raw[base:]) if base >= TSS64_SIZE else b""
        return cls(values[1], values[2], values[3], list(values[5:12]), bitmap)


@dataclass
class Tss32:
    """A 32-bit TSS: the stacks of rings 0 to 2, and the registers of a hardware task.

    `ss0:esp0` is all that interrupts from ring 3 need; the rest serves hardware task switches.
    `bitmap` is the I/O permission bitmap, as in `Tss64`.
    """

    link: int = 0
    esp0: int = 0
    ss0: int = 0
    esp1: int = 0
    ss1: int = 0
    esp2: int = 0
    ss2: int = 0
    cr3: int = 0
    eip: int = 0
    eflags: int = 2
    eax: int = 0
    ecx: int = 0
    edx: int = 0
    ebx: int = 0
    esp: int = 0
    ebp: int = 0
    esi: int = 0
    edi: int = 0
    es: int = 0
    cs: int = 0
    ss: int = 0
    ds: int = 0
    fs: int = 0
    gs: int = 0
    ldt: int = 0
    trap: int = 0
    bitmap: bytes = b""

    def to_bytes(self) -> bytes:
        """The TSS and its bitmap as they go into guest memory; the segment limit is len - 1."""
        values = [getattr(self, name) for name in _TSS32_FIELDS]
        try:
            head = _TSS32.pack(*values, TSS32_SIZE)
        except struct.error as error:
            raise DescriptorError(f"a field of the 32-bit TSS does not fit: {error}") from None
        return head + self.bitmap

    @classmethod
    def from_bytes(cls, raw: bytes) -> Tss32:
        """Read a TSS and what follows it as bitmap; `DescriptorError` when it is too short."""
        if len(raw) < TSS32_SIZE:
            raise DescriptorError(f"a 32-bit TSS has {TSS32_SIZE} bytes, not {len(raw)}")
        *values, base = _TSS32.unpack_from(raw)
        bitmap = bytes(raw[base:]) if base >= TSS32_SIZE else b""
        return cls(**dict(zip(_TSS32_FIELDS, values, strict=True)), bitmap=bitmap)


_TSS32_FIELDS = tuple(f.name for f in fields(Tss32) if f.name != "bitmap")
