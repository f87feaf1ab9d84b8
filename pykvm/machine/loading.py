"""`Machine.load()`: a path, bytes or the name of a shipped guest, into memory and vCPU 0."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from pykvm import boot
from pykvm.machine.result import MachineError

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine


def resolve(image: str | os.PathLike[str] | bytes, options: dict[str, Any]) -> Any:
    """The path of a shipped guest when `image` is its name; its load options become defaults."""
    if not isinstance(image, str) or os.sep in image or os.path.exists(image):
        return image
    from pykvm import images

    if image not in images.names():
        return image  # the loader says that there is no such file
    guest = images.find(image)
    for key in ("load", "entry", "mode"):
        if options.get(key) is None:
            options[key] = getattr(guest, key)
    if options.get("format") == "auto":
        options["format"] = guest.format
    if guest.format != "flat":
        options.update(load=None, entry=None, mode=None)
    return guest.path


def load_into(machine: Machine, image: Any, **options: Any) -> boot.LoadedImage:
    """Loads and places an image; the machine is unchanged if it is refused."""
    if machine.status == "running":
        raise MachineError("cannot load an image into a running machine; stop() it first")
    source = resolve(image, options)
    ram = [(r.gpa, r.size) for r in machine.memory.regions]
    loaded = boot.load_image(source, memory_size=machine.memory_size, ram=ram, **options)
    if machine.has_run:
        from pykvm.machine.vcpu_reset import reset_cpus

        reset_cpus(machine)  # the last guest may have left the CPU halted, or an interrupt pending
        machine.has_run = False
    loaded.place(machine.memory)
    loaded.state.apply(machine.vcpus[0], None)
    return loaded
