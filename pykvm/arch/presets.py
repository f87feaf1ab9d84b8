"""Entry states for every operating mode, complete with GDT, IDT, TSS and page tables.

```python
state = long64(0x100000, stack=0x80000, map=[(0xFFFFFFFF80000000, 0x100000, 0x200000)])
state.apply(vcpu, memory)
```

All presets start with interrupts off (RFLAGS = 2), general registers zero, and no MSRs written
unless an option needs one: the power-on PAT (index 0 is write-back) is what their page tables
count on. Tables go to `tables`, a page-aligned guest-physical address below 4 GiB with room for
`tables_size(...)` bytes; stacks grow down from the address given. Errors: `DescriptorError` and
`PagingError` for what cannot be encoded.

Sources: SDM vol. 3A 9.1 (state after reset), 9.8 and 9.9 (mode switches), 3.4.5, 4, 7.7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from pykvm.arch.assemble import (
    KERNEL_CODE,
    KERNEL_DATA,
    USER_CODE32,
    USER_CODE64,
    USER_DATA,
    Handlers,
    Maps,
    Room,
    add_paging,
    flat32,
    place_idt,
    place_tss,
    registers,
    segmented,
)
from pykvm.arch.bits import CR0, CR4, EFER, RFLAGS, SystemType
from pykvm.arch.descriptors import (
    DescriptorTable,
    code_segment,
    data_segment,
    real_mode_segment,
    system_segment,
)
from pykvm.arch.errors import ArchError, PagingError
from pykvm.arch.pagemodes import GIB, PAGE_2M, PAGE_4K, PAGE_4M, PagingMode
from pykvm.arch.state import CpuState, TableState
from pykvm.arch.tss import Tss64, io_bitmap

__all__ = [
    "DEFAULT_KERNEL_STACK",
    "DEFAULT_STACK",
    "DEFAULT_TABLES",
    "KERNEL_CODE",
    "KERNEL_DATA",
    "PRESETS",
    "REAL_MODE_STACK",
    "USER_CODE32",
    "USER_CODE64",
    "USER_DATA",
    "long64",
    "pae32",
    "paged32",
    "protected32",
    "real_mode",
    "ring3_64",
    "tables_size",
]

DEFAULT_TABLES = 0x80000
"""Where tables go unless told otherwise: 512 KiB, below the PC's reserved area at 640 KiB."""
DEFAULT_STACK = 0x80000
"""Top of the stack in protected and long mode: just below the tables."""
DEFAULT_KERNEL_STACK = 0x70000
"""Top of the ring-0 stack (TSS.RSP0, SS0:ESP0) that interrupts from ring 3 switch to."""
REAL_MODE_STACK = 0xFFF0
"""SP in real mode: near the top of the first 64 KiB, with SS = 0."""

_MSR_STAR, _MSR_LSTAR, _MSR_SFMASK = 0xC0000081, 0xC0000082, 0xC0000084


def real_mode(
    entry: int = 0x1000,
    *,
    stack: int = REAL_MODE_STACK,
    segment: int | None = None,
    regs: Mapping[str, int] | None = None,
) -> CpuState:
    """16-bit real mode at linear address `entry` (below 1 MiB + 64 KiB).

    CS is `segment`, or 0 when the entry lies in the first 64 KiB, else the entry's 64 KiB block.
    DS, ES, FS, GS are 0; so is SS while `stack` (linear) fits 16 bits. The IVT is at 0.
    """
    base = segment if segment is not None else 0 if entry <= 0xFFFF else entry >> 4 & 0xF000
    offset = entry - (base << 4)
    if not 0 <= base <= 0xFFFF or not 0 <= offset <= 0xFFFF:
        raise ArchError(
            f"real mode cannot start at {entry:#x}: with CS = {base:#x} the offset is {offset:#x}; "
            "entries must lie below 0x10fff0"
        )
    if not 0 <= stack <= 0xFFFFF:
        raise ArchError(f"a real-mode stack must lie below 1 MiB, not at {stack:#x}")
    stack_segment = 0 if stack <= 0xFFFF else stack >> 4 & 0xF000
    data = real_mode_segment(0)
    return CpuState(
        regs=registers(offset, stack - (stack_segment << 4), regs),
        segments={
            "cs": real_mode_segment(base, code=True),
            **dict.fromkeys(("ds", "es", "fs", "gs"), data),
            "ss": real_mode_segment(stack_segment),
            "tr": system_segment(SystemType.TSS_BUSY, 0, 0xFFFF),
            "ldt": system_segment(SystemType.LDT, 0, 0xFFFF),
        },
        gdt=TableState(0, 0xFFFF),
        idt=TableState(0, 0x3FF),
        cr0=int(CR0.ET),
    )


def protected32(
    entry: int,
    *,
    stack: int = DEFAULT_STACK,
    tables: int = DEFAULT_TABLES,
    handlers: Handlers | None = None,
    kernel_stack: int = DEFAULT_KERNEL_STACK,
    io_ports: Iterable[int] = (),
    regs: Mapping[str, int] | None = None,
) -> CpuState:
    """Flat 32-bit protected mode, ring 0, no paging.

    GDT: `KERNEL_CODE` and its kin, and a 32-bit TSS whose SS0:ESP0 is `kernel_stack` and whose I/O
    bitmap gives ring 3 the `io_ports`. `handlers` fills a 256-entry IDT; without any the IDT is
    empty and an exception shuts the guest down.
    """
    room = Room(tables)
    state = flat32(room, entry, stack, handlers, kernel_stack, io_ports, regs)
    state.cr0 = int(CR0.PE | CR0.ET)
    state.memory = room.memory()
    return state


def paged32(
    entry: int,
    *,
    stack: int = DEFAULT_STACK,
    tables: int = DEFAULT_TABLES,
    identity: int = 4 * GIB,
    map: Maps = (),
    page_size: int = PAGE_4M,
    user: bool | Iterable[tuple[int, int]] = False,
    handlers: Handlers | None = None,
    kernel_stack: int = DEFAULT_KERNEL_STACK,
    io_ports: Iterable[int] = (),
    regs: Mapping[str, int] | None = None,
) -> CpuState:
    """32-bit protected mode with two-level paging (4 MiB pages by PSE); the rest as `pae32`."""
    room = Room(tables)
    state = flat32(room, entry, stack, handlers, kernel_stack, io_ports, regs)
    add_paging(state, room, PagingMode.BITS32, identity, map, page_size, user)
    return state


def pae32(
    entry: int,
    *,
    stack: int = DEFAULT_STACK,
    tables: int = DEFAULT_TABLES,
    identity: int = 4 * GIB,
    map: Maps = (),
    page_size: int = PAGE_2M,
    user: bool | Iterable[tuple[int, int]] = False,
    handlers: Handlers | None = None,
    kernel_stack: int = DEFAULT_KERNEL_STACK,
    io_ports: Iterable[int] = (),
    regs: Mapping[str, int] | None = None,
) -> CpuState:
    """32-bit protected mode with PAE paging: `protected32` plus page tables.

    The first `identity` bytes are identity-mapped, then `map` is added (see `long64`).
    """
    room = Room(tables)
    state = flat32(room, entry, stack, handlers, kernel_stack, io_ports, regs)
    add_paging(state, room, PagingMode.PAE, identity, map, page_size, user)
    return state


def long64(
    entry: int,
    *,
    stack: int = DEFAULT_STACK,
    tables: int = DEFAULT_TABLES,
    identity: int = 4 * GIB,
    map: Maps = (),
    levels: int = 4,
    page_size: int = PAGE_2M,
    user: bool | Iterable[tuple[int, int]] = False,
    handlers: Handlers | None = None,
    kernel_stack: int = DEFAULT_KERNEL_STACK,
    ist: Sequence[int] = (),
    io_ports: Iterable[int] = (),
    syscall: int | None = None,
    regs: Mapping[str, int] | None = None,
    msrs: Mapping[int, int] | None = None,
) -> CpuState:
    """64-bit long mode, ring 0, with SSE enabled.

    The first `identity` bytes are identity-mapped with pages of at most `page_size` bytes
    (`PAGE_1G` where the CPU has them), then each of `map` is added, later ones winning; flags
    default to `PTE.RW`. `user` makes the identity mapping accessible from ring 3, wholly or
    for the given (start, size) ranges. `levels` is 4 or 5. EFER.NXE is set when a mapping has XD.

    GDT: `KERNEL_CODE` and its kin, `USER_CODE64` and a 64-bit TSS: RSP0 = `kernel_stack`, `ist`
    lists up to seven interrupt stacks, `io_ports` are the ports that ring 3 may use. `handlers`
    fills a 256-entry IDT; without any the IDT is empty and an exception shuts the guest down.
    `syscall` enables SYSCALL with that entry point, clearing IF, TF, DF and AC.
    """
    if levels not in (4, 5):
        raise PagingError(f"long mode has 4 or 5 levels of page tables, not {levels}")
    if len(ist) > 7:
        raise ArchError(f"a TSS has 7 interrupt stacks, not {len(ist)}")
    room = Room(tables)
    gdt = DescriptorTable()
    code = gdt.add(code_segment(64))
    data = gdt.add(data_segment())
    gdt.add(code_segment(32, dpl=3))
    gdt.add(data_segment(dpl=3))
    gdt.add(code_segment(64, dpl=3))
    ports = list(io_ports)
    tss = Tss64(
        rsp0=kernel_stack,
        ist=[*ist, *[0] * (7 - len(ist))],
        bitmap=io_bitmap(ports) if ports else b"",
    ).to_bytes()
    task = place_tss(room, gdt, tss, wide=True)
    state = segmented(room, entry, stack, gdt, code, data, task, regs)
    state.idt = place_idt(room, handlers, 64)
    state.msrs = dict(msrs or {})
    mode = PagingMode.LEVEL5 if levels == 5 else PagingMode.LEVEL4
    add_paging(state, room, mode, identity, map, page_size, user)
    state.cr0 |= int(CR0.MP | CR0.NE)
    state.cr4 |= int(CR4.OSFXSR | CR4.OSXMMEXCPT)
    state.efer |= int(EFER.LME | EFER.LMA)
    if syscall is not None:
        state.efer |= int(EFER.SCE)
        # SYSCALL loads CS from bits 47:32 and SS 8 above; SYSRET counts from bits 63:48.
        state.msrs[_MSR_STAR] = (USER_CODE32 << 16 | KERNEL_CODE) << 32
        state.msrs[_MSR_LSTAR] = syscall
        state.msrs[_MSR_SFMASK] = int(RFLAGS.IF | RFLAGS.TF | RFLAGS.DF | RFLAGS.AC)
    return state


def ring3_64(
    entry: int,
    *,
    stack: int = DEFAULT_STACK,
    tables: int = DEFAULT_TABLES,
    identity: int = 4 * GIB,
    map: Maps = (),
    levels: int = 4,
    page_size: int = PAGE_2M,
    user: bool | Iterable[tuple[int, int]] = True,
    handlers: Handlers | None = None,
    kernel_stack: int = DEFAULT_KERNEL_STACK,
    ist: Sequence[int] = (),
    io_ports: Iterable[int] = (),
    syscall: int | None = None,
    regs: Mapping[str, int] | None = None,
    msrs: Mapping[int, int] | None = None,
) -> CpuState:
    """64-bit code in ring 3; `entry` and `stack` are user addresses, the rest as `long64`.

    By default all identity-mapped memory is open to ring 3; narrow it with `user`, or map user
    pages with `PTE.US` in `map`. Handlers run in ring 0 on `kernel_stack`; a vector that ring 3
    calls with `int n` needs a gate with DPL 3: `handlers={0x80: Gate(address, dpl=3)}`.
    """
    state = long64(
        entry,
        stack=stack,
        tables=tables,
        identity=identity,
        map=map,
        levels=levels,
        page_size=page_size,
        user=user,
        handlers=handlers,
        kernel_stack=kernel_stack,
        ist=ist,
        io_ports=io_ports,
        syscall=syscall,
        regs=regs,
        msrs=msrs,
    )
    data = data_segment(dpl=3, selector=USER_DATA)
    state.segments |= dict.fromkeys(("ds", "es", "fs", "gs", "ss"), data)
    state.segments["cs"] = code_segment(64, dpl=3, selector=USER_CODE64)
    return state


PRESETS: dict[str, Callable[..., CpuState]] = {
    "real_mode": real_mode,
    "protected32": protected32,
    "paged32": paged32,
    "pae32": pae32,
    "long64": long64,
    "ring3_64": ring3_64,
}
"""The presets by name."""


def tables_size(preset: str, **options: object) -> int:
    """Bytes of guest memory that a preset's tables take, in whole pages.

    `options` are those that will be given to the preset (`map`, `identity`, `levels`, …); they
    decide the number of page tables.
    """
    if preset not in PRESETS:
        raise ArchError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    if preset == "real_mode":
        return 0
    state = PRESETS[preset](**{"entry": 0, **options, "tables": 0})
    return -(-state.memory_span()[1] // PAGE_4K) * PAGE_4K
