"""`GdbServer`: lets GDB attach to a target at any time, and runs the target when none is there."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable

from pykvm.lab.gdb.address import Address, Listener
from pykvm.lab.gdb.connection import Connection
from pykvm.lab.gdb.runner import Runner
from pykvm.lab.gdb.session import Ending, Session
from pykvm.lab.gdb.target import How, Resume, Stop, Target
from pykvm.typed import Self

SILENCE_S = 10.0
"""How long a peer may be connected without a word; the guest runs on meanwhile."""

LEAVING_S = 2.0
"""How long one that comes waits for one that is just leaving."""


class GdbServer:
    """Serves one GDB at a time; another one that connects meanwhile is sent away.

    `address`: ":1234" (this host only), "host:1234", "unix:PATH"; see `Address`. `serve()` runs in
    the thread that is to run the guest. `say` gets a line for the user when the guest is kept for
    a GDB that is not there yet. Raises `AddressError` where it cannot listen.
    """

    def __init__(
        self, target: Target, address: str, say: Callable[[str], object] = lambda text: None
    ) -> None:
        self._target = target
        self._say = say
        self._runner = Runner(target)
        self._listener = Listener(Address.parse(address))
        self._peers: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._free = threading.Event()
        self._free.set()
        self._ended = False
        self._connection: Connection | None = None
        self._session: Session | None = None
        self._thread = threading.Thread(target=self._accept, name="pykvm-gdb-listen", daemon=True)
        self._thread.start()

    @property
    def address(self) -> Address:
        """Where it listens, as `target remote` takes it."""
        return self._listener.address

    def serve(self, *, wait: bool, stay: bool = False) -> Stop | None:
        """Runs the guest to its end, with or without GDB; how it ended, None if it was killed.

        With `wait` it stands still until a GDB says otherwise, also after one that vanished;
        else it runs whenever no GDB is connected. A guest that crashed waits for one; it has
        ended when that has gone. With `stay` so does one that ended.
        """
        going = not wait
        while not self._ended:
            stop = self._target.stop
            if going and _can_go(stop):
                stop = self._runner.resume(Resume(How.CONTINUE), self._is_wanted)
                if stop.exit_code is not None and not stay:
                    return stop
                if not _can_go(stop) and not self._ended:
                    self._say(f"{stop.text}; it stays for gdb")
            peer = self._peers.get()
            if peer is None:
                break
            ending = self._talk(peer)
            if ending is Ending.KILLED:
                return None
            if not _can_go(self._target.stop):
                return self._target.stop
            going = ending is Ending.DETACHED or not wait
        return self._target.stop

    def console(self, data: bytes) -> None:
        """What the guest prints, for GDB's terminal, line by line while the guest runs."""
        session = self._session
        if session is not None:
            session.console(data, now=self._runner.running)

    def end(self) -> None:
        """From any thread or signal handler: `serve()` is to return."""
        self._ended = True
        self._peers.put(None)
        if self._connection is not None:
            self._connection.abort()
        self._runner.interrupt()

    def close(self) -> None:
        """Stops listening. Twice is harmless."""
        self._ended = True
        self._listener.close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_wanted(self) -> bool:
        return self._ended or not self._peers.empty()

    def _talk(self, peer: socket.socket) -> Ending:
        self._connection = Connection(peer, self._runner)
        self._session = Session(self._connection, self._target, self._runner)
        try:
            if self._ended:
                return Ending.LOST
            return self._session.serve()
        finally:
            self._session = None
            self._connection.close()
            self._target.remove_all()
            self._connection = None
            self._free.set()

    def _accept(self) -> None:
        while not self._ended:
            try:
                peer, _ = self._listener.socket.accept()
            except OSError:
                return
            if not _speaks(peer) or not self._free.wait(LEAVING_S) or self._ended:
                peer.close()
                continue
            self._free.clear()
            self._peers.put(peer)
            self._runner.interrupt()


def _can_go(stop: Stop) -> bool:
    return stop.exit_code is None and not stop.crashed


def _speaks(peer: socket.socket) -> bool:
    """Whether a peer that connected says something: only then is the guest disturbed for it."""
    peer.settimeout(SILENCE_S)
    try:
        return bool(peer.recv(1, socket.MSG_PEEK))
    except OSError:
        return False
