"""QEMU's firmware configuration device: what firmware and some kernels ask the machine about.

Source: QEMU, docs/specs/fw_cfg.rst. Ports: 0x510 selector (16 bits, write only), 0x511 data (reads
give the selected item from the current offset on, zeros past its end; writes are ignored, as since
QEMU 2.4), 0x514-0x51b address of a DMA descriptor (64 bits, big-endian; writing the low half
starts the transfer).

A transfer that names memory which is not there, or writes to an item that is read-only or past
its end, gets the ERROR bit in its descriptor.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from pykvm.devices.base import Device, StateReader
from pykvm.devices.pc.window import PortRange
from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.memory import GuestMemory

SIGNATURE, ID, FILE_DIR, FILE_FIRST = 0x00, 0x01, 0x19, 0x20
ID_TRADITIONAL, ID_DMA = 1, 2
WRITE_CHANNEL = 0x4000  # bit of a key: once enabled writes, means nothing today
MOST_KEYS = 0x4000
NAME_SIZE = 56  # bytes of a file's name in the directory, with its NUL
LARGEST_ITEM = 1 << 32  # sizes in the directory are 32 bits wide

SELECTOR, DATA, DMA_HIGH, DMA_LOW = 0, 1, 4, 8  # register offsets
DMA_SIGNATURE = b"QEMU CFG"

ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16  # bits of a DMA descriptor's control field
_DESCRIPTOR = struct.Struct(">IIQ")  # control, length, guest-physical address
_CHUNK = 1 << 20

Written = Callable[[int, bytes], object]


class FwCfgError(PykvmError):
    """An item that cannot be added: its name or key, and why."""


class Item:
    """The bytes behind a key; `writeable` ones may be changed by the guest through DMA."""

    __slots__ = ("data", "initial", "name", "on_write", "writeable")

    def __init__(self, data: Any, writeable: bool, on_write: Written | None, name: str) -> None:
        self.data = memoryview(bytearray(data) if writeable else data).cast("B")
        self.initial = bytes(data) if writeable else b""
        self.writeable = writeable
        self.on_write = on_write
        self.name = name


class FwCfg(Device):
    """The device, with signature, ID and an empty file directory.

    `memory` is where DMA goes; without it the device has no DMA interface. `data` arguments are
    anything with the buffer interface; read-only items are not copied. Files get their keys in the
    order of their names until the guest has looked for the first time; later ones come after all
    others, so that no key ever changes under a guest.
    """

    name = "fw_cfg"
    ADDRESS = 0x510
    LENGTH = 12
    access_sizes = (1, 2, 4, 8)
    max_access = 8

    def __init__(self, memory: GuestMemory | None = None) -> None:
        self._memory = memory
        self._items: dict[int, Item] = {}
        self._files: list[Item] = []
        self._key = 0
        self._offset = 0
        self._dma_high = 0
        self._seen = False  # the guest has looked: keys of files are fixed
        features = ID_TRADITIONAL | (ID_DMA if memory is not None else 0)
        self.add_item(SIGNATURE, b"QEMU")
        self.add_item(ID, features.to_bytes(4, "little"))
        self._build_directory()

    def ranges(self) -> list[PortRange]:
        """Ports 0x510 to 0x51b."""
        return [PortRange("pio", self.ADDRESS, self.LENGTH, self)]

    # -- contents ------------------------------------------------------------------------------

    def add_item(
        self, key: int, data: Any, *, writeable: bool = False, on_write: Written | None = None
    ) -> None:
        """Put bytes behind a key below 0x20, or an architecture's (0x8000 and up).

        A second item of the same key replaces the first. Raises `FwCfgError`.
        """
        if not (0 <= key < FILE_FIRST or 0x8000 <= key < 0x8000 + MOST_KEYS) or key == FILE_DIR:
            raise FwCfgError(
                f"fw_cfg key {key:#x} is not free for items; use 0 to 0x1f (not 0x19) or 0x8000 up"
            )
        self._items[key] = self._item(data, writeable, on_write, f"key {key:#x}")

    def add_file(
        self,
        name: str,
        data: Any,
        *,
        writeable: bool = False,
        on_write: Written | None = None,
    ) -> None:
        """Add a named file, or replace the contents of one.

        `on_write(offset, bytes)` is called after the guest has written to a writeable file.
        Raises `FwCfgError` for a name that does not fit into the directory.
        """
        if not name or not name.isascii() or not name.isprintable() or len(name) >= NAME_SIZE:
            raise FwCfgError(
                f"fw_cfg file name {name[:60]!r} must be 1 to {NAME_SIZE - 1} printable ASCII "
                "characters"
            )
        item = self._item(data, writeable, on_write, name)
        for i, old in enumerate(self._files):
            if old.name == name:
                self._files[i] = item
                break
        else:
            if len(self._files) >= MOST_KEYS - FILE_FIRST:
                raise FwCfgError(f"fw_cfg has {len(self._files)} files, and no key for {name!r}")
            self._files.append(item)
            if not self._seen:
                self._files.sort(key=lambda file: file.name)
        self._build_directory()

    def _item(self, data: Any, writeable: bool, on_write: Written | None, name: str) -> Item:
        item = Item(data, writeable, on_write, name)
        if len(item.data) >= LARGEST_ITEM:
            raise FwCfgError(f"fw_cfg {name} is {len(item.data):#x} bytes; 4 GiB is too large")
        return item

    def files(self) -> dict[str, int]:
        """The key of each file, in the order of the directory."""
        return {file.name: FILE_FIRST + i for i, file in enumerate(self._files)}

    def contents(self, key: int | str) -> bytes:
        """What is behind a key or a file name now, with what the guest wrote. Raises `KeyError`."""
        item = self._find(self.files()[key] if isinstance(key, str) else key)
        if item is None:
            raise KeyError(key)
        return bytes(item.data)

    def _build_directory(self) -> None:
        entries = [struct.pack(">I", len(self._files))]
        for i, file in enumerate(self._files):
            name = file.name.encode("ascii")
            entries.append(struct.pack(">IHH56s", len(file.data), FILE_FIRST + i, 0, name))
        self._items[FILE_DIR] = Item(b"".join(entries), False, None, "directory")

    def _find(self, key: int) -> Item | None:
        key &= ~WRITE_CHANNEL
        if FILE_FIRST <= key < FILE_FIRST + len(self._files):
            return self._files[key - FILE_FIRST]
        return self._items.get(key)

    # -- ports ---------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """The next bytes of the selected item, or the DMA interface's signature."""
        if offset in (SELECTOR, DATA):
            return int.from_bytes(self._take(size), "little")
        if self._memory is None or not DMA_HIGH <= offset < DMA_HIGH + 8:
            return 0
        return int.from_bytes(DMA_SIGNATURE[offset - DMA_HIGH :][:size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Select an item, or start a transfer."""
        if offset == SELECTOR and size == 2:
            self._select(value & 0xFFFF)
        elif self._memory is None:
            return
        elif offset == DMA_HIGH and size == 4:
            self._dma_high = _swapped(value, 4)
        elif offset == DMA_LOW and size == 4:
            address = self._dma_high << 32 | _swapped(value, 4)
            self._dma_high = 0
            self._transfer(self._memory, address)
        elif offset == DMA_HIGH and size == 8:
            self._dma_high = 0
            self._transfer(self._memory, _swapped(value, 8))

    def read_block(self, offset: int, size: int, count: int) -> bytes:
        """REP INS: `count` reads of `size` bytes at once."""
        if offset in (SELECTOR, DATA):
            return self._take(size * count)
        return b"".join(self.read(offset, size).to_bytes(size, "little") for _ in range(count))

    def write_block(self, offset: int, size: int, data: bytes) -> None:
        """REP OUTS: writes of `size` bytes, one after the other."""
        for at in range(0, len(data), size):
            self.write(offset, size, int.from_bytes(data[at : at + size], "little"))

    def _select(self, key: int) -> None:
        self._seen = True
        self._key = key
        self._offset = 0

    def _take(self, size: int) -> bytes:
        item = self._find(self._key)
        if item is None or self._offset >= len(item.data):
            return bytes(size)
        data = bytes(item.data[self._offset : self._offset + size])
        self._offset += len(data)
        return data.ljust(size, b"\0")

    # -- DMA -----------------------------------------------------------------------------------

    def _transfer(self, memory: GuestMemory, descriptor: int) -> None:
        try:
            control, length, address = _DESCRIPTOR.unpack(memory.read(descriptor, 16))
        except PykvmError:
            return  # no descriptor, no place for the ERROR bit
        try:
            if control & SELECT:
                self._select(control >> 16)
            if control & READ:
                good = self._dma_read(memory, address, length)
            elif control & WRITE:
                good = self._dma_write(memory, address, length)
            else:
                if control & SKIP:
                    self._skip(length)
                good = True
        except PykvmError:
            good = False
        memory.write(descriptor, (0 if good else ERROR).to_bytes(4, "big"))

    def _dma_read(self, memory: GuestMemory, address: int, length: int) -> bool:
        if length and not memory.contains(address, length):
            return False
        item = self._find(self._key)
        data = item.data[self._offset : self._offset + length] if item is not None else b""
        for at in range(0, len(data), _CHUNK):
            memory.write(address + at, data[at : at + _CHUNK])
        if length > len(data):
            memory.fill(address + len(data), length - len(data), 0)
        self._offset += len(data)
        return True

    def _dma_write(self, memory: GuestMemory, address: int, length: int) -> bool:
        item = self._find(self._key)
        start = self._offset
        if item is None or not item.writeable or length > len(item.data) - start:
            return False
        data = memory.read(address, length) if length else b""
        item.data[start : start + length] = data
        self._offset += length
        if item.on_write is not None:
            item.on_write(start, data)
        return True

    def _skip(self, length: int) -> None:
        item = self._find(self._key)
        self._offset = min(self._offset + length, 0 if item is None else len(item.data))

    # -- life ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Nothing selected; what the guest wrote is gone."""
        self._key = self._offset = self._dma_high = 0
        for item in self._writeable():
            item.data[:] = item.initial

    def _writeable(self) -> list[Item]:
        items = [self._items[key] for key in sorted(self._items)]
        return [item for item in (*items, *self._files) if item.writeable]

    def save(self) -> dict[str, object]:
        """The position and what writeable items hold; everything else is configuration."""
        written = b"".join(bytes(item.data) for item in self._writeable())
        return {
            "key": self._key,
            "offset": self._offset,
            "dma_high": self._dma_high,
            "written": list(written),
        }

    def load(self, state: dict[str, object]) -> None:
        """Take over a state saved with the same items."""
        items = self._writeable()
        total = sum(len(item.data) for item in items)
        take = StateReader(self.name, state)
        key = take.integer("key", 0xFFFF)
        found = self._find(key)
        offset = take.integer("offset", 0 if found is None else len(found.data))
        dma_high = take.integer("dma_high", 0xFFFF_FFFF)
        written = bytes(take.integers("written", total, 0xFF, least=total))
        take.finish()
        self._key, self._offset, self._dma_high = key, offset, dma_high
        self._seen = True
        for item in items:
            item.data[:] = written[: len(item.data)]
            written = written[len(item.data) :]


def _swapped(value: int, size: int) -> int:
    """The number whose big-endian bytes a little-endian port write brought."""
    return int.from_bytes((value & (1 << 8 * size) - 1).to_bytes(size, "little"), "big")
