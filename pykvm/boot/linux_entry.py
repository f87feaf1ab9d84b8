"""The CPU states in which Linux is entered (Documentation/arch/x86/boot.rst: "32-bit Boot
Protocol", "64-bit Boot Protocol"; the 16-bit entry is reached through `bios_state`)."""

from __future__ import annotations

from pykvm.arch.assemble import Room, add_paging, place_tss, segmented
from pykvm.arch.bits import CR0, EFER
from pykvm.arch.descriptors import DescriptorTable, code_segment, data_segment
from pykvm.arch.pagemodes import GIB, PAGE_2M, PagingMode
from pykvm.arch.presets import real_mode
from pykvm.arch.state import CpuState
from pykvm.arch.tss import Tss32, Tss64
from pykvm.boot.layout import PAGE, Layout

BOOT_CS = 0x10
"""The code segment selector that both protocols demand; data is at 0x18."""
IDENTITY = 4 * GIB
"""Bytes that are mapped one to one for the 64-bit entry: kernel, boot_params, command line."""

_TABLE_BYTES = {32: PAGE, 64: 7 * PAGE}  # GDT and TSS; PML4, PDPT, four page directories


def linux_state(layout: Layout, bits: int, entry: int, boot_params: int) -> CpuState:
    """The state at the 32-bit or 64-bit entry point `entry`; both addresses are guest-physical.

    Interrupts are off and RSI holds `boot_params`. Tables are taken from `layout`, which raises
    `ImageError` if there is no room. There is no stack: the kernel sets up its own first.
    """
    base = layout.add(_TABLE_BYTES[bits], "descriptor and page tables")
    room = Room(base)
    gdt = DescriptorTable()
    gdt.add(code_segment(bits))  # 0x08, unused: code and data have fixed places
    code = gdt.add(code_segment(bits))
    data = gdt.add(data_segment())
    wide = bits == 64
    task = place_tss(room, gdt, Tss64().to_bytes() if wide else Tss32().to_bytes(), wide=wide)
    state = segmented(room, entry, 0, gdt, code, data, task, {"rsi": boot_params})
    if wide:
        add_paging(state, room, PagingMode.LEVEL4, IDENTITY, (), PAGE_2M, False)
        state.efer |= int(EFER.LME | EFER.LMA)
    else:
        state.cr0 = int(CR0.PE | CR0.ET)
        state.memory = room.memory()
    end = state.memory_span()[1]
    if end > base + _TABLE_BYTES[bits]:
        raise AssertionError(f"entry tables end at {end:#x}, planned {_TABLE_BYTES[bits]:#x}")
    return state


def bios_state(base: int, entry: int) -> CpuState:
    """The state that starts real-mode code at linear address `entry` in the segment at `base`, a
    multiple of 16. It has to set up its own stack and data segments."""
    return real_mode(entry, segment=base >> 4)
