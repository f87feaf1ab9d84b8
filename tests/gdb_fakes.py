"""A debuggee without a machine, and the other end of the wire."""

from __future__ import annotations

import contextlib
import socket
import threading

from pykvm.lab.gdb.connection import Connection
from pykvm.lab.gdb.descriptions import Arch, Description, Register, describe
from pykvm.lab.gdb.packets import Decoder, Kind, Message, encode
from pykvm.lab.gdb.runner import Runner
from pykvm.lab.gdb.session import Ending, Session
from pykvm.lab.gdb.target import SIGINT, SIGTRAP, GdbError, How, Point, Resume, Stop


class FakeRegisters:
    """Values by name; `bad` cannot be read."""

    def __init__(self, values: dict[str, int]) -> None:
        self.values = values

    def read(self, register: Register) -> bytes:
        if register.name == "fop":
            raise GdbError("fop cannot be read")
        return self.values.get(register.name, 0).to_bytes(register.size, "little")

    def write(self, register: Register, data: bytes) -> None:
        if register.name == "cr8":
            raise GdbError("cr8 cannot be written")
        self.values[register.name] = int.from_bytes(data, "little")


class FakeTarget:
    """Two vCPUs, a page of memory at 0x1000, and a run that ends as the test says."""

    BASE = 0x1000

    def __init__(self) -> None:
        self.cpus = 2
        self.stop = Stop(SIGTRAP)
        self.can_reverse = False
        self.memory = bytearray(range(256)) * 16
        self.values: list[dict[str, int]] = [{"rip": 0x1000}, {"rip": 0x2000}]
        self.points: set[tuple[Point, int, int]] = set()
        self.resumed: list[Resume] = []
        self.next_stop: Stop | None = Stop(SIGTRAP, 1, "swbreak:")
        self.resets = 0
        self._interrupted = threading.Event()

    def describe(self) -> Description:
        return describe(Arch.X86_64, True)

    def cpu_text(self, cpu: int) -> str:
        return f"CPU#{cpu}"

    def registers(self, cpu: int) -> FakeRegisters:
        return FakeRegisters(self.values[cpu])

    def read(self, cpu: int, address: int, length: int) -> bytes:
        data = bytes(self.memory[address - self.BASE :][:length]) if address >= self.BASE else b""
        if not data and length:
            raise GdbError(f"nothing is mapped at {address:#x}")
        return data

    def write(self, cpu: int, address: int, data: bytes) -> None:
        at = address - self.BASE
        if not 0 <= at <= len(self.memory) - len(data):
            raise GdbError(f"nothing is mapped at {address:#x}")
        self.memory[at : at + len(data)] = data

    def insert(self, cpu: int, point: Point, address: int, length: int) -> None:
        if length > 8:
            raise GdbError("too long")
        self.points.add((point, address, length))

    def remove(self, point: Point, address: int, length: int) -> None:
        self.points.discard((point, address, length))

    def remove_all(self) -> None:
        self.points.clear()

    def resume(self, resume: Resume) -> Stop:
        """Ends at once with `next_stop`; without one, runs until it is interrupted."""
        self.resumed.append(resume)
        if self.next_stop is not None:
            self.stop = self.next_stop
        else:
            self._interrupted.wait()
            self._interrupted.clear()
            self.stop = Stop(SIGINT)
        if resume.how is How.BACK:
            self.stop = Stop(SIGTRAP, 0, "replaylog:begin")
        return self.stop

    def interrupt(self) -> None:
        self._interrupted.set()

    def reset(self) -> None:
        self.resets += 1
        self.stop = Stop(SIGTRAP)

    def monitor(self, cpu: int, line: str) -> str:
        return f"{cpu}: {line}" if line else ""


class Client:
    """GDB's end: raw bytes, or packets with replies. Nothing here waits for ever."""

    def __init__(self, peer: socket.socket) -> None:
        peer.settimeout(20)
        self.socket = peer
        self._decoder = Decoder()
        self._messages: list[Message] = []
        self.acks = True

    def message(self) -> Message | None:
        """The next thing that comes; None at the end."""
        while not self._messages:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._messages += self._decoder.feed(data)
        return self._messages.pop(0)

    def reply(self) -> bytes | None:
        """The next packet; None at the end."""
        while (message := self.message()) is not None:
            if message.kind is Kind.PACKET:
                if self.acks:
                    with contextlib.suppress(BrokenPipeError):
                        self.socket.sendall(b"+")
                return message.data
        return None

    def send(self, data: bytes) -> None:
        """A packet."""
        self.socket.sendall(encode(data))

    def ask(self, data: bytes) -> bytes | None:
        """A packet and its reply."""
        self.send(data)
        return self.reply()


class Conversation:
    """A session over a pair of sockets, in a thread."""

    def __init__(self, target: FakeTarget | None = None) -> None:
        self.target = target or FakeTarget()
        ours, theirs = socket.socketpair()
        self.client = Client(theirs)
        self.runner = Runner(self.target)
        self.connection = Connection(ours, self.runner)
        self.session = Session(self.connection, self.target, self.runner)
        self.ending: Ending | None = None
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        self.ending = self.session.serve()
        self.connection.close()

    def __enter__(self) -> Conversation:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.socket.close()
        self.finished()

    def finished(self) -> Ending | None:
        """Waits for the session's end."""
        self._thread.join(20)
        assert not self._thread.is_alive(), "the session hangs"
        return self.ending
