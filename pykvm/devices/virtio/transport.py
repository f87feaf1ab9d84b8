"""What the two transports share: the eventfds of a device's queues, and who listens to them.

Each queue may have two. The *kick* is signalled by the driver's notification: by KVM itself
(ioeventfd) where the machine gives `Doorbells`, else by the register write. The *signal* is
written by whoever finished requests, and interrupts the driver: by KVM itself (irqfd) where that
is possible at the moment, else somebody listens to it here and does what the registers say. Both
stay the same for the device's life, so that native code can keep them.
"""

from __future__ import annotations

import os
from functools import partial

from pykvm.typed import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.datapath.loop import IoThread
    from pykvm.devices.virtio.device import VirtioDevice


class Signal(NamedTuple):
    """How native code interrupts the driver for a queue: `bits` into `*isr`, then 1 into `fd`.

    `isr` is a C `uint32_t *` (`AtomicWord.cdata`), or None where there is nothing to set.
    """

    fd: int
    isr: Any
    bits: int


class Removable(Protocol):
    """Something that can be taken back once."""

    def remove(self) -> None: ...


class Doorbells(Protocol):
    """Writes of the guest that signal an eventfd without an exit; the machine gives it."""

    def add(
        self, fd: int, kind: str, address: int, length: int, match: int | None
    ) -> Removable | None:
        """Writes of `length` bytes (of the value `match`) to `address` signal `fd`.

        `kind`: "pio" or "mmio" (guest-physical). None where the machine cannot.
        """


class LineIrqFd(Protocol):
    """An edge of one interrupt line with each write to an eventfd; the machine gives it."""

    def attach(self, fd: int) -> Removable | None:
        """From now on. None where the machine cannot."""


class MessageVector(Protocol):
    """One message that eventfds send."""

    def aim(self, address: int, data: int) -> bool:
        """What is sent from now on: a guest-physical address and 32 bits of data. False, and
        nothing changes, for a message that goes nowhere."""

    def attach(self, fd: int) -> Removable | None:
        """Writes to `fd` send it, until removed. None where the machine cannot."""

    def close(self) -> None:
        """Gives the vector back; nothing is attached any more."""


class MessageIrqFds(Protocol):
    """Makes vectors; the machine gives it."""

    def vector(self) -> MessageVector | None:
        """A new one, or None where the machine has no more."""


class QueueEvents:
    """The eventfds of one device's queues, made when they are first asked for."""

    def __init__(self, device: VirtioDevice, doorbells: Doorbells | None) -> None:
        self.device = device
        self.doorbells = doorbells
        self._kicks: dict[int, int] = {}
        self._signals: dict[int, int] = {}
        self._rung: list[Removable] = []
        self._listened: set[int] = set()
        self._own: IoThread | None = None  # listens for a device that has no I/O thread

    # -- kicks ---------------------------------------------------------------------------------

    def kick_fd(self, index: int) -> int:
        """The eventfd of the driver's notifications of a queue."""
        fd = self._kicks.get(index)
        if fd is None:
            self._check(index)
            fd = self._kicks[index] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return fd

    def kick(self, index: int) -> None:
        """The driver wrote the notification register itself."""
        device = self.device
        if index >= len(device.queues):
            return
        if device.io is None and index not in device.native_queues:
            device.kick(index)
        else:
            os.eventfd_write(self.kick_fd(index), 1)

    def open_doors(self, place: Callable[[int], tuple[str, int, int, int | None] | None]) -> None:
        """The driver may kick: listens, and has KVM ring where `place(queue)` says.

        `place` gives what `Doorbells.add` takes. What was open before is closed first.
        """
        self.close_doors()
        device = self.device
        for index in range(len(device.queues)):
            native = index in device.native_queues
            if not native:
                if device.io is None:
                    continue
                device.io.add(self.kick_fd(index), partial(self._kicked, index))
            self._ring(index, place(index))

    def _ring(self, index: int, where: tuple[str, int, int, int | None] | None) -> None:
        if where is None or self.doorbells is None:
            return
        bell = self.doorbells.add(self.kick_fd(index), *where)
        if bell is not None:
            self._rung.append(bell)

    def move_doors(self, place: Callable[[int], tuple[str, int, int, int | None] | None]) -> None:
        """The registers have gone elsewhere (or nowhere)."""
        self._unring()
        device = self.device
        for index in range(len(device.queues)):
            if device.io is not None or index in device.native_queues:
                self._ring(index, place(index))

    def _unring(self) -> None:
        rung, self._rung = self._rung, []
        for bell in rung:
            bell.remove()

    def close_doors(self) -> None:
        """No kick is listened to any more."""
        self._unring()
        io = self.device.io
        if io is not None:
            for fd in self._kicks.values():
                io.remove(fd)

    def _kicked(self, index: int) -> None:
        drain(self._kicks[index])
        self.device.kick(index)

    # -- signals -------------------------------------------------------------------------------

    @property
    def signals(self) -> dict[int, int]:
        """The signals that exist: queue -> eventfd."""
        return self._signals

    def signal_fd(self, index: int) -> int:
        """The eventfd whose writes interrupt the driver for a queue."""
        fd = self._signals.get(index)
        if fd is None:
            self._check(index)
            fd = self._signals[index] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return fd

    def listen(self, index: int, callback: Callable[[int], None]) -> None:
        """Signals of the queue call `callback(index)`, on an I/O thread."""
        fd = self.signal_fd(index)
        if fd not in self._listened:
            self._listened.add(fd)
            self._listener().add(fd, partial(self._signalled, index, callback))

    def unlisten(self, index: int) -> None:
        """KVM takes them from now on."""
        fd = self._signals.get(index)
        if fd is not None and fd in self._listened:
            self._listened.discard(fd)
            self._listener().remove(fd)

    def _signalled(self, index: int, callback: Callable[[int], None]) -> None:
        if drain(self._signals[index]):
            callback(index)

    def _listener(self) -> IoThread:
        if self.device.io is not None:
            return self.device.io
        if self._own is None:
            from pykvm.datapath.loop import IoThread

            self._own = IoThread(f"pykvm-io-{self.device.name}")
        return self._own

    # -- life ----------------------------------------------------------------------------------

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self.device.queues):
            raise IndexError(f"{self.device.name} has no queue {index}")

    def close(self) -> None:
        """Closes the eventfds; nobody uses them any more. Twice is harmless. Not under locks."""
        self.close_doors()
        io = self.device.io
        for index in self._signals:
            self.unlisten(index)
        if io is not None and (self._kicks or self._signals):
            io.drain()
        if self._own is not None:
            self._own.stop()
            self._own = None
        for fd in (*self._kicks.values(), *self._signals.values()):
            os.close(fd)
        self._kicks.clear()
        self._signals.clear()


def drain(fd: int) -> int:
    """How often an eventfd was written since the last look."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
