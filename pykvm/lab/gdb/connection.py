"""A socket with GDB at its other end: messages in, packets out.

A thread of its own reads, because GDB interrupts while the guest runs. What is kept is bounded:
one packet that is being put together, and `BACKLOG` that were not looked at yet.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading

from pykvm.lab.gdb.packets import Decoder, Kind, Message
from pykvm.lab.gdb.runner import Runner

BACKLOG = 64
SEND_TIMEOUT_S = 20
_PATIENCE_S = 0.2


class Connection:
    """One peer, whose interrupts go to `runner`, as does the news that it is gone."""

    def __init__(self, peer: socket.socket, runner: Runner) -> None:
        self._peer = peer
        self._runner = runner
        self._messages: queue.Queue[Message | None] = queue.Queue()
        self._sending = threading.Lock()
        self._room = threading.Semaphore(BACKLOG)
        self._closed = False
        self.lost = False
        peer.settimeout(None)
        with contextlib.suppress(OSError):  # a Unix socket has no such option
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        timeout = struct.pack("@ll", SEND_TIMEOUT_S, 0)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        self._thread = threading.Thread(target=self._read, name="pykvm-gdb", daemon=True)
        self._thread.start()

    def receive(self) -> Message | None:
        """The next message, None when the peer has gone. Blocks."""
        message = self._messages.get()
        if message is None:
            self._messages.put(None)  # for who asks again
        else:
            self._room.release()
        return message

    def is_interrupted(self) -> bool:
        """Whether an interrupt, or the peer's end, comes next."""
        with self._messages.mutex:
            if not self._messages.queue:
                return False
            first = self._messages.queue[0]
        return first is None or first.kind is Kind.INTERRUPT

    def drop_interrupts(self) -> None:
        """Takes interrupts out that come next: they have had their effect."""
        while True:
            with self._messages.mutex:
                waiting = self._messages.queue
                if not waiting or waiting[0] is None or waiting[0].kind is not Kind.INTERRUPT:
                    return
                waiting.popleft()
            self._room.release()

    def send(self, data: bytes) -> None:
        """Writes to the peer. Raises `OSError` when it is gone or does not read."""
        with self._sending:
            self._peer.sendall(data)

    def abort(self) -> None:
        """From any thread: as if the peer had gone."""
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the conversation and the reading thread."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_WR)
        # What is left unread would make TCP throw away the last reply with a reset.
        self._thread.join(_PATIENCE_S)
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._peer.close()

    def _read(self) -> None:
        decoder = Decoder()
        try:
            while data := self._peer.recv(4096):
                for message in decoder.feed(data):
                    if not self._queued(message):
                        return
        except OSError:
            pass
        finally:
            self.lost = True
            self._messages.put(None)
            self._runner.interrupt()

    def _queued(self, message: Message) -> bool:
        """Puts a message where `receive` finds it; False for a peer that breaks the rules.

        A peer that is quicker than its answers waits; one that talks on while the guest runs,
        when only an interrupt is allowed, would hide its own interrupts, and is sent away.
        """
        while not self._room.acquire(timeout=_PATIENCE_S):
            if self._closed or self._runner.running:
                return False
        self._messages.put(message)
        if message.kind is Kind.INTERRUPT:
            self._runner.interrupt()  # after it was queued: whoever starts to run sees it there
        return True
