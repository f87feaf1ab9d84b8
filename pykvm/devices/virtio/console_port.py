"""`ConsolePort`: one port of a virtio console, and the back end that it is joined with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pykvm.devices.chardev.base import Chardev, ChardevEvent
from pykvm.devices.virtio.buffers import gather
from pykvm.devices.virtio.queue import QueueError, VirtQueue

PIECE = 64 << 10  # what goes to a back end at once
MOST = 1 << 20  # bytes of output in one request


class Owner(Protocol):
    """What a port needs of its console."""

    def port_input(self, port: ConsolePort) -> VirtQueue | None:
        """The receive queue, if the guest may be sent something now."""

    def port_changed(self, port: ConsolePort) -> None:
        """The host's end was opened or closed."""

    def finish(self, queue: VirtQueue) -> None:
        """Interrupts the driver if it wants that."""

    def broken_rules(self, error: QueueError) -> None:
        """The driver broke the rules of a queue."""

    def locked(self, work: Callable[[], int]) -> int:
        """Does `work` under the device's lock."""


class ConsolePort:
    """A port: output to a back end, input from it, both without a buffer of their own.

    Input that the guest has no room for stays in the back end, which then reads no more from its
    source. Output that the back end has no room for stays in the guest's queue.
    """

    def __init__(self, owner: Owner, index: int, name: str, backend: Chardev | None) -> None:
        self._owner = owner
        self.index = index
        self.name = name
        self.backend = backend
        #: Linux makes /dev/hvcN of a console port, and /dev/vportMpN of any other.
        self.is_console = False
        #: The guest has said that it knows the port; that a program has it open.
        self.ready = self.guest_open = False
        #: Somebody is at the host's end.
        self.host_open = backend is not None
        #: The back end has more input than the guest took.
        self.refused = False
        self.bytes_in = self.bytes_out = 0

    def power_on(self) -> None:
        """The guest knows nothing of the port."""
        self.ready = self.guest_open = False

    def connect(self) -> None:
        """Joins the port with its back end; call it before the back end is started."""
        if self.backend is not None:
            self.backend.add_event_handler(self._on_event)
            self.backend.set_receiver(self.receive)

    def disconnect(self) -> None:
        """Nothing more comes from the back end."""
        backend, self.backend = self.backend, None
        if backend is not None:
            backend.set_receiver(None)

    def _on_event(self, event: ChardevEvent) -> None:
        if event in ("connected", "disconnected") and self.backend is not None:
            self.host_open = event == "connected"
            self._owner.port_changed(self)

    # -- output --------------------------------------------------------------------------------

    @property
    def blocked(self) -> bool:
        """The back end waits for a slow reader: the guest shall wait, too."""
        return self.backend is not None and self.backend.congested

    def send(self, views: list[memoryview]) -> int:
        """A request of the guest to the back end; its length in bytes. Raises `QueueError`."""
        length = sum([len(view) for view in views])
        if length > MOST:
            raise QueueError(f"port {self.index}: {length} bytes of output in one request")
        backend = self.backend
        if backend is not None:
            data = gather(views, length)
            for at in range(0, length, PIECE):
                backend.write(data[at : at + PIECE])
        self.bytes_out += length
        return length

    # -- input ---------------------------------------------------------------------------------

    def receive(self, data: bytes) -> int:
        """Input from the back end; how much of it the guest had buffers for."""
        return self._owner.locked(lambda: self._put(data))

    def _put(self, data: bytes) -> int:
        done = 0
        queue = self._owner.port_input(self)
        try:
            while queue is not None and done < len(data):
                chain = queue.pop()
                if chain is None:
                    break
                written = 0
                for view in chain.writable:
                    piece = data[done + written : done + written + len(view)]
                    view[: len(piece)] = piece
                    written += len(piece)
                if not chain.writable:
                    raise QueueError(f"port {self.index}: a buffer for input cannot be written")
                queue.push(chain, written)
                done += written
            if queue is not None and done:
                self._owner.finish(queue)
        except QueueError as error:
            self._owner.broken_rules(error)
        self.bytes_in += done
        self.refused = done < len(data)
        return done

    def offer(self) -> None:
        """The guest has room again. Without the device's lock: the back end calls `receive`."""
        backend = self.backend
        if backend is not None and self.refused:
            self.refused = False
            backend.receiver_ready()
