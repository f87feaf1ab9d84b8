"""`load_multiboot`: a multiboot 1 kernel laid out and described; the pieces are in
`pykvm.boot.multiboot`.

The command line is passed on as it was given. Kernels that expect a program's name in front of it
drop the first word (Xen does, except after GRUB 2)."""

from __future__ import annotations

from pykvm.boot import memmap, multiboot
from pykvm.boot.bios_services import bios_segments
from pykvm.boot.entrystate import entry_state
from pykvm.boot.environment import BootEnvironment
from pykvm.boot.errors import ImageError
from pykvm.boot.image import LoadedImage, Segment
from pykvm.boot.layout import Layout
from pykvm.boot.modules import open_all
from pykvm.boot.multiboot_header import SEARCH, MultibootHeader, find_header
from pykvm.boot.screens import ScreenRequest, choose_screen
from pykvm.boot.source import Source


def load_multiboot(
    source: Source,
    layout: Layout,
    environment: BootEnvironment,
    load: int | None,
    entry: int | None,
    mode: str | None,
) -> LoadedImage:
    """A multiboot 1 kernel; `entry` replaces its entry address. Raises `ImageError`."""
    name = source.name
    if mode not in (None, "protected"):
        raise ImageError(
            f"{name}: a multiboot kernel starts in protected mode, not in {mode} mode: leave the "
            'mode out, or choose format="elf" or format="flat"'
        )
    if load is not None:
        raise ImageError(
            f"{name}: a multiboot kernel says itself where it is loaded, not at {load:#x}: leave "
            'the load address out, or choose format="flat"'
        )
    header = find_header(source.data)
    if header is None:
        raise ImageError(
            f"{name}: there is no multiboot header in its first {SEARCH} bytes: give a multiboot "
            "kernel, or leave the format out"
        )
    entries: list[tuple[int, int, int]] = []
    if environment.e820 or environment.reserved:
        entries = memmap.memory_map(layout, environment)
        memmap.keep_to(layout, entries)
    screen = choose_screen(environment, _screen_request(header))
    multiboot.check_flags(name, header, screen is not None)
    kernel = multiboot.claim_kernel(layout, source, header, entry)
    bios = bios_segments(layout, entries, has_screen=screen is not None)
    state = entry_state(layout, "protected", kernel.entry)
    opened = open_all(environment)
    module_segments = multiboot.claim_modules(layout, opened)
    notes = [f"{segment.what}: {segment.gpa:#x}-{segment.end:#x}" for segment in module_segments]
    symbol_segments: list[Segment] = []
    symbols = None
    if kernel.elf is not None:
        try:
            symbol_segments, symbols = multiboot.claim_symbols(layout, kernel.elf)
        except ImageError as error:
            notes.append(f"the kernel is not told its symbols ({error})")
    strings = [text for _, text in opened]
    info = multiboot.information(
        layout, environment.cmdline, list(zip(module_segments, strings, strict=True)),
        symbols, entries, screen,
    )  # fmt: skip
    state.regs["rax"] = multiboot.BOOTLOADER_MAGIC
    state.regs["rbx"] = info.gpa
    return LoadedImage(
        name=name,
        format="multiboot",
        segments=[*kernel.segments, *module_segments, *symbol_segments, *bios, info],
        entry=kernel.entry,
        mode="protected",
        state=state,
        notes=notes,
        symbol_table=kernel.symbols,
        sources=(source, *(s for s, _ in opened)),
        framebuffer=screen,
    )


def _screen_request(header: MultibootHeader) -> ScreenRequest | None:
    if header.video is None:
        return None
    kind, width, height, depth = header.video
    return ScreenRequest(kind == 1, width, height, depth)
