"""One serial device with several back ends."""

from __future__ import annotations

from pykvm.devices.chardev.base import Chardev

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.devices.chardev.base import EventHandler, Receiver


class TeeChardev(Chardev):
    """Output goes to all `children`, in their order; input comes from all of them.

    It owns them: `start` and `close` reach each, and where one cannot start, none stays open.
    """

    name = "tee"

    def __init__(self, *children: Chardev) -> None:
        super().__init__()
        self.children = children
        self._writers = tuple(child.write for child in children)

    def write(self, data: bytes) -> None:
        """Write to every child."""
        for write in self._writers:
            write(data)

    def flush(self) -> None:
        """Flush every child."""
        for child in self.children:
            child.flush()

    def set_receiver(self, receiver: Receiver | None) -> None:
        """Every child's input goes to `receiver`."""
        for child in self.children:
            child.set_receiver(receiver)

    def receiver_ready(self) -> None:
        """Every child may offer its input."""
        for child in self.children:
            child.receiver_ready()

    def add_event_handler(self, handler: EventHandler) -> None:
        """`handler` gets the events of every child."""
        for child in self.children:
            child.add_event_handler(handler)

    def start(self) -> None:
        """Start the children; closes those that started where one does not."""
        for index, child in enumerate(self.children):
            try:
                child.start()
            except BaseException:
                for started in self.children[:index]:
                    started.close()
                raise

    def stop_waiting(self) -> None:
        """No child blocks from now on."""
        for child in self.children:
            child.stop_waiting()

    def close(self) -> None:
        """Close every child, even where one of them raises (Ctrl-C while it flushes)."""
        failure: BaseException | None = None
        for child in self.children:
            try:
                child.close()
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure
