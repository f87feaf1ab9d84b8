"""Memory of the guest beside its RAM: the regions of memory devices and persistent memory."""

from __future__ import annotations

import errno
import fcntl
import os

from pykvm.kvm.region import MemoryRegion
from pykvm.machine.boards import layout
from pykvm.machine.result import MachineError
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.devices.virtio.pmem import VirtioPmem
    from pykvm.machine.machine import Machine

_ALIGN = 1 << 30  # kernels add memory in blocks of up to 2 GiB, mostly of 128 MiB
PMEM_UNIT = 2 << 20  # what Linux maps persistent memory in


def free_place(machine: Machine, size: int) -> int:
    """A guest-physical address for `size` bytes: above RAM, the 64-bit PCI window, what was added.

    Raises `MachineError` where the guest's processor cannot address it.
    """
    start = layout.pci_window64(machine.memory_size) + layout.PCI_WINDOW64_SIZE
    for region in machine.memory.regions:
        if region.kind != "ram":
            start = max(start, region.end)
    start = -(-start // _ALIGN) * _ALIGN
    if start + size > 1 << 46:
        raise MachineError(f"{size >> 30} GiB at {start:#x} are more than processors address")
    return start


class ExtraMemory:
    """A region in the guest's address space that memory maps do not list."""

    name = "memory"

    def __init__(
        self, machine: Machine, size: int, *, fd: int | None = None, private: bool = False,
        readonly: bool = False, kind: str = "device", name: str = "pykvm-memory",
    ) -> None:  # fmt: skip
        self._machine = machine
        machine._check_open()
        gpa = free_place(machine, size)
        self.region = MemoryRegion(gpa, size, fd=fd, private=private, kind=kind, name=name)
        try:
            machine.vm.add_memory(gpa, size, region=self.region, readonly=readonly)
            machine.memory.add(self.region)
        except BaseException:
            if self.region.slot is not None:
                machine.vm.remove_memory(self.region)
            self.region.close()
            raise

    def close(self) -> None:
        """Takes the memory away from the guest. Twice is harmless."""
        region, machine = self.region, self._machine
        if region.closed:
            return
        if region in machine.memory.regions:
            machine.memory.remove(region)
        if region.slot is not None and not machine.vm.closed:
            machine.vm.remove_memory(region)
        region.close()


def add_pmem(
    machine: Machine, path: str | os.PathLike[str], readonly: bool, snapshot: bool,
    options: dict[str, Any],
) -> VirtioPmem:  # fmt: skip
    """See `Machine.add_pmem`."""
    from pykvm.devices.virtio.pmem import VirtioPmem

    name = os.fspath(path)
    if readonly and snapshot:
        raise MachineError("persistent memory is read-only or a snapshot, not both")
    through = not readonly and not snapshot
    fd = _open(name, writing=through)
    try:
        size = os.fstat(fd).st_size
        if size == 0 or size % PMEM_UNIT:
            raise MachineError(
                f"{name} has {size} bytes; persistent memory is made of units of 2 MiB: "
                f"truncate -s {max(1, -(-size // PMEM_UNIT)) * 2}M {name}"
            )
        # A private mapping, so that no device's write reaches a file that is not to be changed.
        memory = ExtraMemory(
            machine, size, fd=fd, private=not through, readonly=readonly, kind="file",
            name="pykvm-pmem",
        )  # fmt: skip
    except BaseException:
        os.close(fd)
        raise
    # The file's lock goes with the descriptor, which the device closes.
    device = VirtioPmem(memory.region.gpa, size, fd, flushes=through)
    try:
        machine.add_virtio(device, **options)
    except BaseException:
        device.close()
        memory.close()
        raise
    machine.devices.insert(0, memory)
    return device


def _open(name: str, *, writing: bool) -> int:
    flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDWR if writing else os.O_RDONLY)
    try:
        fd = os.open(name, flags)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        hint = "; give readonly or snapshot" if getattr(error, "errno", 0) == errno.EACCES else ""
        raise MachineError(f"the file {name} cannot be opened: {why}{hint}") from None
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if writing else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise MachineError(f"{name} is in use by another machine; stop that one first") from None
    except OSError:
        pass  # a file system without locks
    return fd
