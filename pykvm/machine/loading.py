"""`Machine.load()`: a path, bytes or the name of a shipped guest, into memory and vCPU 0."""

from __future__ import annotations

import os

from pykvm import boot
from pykvm.boot.symbols import Symbol, SymbolTable
from pykvm.machine.result import MachineError
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.images import GuestImage
    from pykvm.machine.machine import Machine


def shipped(image: Any) -> GuestImage | None:
    """The guest that pykvm ships under this name; None where `image` is something else."""
    if not isinstance(image, str) or os.sep in image or os.path.exists(image):
        return None
    from pykvm import images

    return images.find(image) if image in images.names() else None


def add_defaults(guest: GuestImage, options: dict[str, Any]) -> None:
    """How a shipped guest wants to be loaded, where `options` do not say otherwise."""
    # An ELF guest gets a command line by its PVH entry, which the loader finds.
    if options.get("format") == "auto" and not (guest.format == "elf" and options.get("cmdline")):
        options["format"] = guest.format
    if guest.format == "flat":  # others say these themselves
        for key in ("load", "entry", "mode"):
            if options.get(key) is None:
                options[key] = getattr(guest, key)


def flat_symbols(guest: GuestImage) -> SymbolTable:
    """The symbols of a shipped flat image, which has no symbol table of its own."""
    symbols = [Symbol(name, at, 0, True) for name, at in guest.symbols.items()]
    return SymbolTable(lambda: (symbols, ""))


# Kinds of image that are not told about the machine; it prepares for the others.
_PLAIN = {"flat", "elf"}
_KERNEL_OPTIONS = ("initrd", "fast_boot", "protocol")
_FIRMWARE_OPTIONS = ("boot_menu", "boot_order", "serial_console", "kernel")


def load_into(machine: Machine, image: Any, **options: Any) -> boot.LoadedImage:
    """Loads and places an image; the machine is unchanged if it is refused."""
    if machine.status == "running":
        raise MachineError("cannot load an image into a running machine; stop() it first")
    guest = shipped(image)
    if guest is not None:
        add_defaults(guest, options)
    source = image if guest is None else guest.path
    ram = machine.memory.ram
    kernel = {key: options.pop(key) for key in _KERNEL_OPTIONS}
    firmware = {key: options.pop(key) for key in _FIRMWARE_OPTIONS}
    told = any(kernel[key] not in (None, False, "auto") for key in kernel)
    kind = ""
    if told or guest is None:
        kind = _kernel(source, {**options, **kernel})
        small = _PLAIN if machine.board.name == "pc" else _PLAIN | {"multiboot"}
        if not told and kind in small:
            kind = ""  # small kernels that need nothing else are spared the tables
    if options["format"] == "firmware":
        from pykvm.machine.firmware import fill_fw_cfg, find_firmware

        machine.use_cpu_model()
        machine.board.prepare()
        firmware["seabios"] = source != "ovmf"
        source = find_firmware(source) if isinstance(source, str) else source
        firmware["cmdline"], firmware["initrd"] = options.pop("cmdline"), kernel["initrd"]
        fill_fw_cfg(machine, firmware)
        machine.board.tables = []
        machine.cmdline = ""
    elif kind:
        machine.use_cpu_model()
        machine.board.prepare()
        environment = machine.board.environment(kind, {**options, **kernel})
        options["environment"] = environment
        options["cmdline"], options["modules"] = "", ()  # they are in the environment
        machine.cmdline = environment.cmdline
    else:
        machine.board.tables = []
        machine.cmdline = ""
    loaded = boot.load_image(source, memory_size=machine.memory_size, ram=ram, **options)
    if guest is not None and guest.symbols:
        loaded.symbol_table = flat_symbols(guest)
    if machine.has_run:
        from pykvm.machine.vcpu_reset import reset_cpus

        reset_cpus(machine)  # the last guest may have left the CPU halted, or an interrupt pending
        machine.has_run = False
    machine.board.has_firmware = loaded.format == "firmware"
    place(machine, loaded)
    return loaded


def place(machine: Machine, loaded: boot.LoadedImage) -> None:
    """The image and the machine's tables into memory, the entry state into vCPU 0."""
    machine.place_roms(loaded)
    loaded.place(machine.memory)
    machine.board.place()
    if loaded.framebuffer is not None:
        machine.board.show(loaded.framebuffer)
    loaded.state.apply(machine.vcpus[0], None)


def _kernel(image: Any, options: dict[str, Any]) -> str:
    """The kind of image, as the loader will find it."""
    kind: str = options["format"]
    if kind == "auto":
        from pykvm.boot.detect import detect
        from pykvm.boot.source import open_source

        source = open_source(image)
        kind = detect(source.name, source.data)
        if kind == "packed":
            from pykvm.boot.packed import unwrap

            source, kind = unwrap(source, "auto")
        if kind == "elf" and all(options[key] is None for key in ("load", "entry", "mode")):
            from pykvm.boot.elf import ElfImage

            elf = ElfImage(source.name, source.data, None)
            if elf.note_ranges or elf.is_higher_half:
                from pykvm.boot.environment import BootEnvironment
                from pykvm.boot.kernels import kind_of_elf

                keys = ("cmdline", "initrd", "modules", "protocol")
                kind = kind_of_elf(elf, BootEnvironment(**{key: options[key] for key in keys}))
    return kind
