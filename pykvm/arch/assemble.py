"""What the entry presets are put together from: GDT, IDT, TSS and page tables in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pykvm.arch.bits import CR0, CR4, EFER, PTE, RFLAGS, SystemType
from pykvm.arch.descriptors import (
    DescriptorTable,
    Gate,
    code_segment,
    data_segment,
    encode_idt,
    system_segment,
)
from pykvm.arch.errors import ArchError
from pykvm.arch.pagebuild import PageTables
from pykvm.arch.pagemodes import PAGE_4K, PagingMode
from pykvm.arch.state import GENERAL_REGISTERS, CpuState, SegmentState, TableState
from pykvm.arch.tss import Tss32, io_bitmap

KERNEL_CODE = 0x08
"""Selector of the ring-0 code segment: 64-bit in `long64`, else 32-bit."""
KERNEL_DATA = 0x10
"""Selector of the ring-0 data segment."""
USER_CODE32 = 0x18 | 3
"""Selector of the 32-bit ring-3 code segment. Code, data and 64-bit code lie as SYSRET wants."""
USER_DATA = 0x20 | 3
"""Selector of the ring-3 data segment."""
USER_CODE64 = 0x28 | 3
"""Selector of the 64-bit ring-3 code segment (long mode only)."""

Handlers = Mapping[int, "int | Gate"]
"""Vector → linear address of the handler, or a whole gate (for another DPL, type or IST)."""
Maps = Iterable[Sequence[int]]
"""(linear, guest-physical, size) or (linear, guest-physical, size, flags of `PTE`)."""


class Room:
    """Puts tables one after another into guest memory from a page-aligned address."""

    def __init__(self, base: int) -> None:
        if base % PAGE_4K or not 0 <= base < 1 << 32:
            raise ArchError(f"tables must go to a page-aligned address below 4 GiB, not {base:#x}")
        self.base = base
        self._data = bytearray()

    def put(self, data: bytes, align: int) -> int:
        """Append `data`; returns its guest-physical address."""
        self._data += bytes(-len(self._data) % align)
        at = self.base + len(self._data)
        self._data += data
        return at

    @property
    def end(self) -> int:
        """Guest-physical address behind what was put so far."""
        return self.base + len(self._data)

    def memory(self) -> list[tuple[int, bytes]]:
        """What was put, for `CpuState.memory`."""
        return [(self.base, bytes(self._data))]


def registers(rip: int, rsp: int, extra: Mapping[str, int] | None) -> dict[str, int]:
    """The general registers at entry: zero but for RIP, RSP, RFLAGS and what `extra` sets."""
    regs = dict.fromkeys(GENERAL_REGISTERS, 0)
    regs |= {"rip": rip, "rsp": rsp, "rflags": int(RFLAGS.FIXED)}
    for name, value in (extra or {}).items():
        if name not in regs:
            raise ArchError(f"there is no general register {name!r}")
        regs[name] = value
    return regs


def place_tss(room: Room, gdt: DescriptorTable, tss: bytes, *, wide: bool) -> SegmentState:
    """Place a TSS and its descriptor; a loaded task register names a busy one (LTR sets it)."""
    # 128-byte alignment keeps the 104 bytes that the CPU reads within one page.
    base = room.put(tss, 128)
    return gdt.add(system_segment(SystemType.TSS_BUSY, base, len(tss) - 1), wide=wide)


def place_idt(room: Room, handlers: Handlers | None, bits: int) -> TableState:
    """Place an IDT of 256 entries; none without handlers."""
    if not handlers:
        return TableState(0, 0)
    gates = {
        vector: Gate(int(target), KERNEL_CODE) if isinstance(target, int) else target
        for vector, target in handlers.items()
    }
    table = encode_idt(gates, bits=bits, entries=256)
    return TableState(room.put(table, 16), len(table) - 1)


def segmented(
    room: Room,
    entry: int,
    stack: int,
    gdt: DescriptorTable,
    code: SegmentState,
    data: SegmentState,
    task: SegmentState,
    regs: Mapping[str, int] | None,
) -> CpuState:
    """Place a GDT; the state of a CPU that has loaded its segments from it."""
    table = gdt.to_bytes()
    return CpuState(
        regs=registers(entry, stack, regs),
        segments={
            "cs": code,
            **dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data),
            "tr": task,
            "ldt": SegmentState.null(),
        },
        gdt=TableState(room.put(table, 16), len(table) - 1),
    )


def flat32(
    room: Room,
    entry: int,
    stack: int,
    handlers: Handlers | None,
    kernel_stack: int,
    io_ports: Iterable[int],
    regs: Mapping[str, int] | None,
) -> CpuState:
    """Flat 32-bit segments, TSS and IDT; control registers are left to the caller."""
    for what, address in (("entry", entry), ("stack", stack)):
        if not 0 <= address < 1 << 32:
            raise ArchError(f"a 32-bit {what} must lie below 4 GiB, not at {address:#x}")
    gdt = DescriptorTable()
    code = gdt.add(code_segment(32))
    data = gdt.add(data_segment())
    gdt.add(code_segment(32, dpl=3))
    gdt.add(data_segment(dpl=3))
    ports = list(io_ports)
    tss = Tss32(
        ss0=KERNEL_DATA, esp0=kernel_stack, bitmap=io_bitmap(ports) if ports else b""
    ).to_bytes()
    task = place_tss(room, gdt, tss, wide=False)
    state = segmented(room, entry, stack, gdt, code, data, task, regs)
    state.idt = place_idt(room, handlers, 32)
    return state


def add_paging(
    state: CpuState,
    room: Room,
    mode: PagingMode,
    identity: int,
    extra: Maps,
    page_size: int,
    user: bool | Iterable[tuple[int, int]],
) -> None:
    """Build page tables behind what `room` holds, and turn paging on in `state`."""
    used = -(-room.end // PAGE_4K) * PAGE_4K
    tables = PageTables(mode, used)
    everywhere = PTE.RW | PTE.US if user is True else PTE.RW
    tables.map(0, 0, identity, everywhere, max_page=page_size)
    if used > identity:
        # The CPU reads the GDT, IDT and TSS by linear address: they must be mapped in any case.
        tables.map(room.base, room.base, used - room.base)
    if not isinstance(user, bool):
        for start, size in user:
            tables.map(start, start, size, PTE.RW | PTE.US, max_page=page_size)
    for va, pa, size, *flags in extra:
        tables.map(va, pa, size, flags[0] if flags else PTE.RW, max_page=page_size)
    state.memory = room.memory() + tables.memory()
    state.cr3 = tables.cr3
    state.cr0 = int(CR0.PE | CR0.ET | CR0.WP | CR0.PG)
    if mode is PagingMode.BITS32:
        state.cr4 = int(CR4.PSE) if tables.uses_large else 0
    else:
        state.cr4 = int(CR4.PAE | CR4.LA57 if mode is PagingMode.LEVEL5 else CR4.PAE)
    state.efer = int(EFER.NXE) if tables.uses_nx else 0
