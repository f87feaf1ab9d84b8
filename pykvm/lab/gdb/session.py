"""One conversation with GDB: packets in, replies out, and the guest's run between them.

Sources: GDB manual, appendix E ("Packets", "Stop Reply Packets", "Interrupts"). All-stop mode:
GDB speaks only while the guest stands still, but for the interrupt byte.
"""

from __future__ import annotations

import contextlib

from pykvm.enums import StrEnum
from pykvm.errors import PykvmError
from pykvm.lab.gdb import wire
from pykvm.lab.gdb.commands import Commands
from pykvm.lab.gdb.connection import Connection
from pykvm.lab.gdb.packets import Kind, encode
from pykvm.lab.gdb.runner import Runner
from pykvm.lab.gdb.target import GdbError, How, Resume, Target

MAX_RESENDS = 10
_CONSOLE_PIECE = 1024  # bytes of text in an `O` packet
_MAX_OUTPUT = 1 << 16  # bytes of the guest's output that wait to be shown


class Ending(StrEnum):
    """How a conversation ended."""

    DETACHED = "detached"
    KILLED = "killed"
    LOST = "lost"
    EXITED = "exited"


class Session:
    """Talks with one GDB until it leaves, from the calling thread."""

    def __init__(self, connection: Connection, target: Target, runner: Runner) -> None:
        self._connection = connection
        self._target = target
        self._runner = runner
        self._commands = Commands(target)
        self._acks = True
        self._last = b""
        self._resends = 0
        self._output = bytearray()
        self._early = False  # an interrupt came last: GDB may send it just before it resumes
        self._gone = Ending.LOST  # how it ends when the peer just leaves

    def serve(self) -> Ending:
        """The whole conversation. The guest stands still when it is over."""
        try:
            while (message := self._connection.receive()) is not None:
                if message.kind is Kind.PACKET:
                    self._acknowledge(b"+")
                    ending = self._packet(message.data)
                    self._early = False
                    if ending is not None:
                        return ending
                elif message.kind is Kind.INTERRUPT:
                    self._early = True
                elif message.kind is Kind.BAD:
                    self._bad(message.data)
                elif message.kind is Kind.NACK and self._acks and not self._resend():
                    return Ending.LOST
        except OSError:  # it went away, or does not read
            pass
        return self._gone

    def console(self, data: bytes, now: bool) -> None:
        """The guest's output for GDB's terminal: in lines, the rest when the guest stands still.

        Only while the guest runs is GDB ready for it: `now`.
        """
        self._output += data
        if len(self._output) > _MAX_OUTPUT:
            del self._output[:-_MAX_OUTPUT]
        if now:
            self._show(self._output.rfind(b"\n") + 1)

    def _show(self, count: int) -> None:
        data = bytes(self._output[:count])
        del self._output[:count]
        for start in range(0, len(data), _CONSOLE_PIECE):
            piece = data[start : start + _CONSOLE_PIECE]
            with contextlib.suppress(OSError):  # the reading thread notices, too
                self._connection.send(encode(b"O" + piece.hex().encode("ascii")))

    # -- framing -------------------------------------------------------------------------------

    def _acknowledge(self, sign: bytes) -> None:
        if self._acks:
            self._connection.send(sign)

    def _bad(self, why: bytes) -> None:
        """With acknowledgments the peer is asked to send again; without, it gets an error."""
        if self._acks:
            self._connection.send(b"-")
        else:
            self._answer(self._commands.error(GdbError(f"a packet is no good: {why.decode()}")))

    def _resend(self) -> bool:
        self._resends += 1
        if self._resends > MAX_RESENDS:
            return False
        self._connection.send(self._last)
        return True

    def _answer(self, data: bytes) -> None:
        self._last, self._resends = encode(data), 0
        self._connection.send(self._last)

    # -- packets that are more than a question ---------------------------------------------------

    def _packet(self, data: bytes) -> Ending | None:
        if data == b"QStartNoAckMode":
            self._answer(b"OK")
            self._acks = False
        elif data == b"?":
            self._answer(wire.stop_reply(self._target.stop))
        elif data[:1] == b"D":
            self._target.remove_all()
            self._answer(b"OK")
            return Ending.DETACHED
        elif data == b"k" or data.startswith(b"vKill"):
            self._target.remove_all()
            if data != b"k":
                self._answer(b"OK")
                if self._commands.extended:  # `run` may follow
                    self._gone = Ending.KILLED
                    self._commands.gone = True
                    return None
            return Ending.KILLED
        elif data[:1] == b"R" or data.startswith(b"vRun"):
            self._restart(data)
        elif data[:1] in (b"c", b"C", b"s", b"S") or data.startswith((b"vCont;", b"bc", b"bs")):
            return self._go(data)
        else:
            self._answer(self._commands.reply(data))
        return None

    def _restart(self, data: bytes) -> None:
        try:
            self._target.reset()
        except PykvmError as error:
            self._answer(self._commands.error(error))
            return
        self._gone = Ending.LOST
        self._commands.gone = False
        self._commands.cpu = self._target.stop.cpu
        if data[:1] != b"R":  # which has no reply
            self._answer(wire.stop_reply(self._target.stop))

    def _go(self, data: bytes) -> Ending | None:
        try:
            stop = self._runner.resume(
                self._wanted(data), lambda: self._early or self._connection.is_interrupted()
            )
        except PykvmError as error:
            self._answer(self._commands.error(error))
            return None
        if self._connection.lost:
            return Ending.LOST
        self._connection.drop_interrupts()
        if stop.text:
            self._output += stop.text.encode("utf-8", "replace") + b"\n"
        self._show(len(self._output))
        self._commands.cpu = self._commands.run_cpu = stop.cpu
        self._answer(wire.stop_reply(stop))
        if stop.exit_code is None:
            return None
        self._gone, self._commands.gone = Ending.EXITED, True
        return None if self._commands.extended else Ending.EXITED

    def _wanted(self, data: bytes) -> Resume:
        """What a packet that makes the guest go on wants. Raises `GdbError`."""
        if data.startswith(b"vCont"):
            return wire.actions(data[len(b"vCont") :], self._target.cpus)
        cpu = self._commands.run_cpu
        if data[:1] == b"b":
            if not self._target.can_reverse:
                raise GdbError("nothing is being recorded, so there is no way back")
            return Resume(How.BACK if data == b"bc" else How.STEP_BACK, cpu)
        rest = data[1:]
        if data[:1] in (b"C", b"S"):  # a signal, and perhaps an address
            _, _, rest = rest.partition(b";")
        if rest:
            register = next(r for r in self._commands.description.registers if r.type == "code_ptr")
            address = wire.number(rest, "address") & (1 << register.bits) - 1
            self._target.registers(cpu).write(register, address.to_bytes(register.size, "little"))
        step = data[:1] in (b"s", b"S")
        return Resume(How.STEP if step else How.CONTINUE, cpu)
