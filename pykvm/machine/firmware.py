"""Firmware on the pc board: which image a name means, its ROM, and what fw_cfg tells it."""

from __future__ import annotations

import os

from pykvm.devices.pc import fwcfg_items as items
from pykvm.kvm.region import MemoryRegion
from pykvm.machine.boards import describe, layout
from pykvm.machine.result import MachineError
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pykvm.boot import LoadedImage
    from pykvm.machine.boards.pc import PcBoard
    from pykvm.machine.machine import Machine


class Known(NamedTuple):
    """A firmware by name: where Debian has it, and in which package."""

    paths: tuple[str, ...]
    package: str


KNOWN = {
    "seabios": Known(("/usr/share/seabios/bios-256k.bin",), "seabios"),
    "ovmf": Known(("/usr/share/ovmf/OVMF.fd", "/usr/share/qemu/OVMF.fd"), "ovmf"),
}


def find_firmware(name: str) -> str:
    """The path of a firmware image: a known name, or a path. Raises `MachineError`."""
    known = KNOWN.get(name)
    if known is None:
        if os.path.isfile(name):
            return name
        raise MachineError(
            f"there is no firmware {name!r}: give a file, or one of {', '.join(sorted(KNOWN))}"
        )
    for path in known.paths:
        if os.path.isfile(path):
            return path
    raise MachineError(
        f"the firmware {name} is not on this host ({known.paths[0]}): install Debian's package "
        f"{known.package}, or give the image's path"
    )


LINUXBOOT = "/usr/share/qemu/linuxboot_dma.bin"


class Roms:
    """The ROMs of a machine, as read-only memory slots."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._regions: list[MemoryRegion] = []

    def place(self, loaded: LoadedImage) -> None:
        """Exactly the ROMs of this image from now on."""
        self.remove()
        vm = self._machine.vm
        for gpa, data in loaded.roms:
            region = vm.add_memory(gpa, len(data), readonly=True)
            region.view[: len(data)] = data
            self._regions.append(region)

    def remove(self) -> None:
        """No ROMs."""
        for region in self._regions:
            self._machine.vm.remove_memory(region)
        self._regions = []


def pc_board(machine: Machine) -> PcBoard:
    """The board, if it is one that firmware runs on. Raises `MachineError`."""
    if machine.board.name != "pc":
        raise MachineError(
            f'firmware needs board="pc"; the {machine.board.name} board has no chipset'
        )
    return machine.board  # type: ignore[return-value]


def fill_fw_cfg(machine: Machine, options: dict[str, Any]) -> None:
    """All that SeaBIOS and OVMF ask for."""
    board = pc_board(machine)
    fw = board.fw_cfg
    ids = describe.apic_ids(machine)
    items.add_standard_items(fw, cpus=len(ids), max_cpus=max(ids) + 1, ram_size=machine.memory_size)
    items.add_e820(fw, _e820(machine))
    if machine.acpi:
        add_acpi(machine)
    for name, data in describe.smbios_tables(machine).fw_cfg_files.items():
        fw.add_file(name, data)
    order = options.get("boot_order") or boot_order(board)
    if options.get("kernel") is not None:
        order = [*_add_kernel(machine, options), *order]
    elif options.get("initrd") is not None or options.get("cmdline"):
        raise MachineError(
            "firmware takes an initrd and a command line only together with a kernel; give it one, "
            "or leave them out"
        )
    items.add_boot_order(fw, order)
    if options.get("boot_menu"):
        items.add_boot_menu(fw, wait_ms=options.get("boot_menu_wait", 3000))
    else:
        items.add_boot_menu(fw, show=False)
    if options.get("serial_console", True):
        items.add_serial_console(fw, layout.COM1)


def _add_kernel(machine: Machine, options: dict[str, Any]) -> list[str]:
    """A Linux kernel in fw_cfg: OVMF starts it itself, SeaBIOS by an option ROM of QEMU's."""
    from pykvm.boot.source import open_source

    fw = pc_board(machine).fw_cfg
    initrd = options.get("initrd")
    items.add_linux(
        fw,
        bytes(open_source(options["kernel"]).data),
        cmdline=options.get("cmdline", ""),
        initrd=b"" if initrd is None else open_source(initrd, "initrd").data,
        ram_below_4g=layout.low_ram(machine.memory_size, pc=True),
    )
    if options.get("seabios"):
        try:
            with open(LINUXBOOT, "rb") as file:
                fw.add_file(f"genroms/{os.path.basename(LINUXBOOT)}", file.read())
        except OSError as error:
            raise MachineError(
                f"SeaBIOS starts a kernel with {LINUXBOOT}, which cannot be read "
                f"({error.strerror}): install Debian's package qemu-system-data, or start the "
                "kernel without firmware"
            ) from None
    return [f"/rom@genroms/{os.path.basename(LINUXBOOT)}"]


def add_acpi(machine: Machine) -> None:
    """The ACPI tables as files; again whenever firmware moves what they speak of."""
    board = pc_board(machine)
    for name, data in describe.acpi_tables(machine).fw_cfg_files.items():
        board.fw_cfg.add_file(name, data)


def _e820(machine: Machine) -> list[tuple[int, int, int]]:
    """RAM as it is on a PC to firmware: the VGA window counts as RAM below 1 MiB."""
    low = layout.low_ram(machine.memory_size, pc=True)
    entries = [(0, low, 1), (layout.IDENTITY_MAP, 16 * layout.KIB, 2)]
    if machine.memory_size > low:
        entries.append((layout.HIGH_RAM, machine.memory_size - low, 1))
    return entries


def boot_order(board: PcBoard) -> list[str]:
    """Disks in the order in which they were added, as Open Firmware paths."""
    paths = []
    for kind, slot, place in board.bootable:
        if kind == "virtio":
            paths.append(f"/pci@i0cf8/scsi@{slot:x}/disk@0,0")
        else:
            channel, drive = divmod(place, 2)
            paths.append(f"/pci@i0cf8/ide@{slot:x},1/drive@{channel:x}/disk@{drive:x}")
    return paths
