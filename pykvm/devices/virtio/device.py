"""`VirtioDevice`: what every virtio device has, whatever its transport (VIRTIO 1.2, chapter 2).

Who runs what, and under which lock: docs/virtio.md, "Transports and threads".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock

from pykvm.devices.state import DeviceStateError, StateReader
from pykvm.devices.virtio.queue import QueueError, VirtQueue, make_queue
from pykvm.memory import GuestMemory
from pykvm.typed import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from pykvm.datapath.loop import IoThread
    from pykvm.devices.virtio.shm import ShmRegion
    from pykvm.devices.virtio.transport import Signal

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
ANY_LAYOUT, RING_INDIRECT, RING_EVENT_IDX, VERSION_1 = 1 << 27, 1 << 28, 1 << 29, 1 << 32
RING_PACKED, IN_ORDER, RING_RESET = 1 << 34, 1 << 35, 1 << 40
RING_FEATURES = RING_INDIRECT | RING_EVENT_IDX | RING_PACKED | IN_ORDER | RING_RESET
_QUEUE_WORDS = 8

Commit = Callable[[], None]
Queues = Literal["native", "reference"]


class Transport(Protocol):
    """How a device reaches its driver."""

    def queue_interrupt(self, index: int) -> None:
        """The driver should look at a queue's used ring."""

    def config_interrupt(self) -> None:
        """The driver should look at the device's status and configuration."""

    def kick(self, index: int) -> None:
        """As if the driver had notified a queue."""

    def kick_fd(self, index: int) -> int:
        """The eventfd of a queue's kicks; stable for the device's life."""

    def signal_for(self, index: int) -> Signal:
        """How native code interrupts the driver for a queue; stable for the device's life."""


class VirtioDevice:
    """Base of the device types. Subclasses give the constructor's arguments, and `handle`.

    - `device_id`: VIRTIO 1.2, chapter 5 (2: block).
    - `queue_sizes`: entries of each queue, powers of two.
    - `features`: bits of the device type; the ring features and VERSION_1 are added.
    - `features_off`: bits that are not offered after all.
    - `queues`: who walks the rings: "native" (C) or "reference" (Python, slower, to be read).

    `handle`, `config`, `config_write`, `activated`, `device_reset` and the status are called with
    `lock` held, from vCPU threads or from the I/O thread `io`; without one (`io` is None) a kick
    is handled in the thread that makes it. Engines with threads of their own take `lock` where
    they touch what those do.

    A driver that breaks the rules puts the device into DEVICE_NEEDS_RESET (2.1): it does nothing
    more until the driver resets it, and the log says once what was wrong.
    """

    name = "virtio"
    #: Queues whose kicks an engine of the device waits for itself (`kick_fd`).
    native_queues: frozenset[int] = frozenset()

    def __init__(
        self, device_id: int, queue_sizes: Sequence[int], features: int = 0, *,
        features_off: int = 0, queues: Queues = "native",
    ) -> None:  # fmt: skip
        self.device_id = device_id
        self.features = (features | VERSION_1 | RING_FEATURES) & ~features_off
        native = queues == "native"
        self.queues = [make_queue(index, size, native) for index, size in enumerate(queue_sizes)]
        self.driver_features = 0
        self.status = 0
        self.config_generation = 0
        #: The last reason for DEVICE_NEEDS_RESET, "" if there was none since the last reset.
        self.broken = ""
        #: The driver speaks the legacy interface (no VERSION_1, no FEATURES_OK).
        self.legacy = False
        self.lock = RLock()
        #: Where kicks are handled; None: in the thread that makes them. Set before `attach`.
        self.io: IoThread | None = None
        self._transport: Transport | None = None
        self._complaints = 0
        self._freezing = RLock()  # taken before `lock`, never while it is held
        self._frozen = 0
        self._halting = False  # somebody waits for `lock` to freeze
        self._missed: set[int] = set()  # queues that were kicked while frozen

    # -- for subclasses ------------------------------------------------------------------------

    def handle(self, queue: VirtQueue) -> None:
        """The driver kicked `queue`: take its requests. May raise `QueueError`."""
        raise NotImplementedError

    def config(self) -> bytes:
        """The device-specific configuration structure."""
        return b""

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The driver writes to it; most have nothing to write."""

    def shm_regions(self) -> Sequence[ShmRegion]:
        """Shared memory regions (2.10); asked once, when the device is put on a transport."""
        return ()

    def activated(self) -> None:
        """DRIVER_OK was set, or a state with it loaded: features are final; start engines."""

    def queue_enabled(self, queue: VirtQueue) -> None:
        """A queue came into use after DRIVER_OK: at once again after it was reset alone."""

    def queue_reset(self, queue: VirtQueue) -> None:
        """One queue is about to be reset (2.6.1); the device is quiet (`quiesce`)."""

    def quiesce(self) -> None:
        """Finish or give back every request in flight, and begin nothing until `unquiesce`.

        Called without `lock`, before a reset, a save, a pause of the machine and `close`. Those who
        do all their work in `handle` have nothing to do here. Must not need the I/O thread of
        another device.
        """

    def unquiesce(self) -> None:
        """Go on; after a reset there is nothing to go on with (the queues are not ready)."""

    def device_reset(self) -> None:
        """State beyond that of this class goes back to power-on; the device is quiet."""

    def finish(self, queue: VirtQueue) -> None:
        """Interrupts the driver for what was pushed, if it wants that."""
        if queue.should_notify() and self._transport is not None:
            self._transport.queue_interrupt(queue.index)

    def kick_fd(self, index: int) -> int:
        """The eventfd that the driver's kicks of a queue signal, for engines (`native_queues`)."""
        assert self._transport is not None, "the device has no transport yet"
        return self._transport.kick_fd(index)

    def signal_for(self, index: int) -> Signal:
        """How an engine interrupts the driver for a queue, without the GIL."""
        assert self._transport is not None, "the device has no transport yet"
        return self._transport.signal_for(index)

    def config_changed(self) -> None:
        """The configuration structure changed: new generation, and the driver is told."""
        with self.lock:
            self.config_generation = self.config_generation + 1 & 0xFF
            if self.status & DRIVER_OK and self._transport is not None:
                self._transport.config_interrupt()

    def needs_reset(self, why: str) -> None:
        """Nothing more happens until the driver resets the device."""
        with self.lock:
            if self.broken:
                return
            self.broken = why
            self.complain(f"{self.name} needs a reset: {why}")
            self.status |= NEEDS_RESET
            if self.status & DRIVER_OK and self._transport is not None:
                self._transport.config_interrupt()

    def complain(self, text: str) -> None:
        """A line in the log; the first ten of a device, so that a guest cannot fill it."""
        if self._complaints < 10:
            self._complaints += 1
            import logging

            logging.getLogger("pykvm.devices.virtio").warning("%s", text)

    # -- for transports ------------------------------------------------------------------------

    def use(self, *, queues: Queues | None = None, features_off: int = 0) -> None:
        """As the constructor's arguments of these names; before `attach`."""
        self.features &= ~features_off
        if queues is not None:
            self.queues = [make_queue(q.index, q.max_size, queues == "native") for q in self.queues]

    def attach(self, transport: Transport, memory: GuestMemory) -> None:
        """Connects the device to its transport and to guest memory."""
        self._transport = transport
        for queue in self.queues:
            queue.memory = memory

    @property
    def has(self) -> int:
        """The feature bits that both sides agreed on."""
        return self.driver_features & self.features

    @property
    def active(self) -> bool:
        """The driver is done with setting up, and has broken no rule since."""
        return self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK

    def set_driver_features(self, index: int, value: int) -> None:
        """The driver accepts 32 features: 0 to 31 for `index` 0, 32 to 63 for 1."""
        if self.status & FEATURES_OK or index > 1:
            return
        shift = 32 * index
        self.driver_features = self.driver_features & ~(0xFFFF_FFFF << shift) | value << shift

    def device_features(self, index: int) -> int:
        """32 of the features that the device offers."""
        return self.features >> 32 * index & 0xFFFF_FFFF if index <= 1 else 0

    def set_status(self, value: int) -> None:
        """The driver writes the status register; 0 resets (3.1). Not with `lock` held."""
        if value == 0:
            self.reset()
            return
        with self.lock:
            self._advance(value & 0xBF | self.status & NEEDS_RESET)

    def _advance(self, value: int) -> None:
        fresh = value & ~self.status
        if fresh & FEATURES_OK:
            accepted = self.driver_features
            if accepted & ~self.features or not accepted & VERSION_1:
                value &= ~FEATURES_OK  # the driver reads it back and gives up
        if fresh & DRIVER_OK and not value & FEATURES_OK and not self.legacy:
            self.status = value & ~DRIVER_OK
            self.needs_reset("DRIVER_OK without FEATURES_OK")
            return
        self.status = value
        if fresh & DRIVER_OK and not value & NEEDS_RESET:
            self._guarded(self.activated)

    def enable_queue(self, queue: VirtQueue) -> None:
        """The driver says that a queue's rings are in place."""
        with self.lock:
            if queue.ready:
                return
            has = self.has
            queue.packed, queue.in_order = bool(has & RING_PACKED), bool(has & IN_ORDER)
            queue.event_idx = bool(has & RING_EVENT_IDX)
            queue.indirect = bool(has & RING_INDIRECT)
            try:
                queue.check()
            except QueueError as error:
                self.needs_reset(str(error))
                return
            queue.ready = True
            if self.active:
                self._guarded(lambda: self.queue_enabled(queue))

    def reset_queue(self, queue: VirtQueue) -> None:
        """The driver takes one queue back (2.6.1); the others go on. Not with `lock` held."""
        self.freeze()
        try:
            with self.lock:
                if queue.ready:
                    self._guarded(lambda: self.queue_reset(queue))
                self._missed.discard(queue.index)
                queue.reset()
        finally:
            self.thaw()

    def kick(self, index: int) -> None:
        """The driver says that queue `index` has something to do: handles it, in this thread."""
        with self.lock:
            if not self.active or index >= len(self.queues):
                return
            queue = self.queues[index]
            if not self._frozen and not self._halting:
                if queue.ready:
                    self._guarded(lambda: self.handle(queue))
                if not self._halting:
                    return
            self._missed.add(index)  # not handled, or stopped in the middle

    def _guarded(self, work: Callable[[], object]) -> None:
        """What goes wrong in there is this device's trouble: the others go on."""
        try:
            work()
        except QueueError as error:
            self.needs_reset(str(error))
        except Exception as error:
            if self.io is None:
                raise  # it ends the run, as an error in any other device does
            import logging

            self.needs_reset(f"{type(error).__name__} in its own code: {error}")
            logging.getLogger("pykvm.devices.virtio").debug("%s", self.name, exc_info=error)

    def config_read(self, offset: int, size: int) -> int:
        """The configuration structure; zeros behind its end."""
        with self.lock:
            return int.from_bytes(self.config()[offset : offset + size], "little")

    def reset(self) -> None:
        """As after power-on, once the requests in flight are finished. Not with `lock` held."""
        self.freeze()
        try:
            with self.lock:
                self.status = self.driver_features = 0
                self.broken = ""
                self.legacy = False
                self._missed.clear()
                for queue in self.queues:
                    queue.reset()
                self.device_reset()
        finally:
            self.thaw()

    def close(self) -> None:
        """Gives back what is behind the device. Twice is harmless."""

    # -- standing still ------------------------------------------------------------------------

    def freeze(self) -> None:
        """Every request that was begun is finished, and none begins, until as many `thaw`s.

        Not with `lock` held. A driver that makes requests without end cannot delay it: queues give
        no more of them meanwhile.
        """
        with self._freezing:
            self._halting = True
            for queue in self.queues:
                queue.halted = True  # a `handle` that runs now comes to its end
            with self.lock:
                self._halting = False
                self._frozen += 1
                first = self._frozen == 1
            if first:
                self.quiesce()

    def thaw(self) -> None:
        """Undoes one `freeze`; kicks that came meanwhile are heard now."""
        with self._freezing:
            with self.lock:
                self._frozen -= 1
                if self._frozen:
                    return
                missed = sorted(self._missed) if self.active else []
                self._missed.clear()
                for queue in self.queues:
                    queue.halted = False
            self.unquiesce()
        if self._transport is not None:
            for index in missed:
                self._transport.kick(index)

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """The guest-visible state as plain values, with keys that a transport does not use."""
        return {
            "virtio_status": self.status,
            "virtio_features": self.driver_features,
            "virtio_generation": self.config_generation,
            "virtio_queues": [word for queue in self.queues for word in queue.state()],
        }

    def take(self, take: StateReader) -> Commit:
        """Reads the fields of `state`; the result, when called, takes them over."""
        status = take.integer("virtio_status", 0xFF)
        features = take.integer("virtio_features", (1 << 64) - 1)
        generation = take.integer("virtio_generation", 0xFF)
        words = take.integers("virtio_queues", _QUEUE_WORDS * len(self.queues), (1 << 64) - 1)
        if len(words) != _QUEUE_WORDS * len(self.queues):
            raise DeviceStateError(f"{self.name}: saved state is of another number of queues")
        for at, queue in enumerate(self.queues):
            size = words[_QUEUE_WORDS * at]
            flags = words[_QUEUE_WORDS * at + 7]
            ready, packed = flags & 1, flags & 8
            possible = 1 <= size <= queue.max_size and (packed or not size & size - 1)
            if size > 0xFFFF or (ready and not possible):
                raise DeviceStateError(f"{self.name}: saved state has a queue of {size} entries")

        def commit() -> None:
            self.status, self.driver_features = status, features
            self.config_generation = generation
            self.broken = "saved so" if status & NEEDS_RESET else ""
            for at, queue in enumerate(self.queues):
                queue.restore(words[_QUEUE_WORDS * at : _QUEUE_WORDS * (at + 1)])

        return commit

    def load_with(self, commit: Commit) -> None:
        """For transports: takes over what `take` and they have read. Not with `lock` held."""
        self.freeze()
        try:
            with self.lock:
                self.device_reset()
                self._missed.clear()
                commit()
                if self.io is not None and self.active:  # kicks that nobody had heard yet
                    self._missed.update(q.index for q in self.queues if q.ready)
                if self.active:
                    self._guarded(self.activated)
        finally:
            self.thaw()
