"""Task-state segments: the 32-bit and the 64-bit layout, each with an I/O permission bitmap.

Sources: SDM vol. 3A 7.2.1 and 7.7, vol. 1 19.5.2 (I/O bitmap); APM vol. 2 12.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from pykvm.arch.errors import DescriptorError

TSS32_SIZE = 104
"""Bytes of a 32-bit TSS without its bitmap."""
TSS64_SIZE = 104
"""Bytes of a 64-bit TSS without its bitmap."""

_TSS64 = struct.Struct("<I3QQ7QQHH")
_TSS32 = struct.Struct("<25IHH")

# The bitmap directly follows the structure. Without one its offset lies beyond the segment's
# limit, which is how a TSS says that ring 3 has no ports.

TSS32_FIELDS = (
    *("link", "esp0", "ss0", "esp1", "ss1", "esp2", "ss2", "cr3", "eip"),
    *("eflags", "eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "es"),
    *("cs", "ss", "ds", "fs", "gs", "ldt", "trap"),
)


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


class Tss64:
    """A 64-bit TSS: stack pointers for rings 0 to 2 and the seven interrupt stacks.

    `ist[0]` is IST1. All are linear addresses of the top of a stack. `bitmap` is the I/O
    permission bitmap that follows the structure; empty means no ports for ring 3.
    """

    def __init__(
        self,
        rsp0: int = 0,
        rsp1: int = 0,
        rsp2: int = 0,
        ist: list[int] | None = None,
        bitmap: bytes = b"",
    ) -> None:
        self.rsp0 = rsp0
        self.rsp1 = rsp1
        self.rsp2 = rsp2
        self.ist = [0] * 7 if ist is None else ist
        self.bitmap = bitmap

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tss64) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # mutable

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


class Tss32:
    """A 32-bit TSS: the stacks of rings 0 to 2, and the registers of a hardware task.

    `ss0:esp0` is all that interrupts from ring 3 need; the rest (`TSS32_FIELDS`, in the order of
    the structure) serves hardware task switches. `bitmap` is the I/O permission bitmap, as in
    `Tss64`.
    """

    ss0: int
    esp0: int
    bitmap: bytes

    def __init__(self, *values: int, bitmap: bytes = b"", **fields: int) -> None:
        given = dict(zip(TSS32_FIELDS, values, strict=False)) | fields
        if len(values) > len(TSS32_FIELDS) or given.keys() - set(TSS32_FIELDS):
            raise DescriptorError(f"a 32-bit TSS has the fields {' '.join(TSS32_FIELDS)} only")
        for name in TSS32_FIELDS:
            setattr(self, name, given.get(name, 2 if name == "eflags" else 0))
        self.bitmap = bitmap

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tss32) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # mutable

    def to_bytes(self) -> bytes:
        """The TSS and its bitmap as they go into guest memory; the segment limit is len - 1."""
        values = [getattr(self, name) for name in TSS32_FIELDS]
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
        return cls(**dict(zip(TSS32_FIELDS, values, strict=True)), bitmap=bitmap)
