"""`load_image`: look at an image, lay it out in guest memory, and prepare the CPU to enter it."""

from __future__ import annotations

from collections.abc import Sequence

from pykvm.boot.detect import FORMATS, Format, detect, is_packed
from pykvm.boot.entrystate import entry_state
from pykvm.boot.environment import BootEnvironment
from pykvm.boot.errors import ImageError, printable
from pykvm.boot.image import MODES, LoadedImage, Mode
from pykvm.boot.layout import Layout
from pykvm.boot.source import ImageInput, Source, open_source
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.boot.elf import ElfImage
    from pykvm.boot.modules import Module

_ADDRESS_LIMIT = 1 << 64


def load_image(
    image: ImageInput,
    *,
    memory_size: int,
    load: int | None = None,
    entry: int | None = None,
    mode: Mode | None = None,
    format: Format | str = "auto",
    modules: Sequence[Module] = (),
    cmdline: str = "",
    ram: Sequence[tuple[int, int]] | None = None,
    environment: BootEnvironment | None = None,
) -> LoadedImage:
    """Prepare `image` (a path, or the bytes themselves) for a guest with `memory_size` bytes from
    address 0.

    - `load`: guest-physical address of a flat image (default 0x1000, a boot sector 0x7c00) or of a
      position-independent ELF file.
    - `entry`: where to start instead of where the image says: guest-physical (linear) for flat and
      multiboot images, virtual or physical for ELF.
    - `mode`: `real`, `protected` or `long`. Default: flat `real`, ELF32 `protected`, ELF64 `long`.
      Multiboot is always `protected`.
    - `format`: `auto` (look at it) or one of `pykvm.boot.detect.FORMATS`. A compressed kernel is
      unpacked first.
    - `modules`, `cmdline`: for kernels that take them; see `pykvm.boot.modules.Module`. What
      `environment` says wins.
    - `ram`: the guest's memory as (guest-physical address, size) pieces, if it has holes.
    - `environment`: what the machine tells the kernel; see `pykvm.boot.environment`.

    Nothing is copied or run yet: `LoadedImage.place` fills the memory and `LoadedImage.state`
    starts the CPU. Raises `ImageError`, one sentence, for an image or argument that cannot be
    used.
    """
    _check_number("load address", load)
    _check_number("entry address", entry)
    _check_number("memory size", memory_size)
    _check_choice("mode", mode, MODES, None)
    _check_choice("format", format, FORMATS, "auto")
    source = open_source(image)
    name = source.name
    chosen = detect(name, source.data) if format == "auto" else format
    if chosen == "packed" or (chosen not in ("flat", "firmware") and is_packed(source.data)):
        from pykvm.boot.packed import unwrap

        source, found = unwrap(source, format)
        chosen = found if format == "auto" else format
    layout = Layout(name, [(0, memory_size)] if ram is None else ram)
    if environment is None:
        environment = BootEnvironment(cmdline=cmdline, modules=modules)
    else:
        environment = environment.merged(cmdline, modules)
        if environment.reserved and chosen != "firmware":  # which makes all tables itself
            from pykvm.boot.memmap import take_reserved

            take_reserved(layout, environment.reserved)
    elf = None
    if chosen == "elf":
        from pykvm.boot.elf import ElfImage

        elf = ElfImage(name, source.data, load)
        plain = format == "auto" and load is None and entry is None and mode is None
        told = environment.protocol != "auto" or elf.note_ranges or elf.is_higher_half
        if plain and told:
            from pykvm.boot.kernels import kind_of_elf

            chosen = kind_of_elf(elf, environment)
    if environment.protocol != "auto":
        from pykvm.boot.kernels import check_protocol

        check_protocol(name, chosen, environment)
    if chosen not in ("flat", "elf"):
        from pykvm.boot.kernels import load_kernel

        return load_kernel(chosen, source, layout, environment, load, entry, mode)
    _refuse_extras(name, chosen, environment)
    if elf is not None:
        return _load_elf(source, elf, layout, entry, mode)
    return _load_flat(source, layout, load, entry, mode or "real")


def _refuse_extras(name: str, chosen: str, environment: BootEnvironment) -> None:
    for what, given in (
        ("modules", bool(environment.modules)),
        ("a command line", bool(environment.cmdline)),
        ("an initrd", environment.initrd is not None),
    ):
        if given:
            raise ImageError(
                f"{name}: {what} can only be given to a Linux, PVH or multiboot kernel and this is "
                f"{'an ELF' if chosen == 'elf' else 'a flat'} image: leave {what} out"
            )


def _load_flat(
    source: Source, layout: Layout, load: int | None, entry: int | None, mode: Mode
) -> LoadedImage:
    from pykvm.boot import flat

    segment, start = flat.claim(layout, source.data, load, entry)
    notes = []
    if mode == "real" and flat.is_boot_sector(source.data):
        state = entry_state(layout, mode, start, real_stack=flat.BOOT_SECTOR_LOAD)
        state.regs["rdx"] = flat.BOOT_DRIVE
        notes.append(f"boot sector: DL is {flat.BOOT_DRIVE:#x}, the first hard disk")
    else:
        state = entry_state(layout, mode, start)
    return LoadedImage(
        name=source.name,
        format="flat",
        segments=[segment],
        entry=start,
        mode=mode,
        state=state,
        notes=notes,
        sources=(source,),
    )


def _load_elf(
    source: Source, elf: ElfImage, layout: Layout, entry: int | None, mode: Mode | None
) -> LoadedImage:
    from pykvm.boot.elf_symbols import symbol_table

    mode = mode or elf.default_mode
    segments = elf.claim(layout)
    where = elf.resolve_entry(entry)
    start, mappings = where.physical, []
    if mode == "long":
        start, mappings = where.virtual, elf.mappings(where)
    notes = [
        f"virtual {va:#x} is mapped to physical {pa:#x} ({size:#x} bytes)"
        for va, pa, size in mappings
    ]
    if mode != "long" and where.is_mapped:
        notes.append(f"entered at physical {start:#x}, where virtual {where.virtual:#x} is loaded")
    return LoadedImage(
        name=source.name,
        format="elf",
        segments=segments,
        entry=start,
        mode=mode,
        state=entry_state(layout, mode, start, mappings),
        notes=notes,
        symbol_table=symbol_table(elf),
        sources=(source,),
    )


def _check_number(what: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise ImageError(
            f"the {what} is {printable(repr(value))}, not an integer: give a number of bytes"
        )
    if not 0 <= value < _ADDRESS_LIMIT:
        raise ImageError(
            f"the {what} {value:#x} is not in 0..{_ADDRESS_LIMIT - 1:#x}: give a 64-bit number"
        )


def _check_choice(what: str, value: Any, known: tuple[str, ...], default: str | None) -> None:
    if value == default or value in known:
        return
    choices = ", ".join(known if default is None else (default, *known))
    raise ImageError(f"the {what} {printable(repr(value))} is not known: choose one of {choices}")
