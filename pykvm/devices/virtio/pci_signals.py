"""MSI-X interrupts of virtio-pci that no Python is needed for.

A queue has a signal (an eventfd) for as long as the device lives. While its vector may be sent -
MSI-X is on, the vector is there and not masked, the function may master the bus - KVM takes the
eventfd (irqfd) and sends the message. At all other times somebody here listens, and a write
becomes a pending bit, or the interrupt pin where MSI-X is off.

Nothing is lost in between: KVM looks at the eventfd when it gets it, a listener too. What both
have seen becomes one interrupt too many, which drivers have to bear anyway.
"""

from __future__ import annotations

from pykvm.devices.virtio.pci_common import NO_VECTOR
from pykvm.devices.virtio.transport import (
    MessageIrqFds,
    MessageVector,
    QueueEvents,
    Removable,
    Signal,
    drain,
)
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.devices.virtio.pci import VirtioPci


class VectorSignals:
    """The signals of one function's queues. All methods with the device's lock held."""

    def __init__(
        self, function: VirtioPci, events: QueueEvents, irqfds: MessageIrqFds | None
    ) -> None:
        self._function = function
        self._events = events
        self._irqfds = irqfds
        self._vectors: dict[int, MessageVector] = {}
        self._aims: dict[int, tuple[int, int]] = {}
        self._attached: dict[int, tuple[int, Removable]] = {}  # queue -> (vector, irqfd)

    def make(self, index: int) -> Signal:
        """The signal of a queue."""
        fresh = index not in self._events.signals
        fd = self._events.signal_fd(index)
        if fresh:
            self._place(index)
        return Signal(fd, None, 0)

    def settle(self) -> None:
        """Something has changed that says who takes the signals."""
        for index in self._events.signals:
            self._place(index)

    def _wanted(self, index: int) -> tuple[int, int, int] | None:
        """(vector, address, data) that KVM may send for a queue, or None."""
        vector = self._function.common.vectors[index]
        if vector == NO_VECTOR or self._irqfds is None or not self._function.bus_master:
            return None
        message = self._function.msix.message(vector)
        return None if message is None else (vector, *message)

    def _place(self, index: int) -> None:
        wanted = self._wanted(index)
        vector = None if wanted is None else self._aim(*wanted)
        held = self._attached.get(index)
        if held is not None:
            if wanted is not None and vector is not None and held[0] == wanted[0]:
                return
            self._events.listen(index, self._heard)
            del self._attached[index]
            held[1].remove()
        if wanted is None or vector is None or not self._hand_over(index, wanted[0], vector):
            self._events.listen(index, self._heard)

    def _hand_over(self, index: int, number: int, vector: MessageVector) -> bool:
        """KVM takes the signals of a queue from now on; False if it cannot."""
        fd = self._events.signal_fd(index)
        self._events.unlisten(index)
        before = drain(fd)
        attached = vector.attach(fd)
        if attached is not None:
            self._attached[index] = number, attached
            drain(fd)  # KVM has seen what was written since
        if before:  # what the listener had not taken yet
            self._function.queue_interrupt(index)
        return attached is not None

    def _aim(self, number: int, address: int, data: int) -> MessageVector | None:
        """The vector, with that message; None where there is none for it."""
        vector = self._vectors.get(number)
        if vector is None:
            assert self._irqfds is not None
            vector = self._irqfds.vector()
            if vector is None:
                return None
            self._vectors[number] = vector
        if self._aims.get(number) != (address, data):
            if not vector.aim(address, data):
                return None
            self._aims[number] = address, data
        return vector

    def _heard(self, index: int) -> None:
        """A signal that KVM did not take; on an I/O thread, without the lock."""
        self._function.queue_interrupt(index)

    def collect(self) -> None:
        """Signals that a listener has not come to yet count now: pending bits are asked for."""
        for index, fd in self._events.signals.items():
            if index not in self._attached and drain(fd):
                self._function.queue_interrupt(index)

    def close(self) -> None:
        """Gives everything back but the eventfds."""
        for _, attached in self._attached.values():
            attached.remove()
        self._attached.clear()
        for vector in self._vectors.values():
            vector.close()
        self._vectors.clear()
        self._aims.clear()
