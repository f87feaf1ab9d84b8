"""Message-signalled interrupts: the MSI and MSI-X capabilities (PCI Local Bus 3.0, 6.8).

Messages go to a `MsiSender`, which the machine gives: (guest-physical address, data).
"""

from __future__ import annotations

from pykvm.devices.pci.bar import Registers
from pykvm.devices.pci.config import PciError
from pykvm.devices.pci.device import Commit, PciDevice
from pykvm.devices.state import StateReader
from pykvm.typed import Protocol

CAP_MSI, CAP_MSIX = 0x05, 0x11
_ENTRY = 16
_WORD_MASKS = (0xFFFF_FFFC, 0xFFFF_FFFF, 0xFFFF_FFFF, 1)  # address, upper address, data, control


class MsiSender(Protocol):
    """Delivers one message; must not raise for addresses or data that make no sense."""

    def send(self, address: int, data: int) -> None: ...


class NullMsiSender:
    """Messages go nowhere."""

    def send(self, address: int, data: int) -> None:
        """Nothing."""


class MsiCapability:
    """MSI with 1 to 32 messages, 64-bit address, per-vector masking. Adds itself to `device`."""

    def __init__(self, device: PciDevice, vectors: int = 1) -> None:
        if vectors not in (1, 2, 4, 8, 16, 32):
            raise PciError(f"{device.name}: {vectors} MSI vectors are not a power of two up to 32")
        self._device = device
        self.vectors = vectors
        log = vectors.bit_length() - 1
        control = log << 1 | 1 << 7 | 1 << 8
        body = control.to_bytes(2, "little") + bytes(20)
        masks = (0x0071, 0xFFFF_FFFC, 0xFFFF_FFFF, 0xFFFF, (1 << vectors) - 1, 0)
        writable = b"".join(
            mask.to_bytes(size, "little")
            for mask, size in zip(masks, (2, 4, 4, 4, 4, 4), strict=True)
        )
        live = bytes(18) + ((1 << vectors) - 1).to_bytes(4, "little")
        self.offset = device.add_capability(CAP_MSI, body, writable, live, self)

    @property
    def enabled(self) -> bool:
        """Whether software switched MSI on; then INTx is off."""
        return bool(self._device.config.data[self.offset + 2] & 1)

    def send(self, vector: int) -> bool:
        """Send message `vector`, or keep it pending while masked. False where MSI is off."""
        space = self._device.config
        if not self.enabled:
            return False
        granted = 1 << (space.data[self.offset + 2] >> 4 & 7)
        vector %= min(granted, self.vectors)
        bit = 1 << vector
        if space.get(self.offset + 16, 4) & bit:
            space.put(self.offset + 20, 4, space.get(self.offset + 20, 4) | bit)
            return True
        address = space.get(self.offset + 4, 8)
        data = space.get(self.offset + 12, 2)
        _post(self._device, address, data & ~(min(granted, self.vectors) - 1) | vector)
        return True

    def written(self, offset: int, size: int) -> None:
        """What was pending and is not masked any more is sent."""
        space = self._device.config
        pending = space.get(self.offset + 20, 4)
        ready = pending & ~space.get(self.offset + 16, 4)
        if not ready or not self.enabled:
            return
        space.put(self.offset + 20, 4, pending & ~ready)
        for vector in range(self.vectors):
            if ready >> vector & 1:
                self.send(vector)

    def reset(self) -> None:
        """Everything is in configuration space."""

    def state(self) -> dict[str, object]:
        """Everything is in configuration space."""
        return {}

    def take(self, take: StateReader) -> Commit:
        """Everything is in configuration space."""
        return _nothing


class MsixCapability:
    """MSI-X: a table of `vectors` messages and their pending bits, in BAR `bar` of `device`.

    The table is at `table` and the pending bits at `pba` (byte offsets in the BAR); whoever owns
    the BAR leads accesses there to `table_read`/`table_write` and `pba_read`. `msix_bar_size` and
    `registers` make a BAR that holds nothing else.
    """

    def __init__(
        self, device: PciDevice, vectors: int, bar: int, table: int = 0, pba: int | None = None
    ) -> None:
        pba = msix_pba_offset(vectors, table) if pba is None else pba
        if not 1 <= vectors <= 2048 or table % 8 or pba % 8 or not 0 <= bar <= 5:
            raise PciError(f"{device.name}: MSI-X with {vectors} vectors in BAR {bar} cannot be")
        self._device = device
        self.vectors = vectors
        self.table_offset, self.pba_offset = table, pba
        self._words = [0, 0, 0, 1] * vectors  # every vector is masked at power-on
        self._pending = 0
        body = (vectors - 1).to_bytes(2, "little")
        body += (table | bar).to_bytes(4, "little") + (pba | bar).to_bytes(4, "little")
        self.offset = device.add_capability(CAP_MSIX, body, b"\x00\xc0", handler=self)

    @property
    def enabled(self) -> bool:
        """Whether software switched MSI-X on; then INTx is off."""
        return bool(self._device.config.data[self.offset + 3] & 0x80)

    @property
    def masked(self) -> bool:
        """The function mask: every vector at once."""
        return bool(self._device.config.data[self.offset + 3] & 0x40)

    def send(self, vector: int) -> bool:
        """Send message `vector`, or keep it pending while masked. False where MSI-X is off."""
        if not self.enabled:
            return False
        if not 0 <= vector < self.vectors:
            return True
        if self.masked or self._words[4 * vector + 3] & 1:
            self._pending |= 1 << vector
            return True
        low, high, data, _ = self._words[4 * vector : 4 * vector + 4]
        _post(self._device, high << 32 | low, data)
        return True

    def message(self, vector: int) -> tuple[int, int] | None:
        """(address, data) that `send` would send for a vector now, None while it may not."""
        if not self.enabled or self.masked or not 0 <= vector < self.vectors:
            return None
        low, high, data, control = self._words[4 * vector : 4 * vector + 4]
        return None if control & 1 else (high << 32 | low, data)

    def registers(self) -> Registers:
        """A BAR's contents of table and pending bits alone."""

        def read(offset: int, size: int) -> int:
            if self.table_offset <= offset < self.table_offset + _ENTRY * self.vectors:
                return self.table_read(offset - self.table_offset, size)
            if self.pba_offset <= offset < self.pba_offset + 8 * (self.vectors + 63 >> 6):
                return self.pba_read(offset - self.pba_offset, size)
            return 0

        def write(offset: int, size: int, value: int) -> None:
            if self.table_offset <= offset < self.table_offset + _ENTRY * self.vectors:
                self.table_write(offset - self.table_offset, size, value)

        return Registers(f"{self._device.name}-msix", read, write, max_access=8)

    def table_read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset` of the table."""
        index = offset >> 2
        pair = self._words[index : index + 3]
        whole = sum(word << 32 * n for n, word in enumerate(pair))
        return whole >> 8 * (offset & 3) & (1 << 8 * size) - 1

    def table_write(self, offset: int, size: int, value: int) -> None:
        """Dwords or qwords (6.8.2: nothing else is defined; narrower writes are merged)."""
        while size > 0:
            index, at = offset >> 2, offset & 3
            count = min(size, 4 - at)
            if index >= len(self._words):
                return
            bits = (1 << 8 * count) - 1 << 8 * at
            word = self._words[index] & ~bits | value << 8 * at & bits
            self._words[index] = word & _WORD_MASKS[index & 3]
            if index & 3 == 3:
                self._release(index >> 2)
            value >>= 8 * count
            offset += count
            size -= count

    def pba_read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset` of the pending bits."""
        return self._pending >> 8 * offset & (1 << 8 * size) - 1

    def _release(self, vector: int) -> None:
        bit = 1 << vector
        if self._pending & bit and self.enabled and not self.masked:
            if self._words[4 * vector + 3] & 1:
                return
            self._pending &= ~bit
            self.send(vector)

    def written(self, offset: int, size: int) -> None:
        """The control word changed: what was pending may go."""
        if self._pending and self.enabled and not self.masked:
            for vector in range(self.vectors):
                self._release(vector)

    def reset(self) -> None:
        """Every vector masked, nothing pending."""
        self._words = [0, 0, 0, 1] * self.vectors
        self._pending = 0

    def state(self) -> dict[str, object]:
        """The table and the pending bits."""
        pending = [n for n in range(self.vectors) if self._pending >> n & 1]
        return {"msix_table": list(self._words), "msix_pending": pending}

    def take(self, take: StateReader) -> Commit:
        """Reads them back."""
        words = take.integers("msix_table", len(self._words), 0xFFFF_FFFF)
        pending = take.integers("msix_pending", self.vectors, self.vectors - 1)
        words += self._words[len(words) :]
        words = [word & _WORD_MASKS[n & 3] for n, word in enumerate(words)]

        def commit() -> None:
            self._words = words
            self._pending = sum({1 << n for n in pending})

        return commit


def msix_pba_offset(vectors: int, table: int = 0) -> int:
    """Where the pending bits go after a table at `table`: the next 2 KiB border."""
    return table + _ENTRY * vectors + 2047 & ~2047


def msix_bar_size(vectors: int) -> int:
    """A BAR that holds the table and, behind it, the pending bits."""
    end = msix_pba_offset(vectors) + 8 * (vectors + 63 >> 6)
    return max(4096, 1 << (end - 1).bit_length())


def _post(device: PciDevice, address: int, data: int) -> None:
    if device.bus is not None and device.bus_master:
        device.bus.msi.send(address, data)


def _nothing() -> None:
    pass
