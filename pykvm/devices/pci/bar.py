"""Base address registers, and what they need of the machine to appear in the address space."""

from __future__ import annotations

import mmap
import os

from pykvm.bus import BusDevice
from pykvm.devices.pci.config import PciError
from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

BarKind = Literal["io", "mem32", "mem64"]
_PAGE = 4096


class RamBlock:
    """Host memory that a BAR shows to the guest directly: a frame buffer, an option ROM.

    `fd` is the memfd behind it, for whoever maps it into a VM; `view` its bytes, zero-copy.
    """

    def __init__(self, size: int, name: str = "pykvm-bar", data: bytes = b"") -> None:
        if size <= 0 or size % _PAGE or len(data) > size:
            raise PciError(f"a RAM block of {size:#x} bytes is not whole 4 KiB pages; round it")
        self.size = size
        self.name = name
        self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self._map)
        self.view[: len(data)] = data

    def clear(self) -> None:
        """All zeros again; the pages go back to the host."""
        self._map.madvise(mmap.MADV_REMOVE)

    def close(self) -> None:
        """Give up the file; the pages go when nobody maps or views them. Twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.view.release()
            try:
                self._map.close()
            except BufferError:  # somebody else's view: the last one to go unmaps
                pass

    def __del__(self) -> None:  # one that nobody closed, as files do
        if getattr(self, "fd", -1) >= 0:
            os.close(self.fd)


class Mapping(Protocol):
    """A range that a BAR occupies; `remove()` gives it back."""

    def remove(self) -> None: ...


class BarMapper(Protocol):
    """What the machine gives the PCI bus. Raises a `PykvmError` for a place that cannot be."""

    def map(self, kind: str, address: int, length: int, device: BusDevice) -> Mapping:
        """Put `device` at `address` of the "pio" or "mmio" space (guest-physical)."""

    def map_ram(self, address: int, block: RamBlock, readonly: bool) -> Mapping:
        """Put host memory at guest-physical `address`."""


class Registers:
    """A BAR's contents as two functions: `read(offset, size)`, `write(offset, size, value)`."""

    def __init__(
        self, name: str, read: Callable[[int, int], int], write: Callable[[int, int, int], None],
        max_access: int = 4,
    ) -> None:  # fmt: skip
        self.name = name
        self.read = read
        self.write = write
        self.max_access = max_access


class Bar:
    """One base address register: `size` bytes (a power of two) of `kind` space.

    - `device`: who answers accesses, by offset from the BAR's start; a `Registers` will do.
    - `ram`: host memory that the guest accesses without exits, instead of `device`; `readonly`
      for ROMs.
    - `prefetch`: reads have no side effects (memory kinds only).
    """

    def __init__(
        self, kind: BarKind, size: int, device: BusDevice | None = None, *,
        ram: RamBlock | None = None, readonly: bool = False, prefetch: bool = False,
    ) -> None:  # fmt: skip
        low, high = {"io": (4, 256), "mem32": (16, 1 << 31), "mem64": (16, 1 << 51)}.get(
            kind, (1, 0)
        )
        if ram is not None:
            low = _PAGE
        if size & (size - 1) or not low <= size <= high:
            raise PciError(
                f"a {kind} BAR of {size:#x} bytes is not possible; use a power of two from "
                f"{low:#x} to {high:#x}"
            )
        if (device is None) == (ram is None):
            raise PciError(f"a {kind} BAR has either a device or ram behind it; give one of them")
        if kind == "io" and (ram is not None or prefetch):
            raise PciError("an I/O BAR cannot be memory; use mem32 or mem64")
        if ram is not None and ram.size > size:
            raise PciError(f"{ram.size:#x} bytes do not fit a BAR of {size:#x}; make it larger")
        self.kind: BarKind = kind
        self.size = size
        self.device = device
        self.ram = ram
        self.readonly = readonly
        self.prefetch = prefetch
        #: Where the BAR is decoded now (I/O port or guest-physical), None where it is not.
        self.address: int | None = None
        #: Called when `address` has changed.
        self.moved: Callable[[], None] | None = None
        self._wanted: int | None = None
        self._mapping: Mapping | None = None
        self._complained = False
        self._log = Log()

    @property
    def flags(self) -> int:
        """The read-only low bits of the register (PCI 3.0, 6.2.5.1)."""
        if self.kind == "io":
            return 1
        return (4 if self.kind == "mem64" else 0) | (8 if self.prefetch else 0)

    @property
    def mask(self) -> int:
        """The address bits that software can write, over 32 or 64 bits."""
        return ~(self.size - 1) & ((1 << (64 if self.kind == "mem64" else 32)) - 1)

    def place(self, register: int) -> int | None:
        """The address that a register value means, None where nothing can be decoded.

        0 is "not assigned", and all-ones is software asking for the size.
        """
        address = register & self.mask
        last = address + self.size - 1
        limit = {"io": 0xFFFF, "mem32": 0xFFFF_FFFE, "mem64": (1 << 52) - 1}[self.kind]
        return address if address and last <= limit else None

    def want(self, address: int | None) -> bool:
        """Note where the BAR should be; takes it away from elsewhere. True if that changes it."""
        if address == self._wanted:
            return False
        self._wanted = address
        self._complained = False
        self.unmap()
        return True

    def unmap(self) -> None:
        """Take the BAR out of the address space, until `settle`."""
        mapping, self._mapping = self._mapping, None
        self.address = None
        if mapping is not None:
            if self.moved is not None:
                self.moved()
            mapping.remove()

    def settle(self, mapper: BarMapper, name: str) -> bool:
        """Map the BAR where it is wanted, if it is not there and it can be. False: it cannot."""
        address = self._wanted
        if address is None or self._mapping is not None:
            return True
        try:
            if self.ram is not None:
                self._mapping = mapper.map_ram(address, self.ram, self.readonly)
            else:
                assert self.device is not None
                kind = "pio" if self.kind == "io" else "mmio"
                self._mapping = mapper.map(kind, address, self.size, self.device)
        except PykvmError as error:  # the guest chose the place: not an error of ours
            if not self._complained:
                self._complained = True
                self._log.warn(f"{name}: a BAR at {address:#x} is not decoded: {error}")
            return False
        self.address = address
        if self.moved is not None:
            self.moved()
        return True


def warn(text: str) -> None:
    """One line of the log: a guest did something that has no effect."""
    import logging

    logging.getLogger("pykvm.devices.pci").warning("%s", text)


class Log:
    """The first ten lines about one thing: a guest must not fill the log."""

    def __init__(self) -> None:
        self._left = 10

    def warn(self, text: str) -> None:
        """One line, as `warn`."""
        if self._left:
            self._left -= 1
            warn(text)
