"""The `BootEnvironment` of a machine: what the loader passes on to a kernel."""

from __future__ import annotations

from pykvm.boot.environment import VGA_TEXT, BootEnvironment
from pykvm.machine.boards import describe, layout
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine


LINUX = {"bzimage", "linux64", "pvh"}


def environment(machine: Machine, kind: str, options: dict[str, Any]) -> BootEnvironment:
    """What the machine tells a kernel, with what the user gave `load()`."""
    blobs, rsdp = describe.tables(machine)
    machine.board.tables = blobs
    words = [options.get("cmdline", "")]
    if kind in LINUX:
        if machine.cpus is not None and "clearcpuid=" not in words[0]:
            words.append(machine.cpus.linux_parameters(machine.vcpus[0]))
        if rsdp is None:
            words += virtio_options(machine)
    cmdline = " ".join(filter(None, words))
    reserved = [(layout.BIOS_AREA, layout.BIOS_AREA_END - layout.BIOS_AREA)] if blobs else []
    return BootEnvironment(
        e820=describe.memory_map(machine),
        rsdp=rsdp,
        cmdline=cmdline,
        initrd=options.get("initrd"),
        modules=options.get("modules", ()),
        framebuffer=VGA_TEXT if machine.board.vga_window else None,
        fast_boot=options.get("fast_boot", False),
        reserved=reserved,
        protocol=options.get("protocol", "auto"),
        rsdp_data=_bytes_at(blobs, rsdp, 36),
        video_mode=machine.board.video_modes(),
    )


def _bytes_at(blobs: list[tuple[int, bytes]], gpa: int | None, size: int) -> bytes:
    found = (b[gpa - at :][:size] for at, b in blobs if gpa is not None and at <= gpa < at + len(b))
    return next(found, b"")


def virtio_options(machine: Machine) -> list[str]:
    """Linux's way to hear of virtio-mmio devices without ACPI."""
    size = f"{layout.VIRTIO_MMIO_SIZE:#x}"
    return [f"virtio_mmio.device={size}@{gpa:#x}:{gsi}" for gpa, gsi in machine.virtio_mmio]
