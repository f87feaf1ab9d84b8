"""Virtqueues for devices: `make_queue`, and `ReferenceQueue`, the readable one in Python.

`ReferenceQueue` is what all formats have in common: batches, order, errors. How rings look in
memory is in `split` and `packed`. The one that machines use is `pykvm.datapath.queue.NativeQueue`.
"""

from __future__ import annotations

from pykvm.datapath.ring import MAX_SIZE, MAX_WRITTEN, Chain, QueueError, VirtQueue
from pykvm.devices.virtio.packed import PackedRing
from pykvm.devices.virtio.split import SplitRing
from pykvm.memory import MemoryAccessError

__all__ = [
    "MAX_SIZE",
    "Chain",
    "QueueError",
    "ReferenceQueue",
    "VirtQueue",
    "make_queue",
]


def make_queue(index: int, max_size: int, native: bool = True) -> VirtQueue:
    """A queue for a device. It is split or packed by its field `packed`, all its life.

    `native`: walked in C; False: in Python, slower and to be read, as labs want it.
    """
    if native:
        from pykvm.datapath.queue import NativeQueue

        return NativeQueue(index, max_size)
    return ReferenceQueue(index, max_size)


class ReferenceQueue(VirtQueue):
    """See `VirtQueue`."""

    def reset(self) -> None:
        """As after power-on."""
        super().reset()
        self._popped = self._oldest = 0  # positions of chains
        self._held: dict[int, tuple[Chain, int]] = {}  # done before their turn

    @property
    def _rings(self) -> SplitRing | PackedRing:
        return (PackedRing if self.packed else SplitRing)(self, self._memory)

    def _outside(self, error: MemoryAccessError) -> QueueError:
        return QueueError(f"queue {self.index}: {error}")

    # -- requests ------------------------------------------------------------------------------

    def pop(self) -> Chain | None:
        """As `VirtQueue.pop`."""
        if not self.ready or self.halted:
            return None
        try:
            chain = self._rings.next_chain()
        except MemoryAccessError as error:
            raise self._outside(error) from None
        if chain is not None and self.in_order:
            chain.position = self._popped
            self._popped = (self._popped + 1) % self.size
        return chain

    def pop_batch(self, limit: int = 64) -> list[Chain]:
        """As `VirtQueue.pop_batch`."""
        found: list[Chain] = []
        while len(found) < limit:
            try:
                chain = self.pop()
            except QueueError:
                if not found:
                    raise
                break
            if chain is None:
                break
            found.append(chain)
        return found

    def push(self, chain: Chain, written: int) -> None:
        """As `VirtQueue.push`."""
        self.push_batch([(chain, written)])

    def push_batch(self, done: list[tuple[Chain, int]]) -> None:
        """As `VirtQueue.push_batch`."""
        if not done or not self.ready:
            return
        done = [(chain, min(written, MAX_WRITTEN)) for chain, written in done]
        if self.in_order:  # what is done before its turn waits (2.7.9, 2.8.11)
            self._held.update({chain.position: (chain, written) for chain, written in done})
            done = []
            while self._oldest in self._held:
                done.append(self._held.pop(self._oldest))
                self._oldest = (self._oldest + 1) % self.size
            if not done:
                return
        try:
            self._rings.put_used(done)
        except MemoryAccessError as error:
            raise self._outside(error) from None

    def should_notify(self) -> bool:
        """As `VirtQueue.should_notify`."""
        if not self.ready or not self.unasked:
            return False
        fresh, self.unasked = self.unasked, 0
        try:
            return self._rings.wants_interrupt(fresh)
        except MemoryAccessError as error:
            raise self._outside(error) from None

    def want_kicks(self, on: bool) -> bool:
        """As `VirtQueue.want_kicks`."""
        if not self.ready:
            return False
        self.no_kicks = not on
        try:
            return self._rings.want_kicks(on)
        except MemoryAccessError as error:
            raise self._outside(error) from None
