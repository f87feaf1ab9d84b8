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
    if options.get("format") == "auto":
        options["format"] = guest.format
    if guest.format == "flat":  # others say these themselves
        for key in ("load", "entry", "mode"):
            if options.get(key) is None:
                options[key] = getattr(guest, key)


def flat_symbols(guest: GuestImage) -> SymbolTable:
    """The symbols of a shipped flat image, which has no symbol table of its own."""
    symbols = [Symbol(name, at, 0, True) for name, at in guest.symbols.items()]
    return SymbolTable(lambda: (symbols, ""))


def load_into(machine: Machine, image: Any, **options: Any) -> boot.LoadedImage:
    """Loads and places an image; the machine is unchanged if it is refused."""
    if machine.status == "running":
        raise MachineError("cannot load an image into a running machine; stop() it first")
    guest = shipped(image)
    if guest is not None:
        add_defaults(guest, options)
    source = image if guest is None else guest.path
    ram = [(r.gpa, r.size) for r in machine.memory.regions]
    loaded = boot.load_image(source, memory_size=machine.memory_size, ram=ram, **options)
    if guest is not None and guest.symbols:
        loaded.symbol_table = flat_symbols(guest)
    if machine.has_run:
        from pykvm.machine.vcpu_reset import reset_cpus

        reset_cpus(machine)  # the last guest may have left the CPU halted, or an interrupt pending
        machine.has_run = False
    loaded.place(machine.memory)
    loaded.state.apply(machine.vcpus[0], None)
    return loaded
