"""Requests on their way to an NBD server, and which acknowledged writes are durable."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from pykvm.devices.block.backend import BlockError
from pykvm.devices.block.request import Done


class Pending:
    """A request on its way: `views` are filled by a read and sent by a write."""

    __slots__ = (
        "command", "deadline", "done", "error", "extents", "flags", "left", "length", "mark",
        "offset", "views",
    )  # fmt: skip

    def __init__(
        self, command: int, offset: int, length: int, views: Sequence[memoryview], done: Done,
        flags: int = 0,
    ) -> None:  # fmt: skip
        self.command, self.flags = command, flags
        self.offset, self.length, self.views = offset, length, views
        self.done = done
        self.deadline = 0.0
        self.left = length
        self.mark = 0
        self.error: BlockError | None = None
        self.extents: list[tuple[int, int]] = []


class Durability:
    """Which acknowledged writes a flush has covered, for all channels of a disk.

    A server that was lost may have lost them; the next flush has to say so.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._written = self._flushed = 0
        self._lost: BlockError | None = None

    def wrote(self) -> None:
        """A write was acknowledged without being durable."""
        with self._lock:
            self._written += 1

    def mark(self) -> int:
        """What a flush that begins now will cover."""
        return self._written

    def flushed(self, mark: int) -> None:
        """A flush is done."""
        with self._lock:
            self._flushed = max(self._flushed, mark)

    def interrupted(self, name: str) -> None:
        """The connection was lost."""
        with self._lock:
            if self._written > self._flushed:
                self._flushed = self._written
                self._lost = BlockError(
                    f"{name}: the connection was lost after writes that no flush had followed; "
                    "the server may have lost them"
                )

    def take_loss(self) -> BlockError | None:
        """The bad news, once."""
        with self._lock:
            lost, self._lost = self._lost, None
            return lost
