"""Segment and gate descriptors, descriptor tables, and conversion to and from `SegmentState`.

Sources: SDM vol. 3A 3.4.5 (segment descriptors), 3.5 (system descriptors), 5.8.3 (call gates),
6.11 and 6.14.1 (IDT gates); APM vol. 2 4.7 and 4.8. TSS layouts are in `pykvm.arch.tss`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pykvm.arch.bits import SegmentType, SystemType
from pykvm.arch.errors import DescriptorError
from pykvm.arch.state import SegmentState
from pykvm.typed import NamedTuple

RPL_MASK = 3
"""Requested privilege level: the two low bits of a selector."""


def _in_range(what: str, value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise DescriptorError(f"{what} is {value:#x}, but has only {bits} bits")
    return value


def code_segment(
    bits: int, *, dpl: int = 0, selector: int = 0, base: int = 0, limit: int | None = None
) -> SegmentState:
    """A readable, accessed code segment for `bits` = 16, 32 or 64; flat unless told otherwise.

    The default limit is 64 KiB - 1 for 16-bit code and 4 GiB - 1 for the others.
    """
    if bits not in (16, 32, 64):
        raise DescriptorError(f"a code segment is 16, 32 or 64 bits wide, not {bits}")
    top = limit if limit is not None else 0xFFFF if bits == 16 else 0xFFFFFFFF
    return SegmentState(
        base=base,
        limit=top,
        selector=selector,
        type=int(SegmentType.CODE_XR_ACCESSED),
        present=1,
        dpl=dpl,
        db=int(bits == 32),
        s=1,
        l=int(bits == 64),
        g=int(top > 0xFFFFF),
        avl=0,
    )


def data_segment(
    *, bits: int = 32, dpl: int = 0, selector: int = 0, base: int = 0, limit: int | None = None
) -> SegmentState:
    """A writable, accessed data segment; `bits` = 16 or 32 sets the stack width (the B flag)."""
    if bits not in (16, 32):
        raise DescriptorError(f"a data segment is 16 or 32 bits wide, not {bits}")
    top = limit if limit is not None else 0xFFFF if bits == 16 else 0xFFFFFFFF
    return SegmentState(
        base=base,
        limit=top,
        selector=selector,
        type=int(SegmentType.DATA_RW_ACCESSED),
        present=1,
        dpl=dpl,
        db=int(bits == 32),
        s=1,
        l=0,
        g=int(top > 0xFFFFF),
        avl=0,
    )


def system_segment(
    kind: SystemType, base: int, limit: int, *, dpl: int = 0, selector: int = 0
) -> SegmentState:
    """An LDT or TSS segment register: linear `base`, `limit` in bytes."""
    return SegmentState(
        base=base,
        limit=limit,
        selector=selector,
        type=int(kind),
        present=1,
        dpl=dpl,
        db=0,
        s=0,
        l=0,
        g=int(limit > 0xFFFFF),
        avl=0,
    )


def encode_segment(segment: SegmentState, *, wide: bool = False) -> bytes:
    """The descriptor of a segment: 8 bytes, or 16 with `wide` (a 64-bit LDT or TSS).

    The hidden `selector` and `unusable` are not part of a descriptor. Raises `DescriptorError` for
    what the format cannot hold: a limit that needs granularity but is not a multiple of 4 KiB
    less one, a base beyond 32 bits in an 8-byte descriptor, a wide code or data descriptor.
    """
    if segment.g:
        if segment.limit & 0xFFF != 0xFFF or not 0xFFF <= segment.limit <= 0xFFFFFFFF:
            raise DescriptorError(
                f"limit {segment.limit:#x} with page granularity: its low 12 bits must be ones"
            )
        limit = segment.limit >> 12
    else:
        if not 0 <= segment.limit <= 0xFFFFF:
            raise DescriptorError(
                f"limit {segment.limit:#x} does not fit 20 bits: set page granularity (g=1)"
            )
        limit = segment.limit
    if wide and segment.s:
        raise DescriptorError("a code or data descriptor has 8 bytes, also in 64-bit mode")
    base = _in_range("base", segment.base, 64 if wide else 32)
    value = limit & 0xFFFF | (base & 0xFFFFFF) << 16
    value |= _in_range("type", segment.type, 4) << 40
    value |= _in_range("s", segment.s, 1) << 44
    value |= _in_range("dpl", segment.dpl, 2) << 45
    value |= _in_range("present", segment.present, 1) << 47
    value |= limit >> 16 << 48
    value |= _in_range("avl", segment.avl, 1) << 52
    value |= _in_range("l", segment.l, 1) << 53
    value |= _in_range("db", segment.db, 1) << 54
    value |= _in_range("g", segment.g, 1) << 55
    value |= (base >> 24 & 0xFF) << 56
    if wide:
        value |= base >> 32 << 64
    return value.to_bytes(16 if wide else 8, "little")


def decode_segment(raw: bytes, *, selector: int = 0) -> SegmentState:
    """The segment that a CPU would load from a descriptor of 8 or 16 bytes.

    A descriptor that is not present gives an unusable segment; nothing else is judged here.
    """
    if len(raw) not in (8, 16):
        raise DescriptorError(f"a descriptor has 8 or 16 bytes, not {len(raw)}")
    value = int.from_bytes(raw, "little")
    limit = value & 0xFFFF | (value >> 48 & 0xF) << 16
    base = value >> 16 & 0xFFFFFF | (value >> 56 & 0xFF) << 24
    if len(raw) == 16:
        base |= (value >> 64 & 0xFFFFFFFF) << 32
    granular = value >> 55 & 1
    present = value >> 47 & 1
    return SegmentState(
        base=base,
        limit=limit << 12 | 0xFFF if granular else limit,
        selector=selector,
        type=value >> 40 & 0xF,
        present=present,
        dpl=value >> 45 & 3,
        db=value >> 54 & 1,
        s=value >> 44 & 1,
        l=value >> 53 & 1,
        g=granular,
        avl=value >> 52 & 1,
        unusable=1 - present,
    )


def real_mode_segment(selector: int, *, code: bool = False) -> SegmentState:
    """A segment register as real mode leaves it: base = selector * 16, limit 64 KiB - 1."""
    _in_range("real-mode selector", selector, 16)
    kind = SegmentType.CODE_XR_ACCESSED if code else SegmentType.DATA_RW_ACCESSED
    return SegmentState(selector << 4, 0xFFFF, selector, int(kind), 1, 0, 0, 1, 0, 0, 0)


_GATES = frozenset(
    (
        *(SystemType.CALL_GATE16, SystemType.TASK_GATE, SystemType.INTERRUPT_GATE16),
        *(SystemType.TRAP_GATE16, SystemType.CALL_GATE, SystemType.INTERRUPT_GATE),
        SystemType.TRAP_GATE,
    )
)


class Gate(NamedTuple):
    """A call, interrupt, trap or task gate.

    `offset` is the handler's address in the segment that `selector` names; `ist` (1 to 7) picks an
    interrupt stack in 64-bit mode, `params` is the parameter count of a 32-bit call gate.
    """

    offset: int
    selector: int = 0x08
    type: int = SystemType.INTERRUPT_GATE
    dpl: int = 0
    present: int = 1
    ist: int = 0
    params: int = 0

    def encode(self, bits: int) -> bytes:
        """The gate for a 32-bit (8 bytes) or 64-bit (16 bytes) table.

        Raises `DescriptorError` for a type that is no gate, 16-bit and task gates in a 64-bit
        table, and values that do not fit.
        """
        if self.type not in _GATES:
            raise DescriptorError(f"descriptor type {self.type} is not a gate")
        if bits == 64 and self.type not in (
            SystemType.CALL_GATE,
            SystemType.INTERRUPT_GATE,
            SystemType.TRAP_GATE,
        ):
            raise DescriptorError(f"gate type {self.type} does not exist in 64-bit mode")
        if bits not in (32, 64):
            raise DescriptorError(f"gates have a 32-bit and a 64-bit form, not {bits}")
        if bits == 32 and self.ist:
            raise DescriptorError("interrupt stacks (ist) exist only in 64-bit gates")
        if bits == 64 and self.params:
            raise DescriptorError("parameter counts exist only in 16-bit and 32-bit call gates")
        width = 64 if bits == 64 else 16 if self.type < 8 else 32
        offset = _in_range("gate offset", self.offset, width)
        value = offset & 0xFFFF | _in_range("gate selector", self.selector, 16) << 16
        value |= _in_range("ist", self.ist, 3) << 32 if bits == 64 else 0
        value |= _in_range("params", self.params, 5) << 32 if bits == 32 else 0
        value |= self.type << 40 | _in_range("dpl", self.dpl, 2) << 45
        value |= _in_range("present", self.present, 1) << 47 | (offset >> 16 & 0xFFFF) << 48
        if bits == 64:
            value |= offset >> 32 << 64
        return value.to_bytes(16 if bits == 64 else 8, "little")

    @classmethod
    def decode(cls, raw: bytes) -> Gate:
        """Read a gate of 8 (32-bit) or 16 (64-bit) bytes; `DescriptorError` if it is no gate."""
        if len(raw) not in (8, 16):
            raise DescriptorError(f"a gate has 8 or 16 bytes, not {len(raw)}")
        value = int.from_bytes(raw, "little")
        kind = value >> 40 & 0x1F
        if kind not in _GATES:
            raise DescriptorError(f"descriptor type {kind} is not a gate")
        wide = len(raw) == 16
        offset = value & 0xFFFF
        if wide or kind >= 8:
            offset |= (value >> 48 & 0xFFFF) << 16
        if wide:
            offset |= (value >> 64 & 0xFFFFFFFF) << 32
        return cls(
            offset=offset,
            selector=value >> 16 & 0xFFFF,
            type=kind,
            dpl=value >> 45 & 3,
            present=value >> 47 & 1,
            ist=value >> 32 & 7 if wide else 0,
            params=0 if wide else value >> 32 & 0x1F,
        )


class DescriptorTable:
    """A GDT or LDT under construction; entry 0 of a GDT is the null descriptor.

    ```python
    gdt = DescriptorTable()
    code = gdt.add(code_segment(64))        # the segment with its selector filled in: 0x08
    ```
    """

    def __init__(self, *, ldt: bool = False) -> None:
        self._data = bytearray() if ldt else bytearray(8)
        self._indicator = 4 if ldt else 0

    def add(
        self, segment: SegmentState, *, wide: bool = False, rpl: int | None = None
    ) -> SegmentState:
        """Append a segment's descriptor; returns the segment with its selector set.

        The selector's RPL is `rpl`, or the segment's DPL. A `wide` descriptor takes two slots.
        Raises `DescriptorError` when the table would exceed 64 KiB.
        """
        level = segment.dpl if rpl is None else _in_range("rpl", rpl, 2)
        selector = self._append(encode_segment(segment, wide=wide)) | self._indicator | level
        return segment.replace(selector=selector)

    def add_gate(self, gate: Gate, *, bits: int) -> int:
        """Append a call or task gate; returns its selector with RPL 0."""
        return self._append(gate.encode(bits)) | self._indicator

    def _append(self, raw: bytes) -> int:
        offset = len(self._data)
        if offset + len(raw) > 0x10000:
            raise DescriptorError("a descriptor table has at most 8192 entries of 8 bytes")
        self._data += raw
        return offset

    @property
    def limit(self) -> int:
        """The value for GDTR.limit: size in bytes - 1."""
        return len(self._data) - 1

    def to_bytes(self) -> bytes:
        """The table as it goes into guest memory."""
        return bytes(self._data)


def encode_idt(gates: Mapping[int, Gate], *, bits: int, entries: int | None = None) -> bytes:
    """An interrupt descriptor table: vector → gate; vectors without one are not present.

    `entries` is the number of vectors, by default just enough for the highest. 8 bytes an entry
    for `bits` = 32, 16 for 64. Raises `DescriptorError` for a vector outside 0..255.
    """
    for vector in gates:
        if not 0 <= vector <= 255:
            raise DescriptorError(f"interrupt vector {vector} is outside 0..255")
    count = entries if entries is not None else max(gates, default=-1) + 1
    if not max(gates, default=-1) < count <= 256:
        raise DescriptorError(
            f"an IDT of {count} entries cannot hold vector {max(gates, default=0)}"
        )
    size = 16 if bits == 64 else 8
    table = bytearray(size * count)
    for vector, gate in gates.items():
        table[vector * size : (vector + 1) * size] = gate.encode(bits)
    return bytes(table)


def decode_idt(raw: bytes, *, bits: int) -> dict[int, Gate]:
    """Vector → gate, for the present gates of an IDT read from guest memory.

    Entries that are no gate, and a truncated last one, are left out: a guest may hold anything.
    """
    size = 16 if bits == 64 else 8
    gates = {}
    for vector in range(min(len(raw) // size, 256)):
        entry = raw[vector * size : (vector + 1) * size]
        if not entry[5] & 0x80:
            continue
        try:
            gates[vector] = Gate.decode(entry)
        except DescriptorError:
            continue
    return gates


def segment_from_table(table: bytes, selector: int, *, long_mode: bool = False) -> SegmentState:
    """Look up `selector` in a GDT or LDT image, as a segment load would (privileges unchecked).

    In `long_mode` a system descriptor has 16 bytes. Raises `DescriptorError` when the selector
    lies outside the table; a null GDT selector gives an unusable segment.
    """
    if selector & ~RPL_MASK == 0:
        return SegmentState.null(selector)
    offset = selector & 0xFFF8
    raw = table[offset : offset + 8]
    if len(raw) == 8 and long_mode and not raw[5] & 0x10:
        raw = table[offset : offset + 16]
        if len(raw) != 16:
            raw = b""
    if len(raw) not in (8, 16):
        raise DescriptorError(
            f"selector {selector:#06x} lies outside the table of {len(table)} bytes"
        )
    return decode_segment(raw, selector=selector)
