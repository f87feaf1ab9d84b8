"""`VirtioMem`: memory that grows and shrinks while the guest runs (VIRTIO 1.2, section 5.15).

A region of guest-physical addresses is made of blocks; the host says how much of it the guest
shall have (`requested`), and the guest plugs and unplugs blocks until it has that. Unplugged blocks
cost nothing: they are holes in the region's file.
"""

from __future__ import annotations

import struct

from pykvm.datapath.statistics import IoStatistics
from pykvm.devices.state import StateReader
from pykvm.devices.virtio.buffers import gather, parse_size, scatter
from pykvm.devices.virtio.device import Commit, VirtioDevice
from pykvm.devices.virtio.queue import QueueError, VirtQueue
from pykvm.memory import MemoryRegion

DEVICE_ID = 24
F_ACPI_PXM, F_UNPLUGGED_INACCESSIBLE = 1, 2
PLUG, UNPLUG, UNPLUG_ALL, STATE = range(4)
ACK, NACK, BUSY, ERROR = range(4)
PLUGGED, UNPLUGGED, MIXED = range(3)
BLOCK = 2 << 20
MAX_BLOCKS = 1 << 20

_QUEUE_SIZE = 64
_CONFIG = struct.Struct("<QH6xQQQQQ")
_REQUEST = struct.Struct("<H6xQH6x")  # type; address, blocks
_RESPONSE = struct.Struct("<H6xH")  # type; state


class VirtioMem(VirtioDevice):
    """Resizable memory in `region`, which the machine has put into the guest's address space.

    - `requested`: how much of it the guest shall have, in bytes or as "512M"; whole blocks.
      Settable at any time; `plugged` is how much it has.
    - `block_size`: a power of two, at least 4 KiB; the region is a whole number of blocks.
    - `node`: the NUMA node (ACPI proximity domain) that it belongs to, None for none.

    A reset by the driver leaves the blocks as they are; a reset of the machine unplugs all of them.
    """

    def __init__(
        self, region: MemoryRegion, requested: int | str = 0, *, block_size: int = BLOCK,
        node: int | None = None, name: str = "virtio-mem",
    ) -> None:  # fmt: skip
        if block_size < 4096 or block_size & block_size - 1:
            raise ValueError(f"a block size of {block_size} is not a power of two from 4096 on")
        if region.size % block_size or region.gpa % block_size:
            raise ValueError(
                f"a memory device of {region.size:#x} bytes at {region.gpa:#x} is not made of "
                f"blocks of {block_size:#x}; round it"
            )
        if region.size // block_size > MAX_BLOCKS:
            raise ValueError(f"more than {MAX_BLOCKS} blocks; choose a larger block_size")
        if node is not None and not 0 <= node <= 0xFFFF:
            raise ValueError(f"there is no NUMA node {node}")
        features = F_UNPLUGGED_INACCESSIBLE | F_ACPI_PXM * (node is not None)
        super().__init__(DEVICE_ID, [_QUEUE_SIZE], features)
        self.name = name
        self.region = region
        self.block_size = block_size
        self.node = node
        self.statistics = IoStatistics(["plug", "unplug", "state"])
        self._count = region.size // block_size
        self._blocks = bytearray(self._count)  # 1: plugged
        self._plugged = 0
        self._by_driver = False
        self._requested = self._blocks_of(requested)

    def _blocks_of(self, size: int | str) -> int:
        wanted = parse_size(size, "requested memory")
        if wanted % self.block_size:
            raise ValueError(
                f"{wanted:#x} bytes are not made of blocks of {self.block_size >> 10} KiB; round it"
            )
        if wanted > self.region.size:
            raise ValueError(
                f"{wanted >> 20} MiB are more than the region's {self.region.size >> 20} MiB"
            )
        return wanted // self.block_size

    # -- the host's side -----------------------------------------------------------------------

    @property
    def requested(self) -> int:
        """How much the guest shall have, in bytes."""
        return self._requested * self.block_size

    @requested.setter
    def requested(self, size: int | str) -> None:
        blocks = self._blocks_of(size)
        with self.lock:
            if blocks != self._requested:
                self._requested = blocks
                self.config_changed()

    @property
    def plugged(self) -> int:
        """How much the guest has, in bytes."""
        return self._plugged * self.block_size

    @property
    def size(self) -> int:
        """How much there can be, in bytes."""
        return self.region.size

    # -- requests ------------------------------------------------------------------------------

    def config(self) -> bytes:
        """The configuration structure (5.15.4); all of the region is usable."""
        return _CONFIG.pack(
            self.block_size, self.node or 0, self.region.gpa, self.size, self.size,
            self.plugged, self.requested,
        )  # fmt: skip

    def handle(self, queue: VirtQueue) -> None:
        """Every request that is there."""
        try:
            while (chain := queue.pop()) is not None:
                raw = gather(chain.readable, _REQUEST.size)
                if len(raw) < _REQUEST.size or chain.writable_bytes < _RESPONSE.size:
                    raise QueueError(
                        f"{self.name}: a request of {chain.readable_bytes} bytes with room for "
                        f"{chain.writable_bytes}"
                    )
                kind, address, count = _REQUEST.unpack(raw)
                answer, state = self._serve(kind, address, count)
                queue.push(chain, scatter(chain.writable, _RESPONSE.pack(answer, state)))
        finally:
            self.finish(queue)

    def _serve(self, kind: int, address: int, count: int) -> tuple[int, int]:
        """The response's type, and the state that was asked for."""
        if kind == UNPLUG_ALL:
            self.statistics["unplug"].add(self.plugged)
            self._unplug_all()
            return ACK, 0
        first, odd = divmod(address - self.region.gpa, self.block_size)
        if odd or kind > STATE or not count or first < 0 or first + count > self._count:
            return ERROR, 0
        blocks = self._blocks[first : first + count]
        length = count * self.block_size
        if kind == STATE:
            self.statistics["state"].add()
            have = sum(blocks)
            return ACK, UNPLUGGED if not have else PLUGGED if have == count else MIXED
        if kind == PLUG:
            if any(blocks):
                return ERROR, 0
            if self._plugged + count > self._requested:
                return NACK, 0
            self._blocks[first : first + count] = b"\1" * count
            self._plugged += count
            self.statistics["plug"].add(length)
            return ACK, 0
        if not all(blocks):
            return ERROR, 0
        self._blocks[first : first + count] = bytes(count)
        self._plugged -= count
        self.region.discard(first * self.block_size, length)
        self.statistics["unplug"].add(length)
        return ACK, 0

    def _unplug_all(self) -> None:
        self._blocks = bytearray(self._count)
        self._plugged = 0
        if not self.region.closed:
            self.region.discard(0, self.region.size)

    # -- life ----------------------------------------------------------------------------------

    def set_status(self, value: int) -> None:
        """As the base class; a reset by the driver keeps the blocks (5.15.5.1)."""
        self._by_driver = True
        try:
            super().set_status(value)
        finally:
            self._by_driver = False

    def reset(self) -> None:
        """As the base class; a reset of the machine unplugs everything."""
        super().reset()
        if not self._by_driver:
            self._unplug_all()

    def state(self) -> dict[str, object]:
        """The base class's, and which blocks are plugged: lengths of runs, unplugged first."""
        lengths, level, run = [], 0, 0
        for block in self._blocks:
            if block != level:
                lengths.append(run)
                level, run = block, 0
            run += 1
        return {
            **super().state(),
            "mem_requested": self._requested,
            "mem_blocks": [*lengths, run],
        }

    def take(self, take: StateReader) -> Commit:
        """Reads them back."""
        base = super().take(take)
        requested = take.integer("mem_requested", self._count)
        lengths = take.integers("mem_blocks", MAX_BLOCKS + 1, self._count)
        if sum(lengths) != self._count:
            take.refuse("mem_blocks", sum(lengths), f"runs of {self._count} blocks together")
        blocks = bytearray()
        for at, length in enumerate(lengths):
            blocks += bytes([at & 1]) * length

        def commit() -> None:
            base()
            self._requested, self._blocks, self._plugged = requested, blocks, sum(blocks)

        return commit
