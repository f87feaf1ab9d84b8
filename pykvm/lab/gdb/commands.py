"""The packets that are answered at once, while the guest stands still.

Each method takes what is behind the packet's name, and returns the reply. An empty reply says
that a packet is unknown, which is how the protocol finds out what a stub can do.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.errors import PykvmError
from pykvm.lab.gdb import wire
from pykvm.lab.gdb.descriptions import Description
from pykvm.lab.gdb.packets import PACKET_SIZE, escape
from pykvm.lab.gdb.target import GdbError, Point, Target

_OK = b"OK"
_MAX_TEXT = PACKET_SIZE // 2 - 1


class Commands:
    """What GDB asks of a target. `reply(packet)` answers one packet.

    `errors_as_text`: GDB said that it shows texts of errors (GDB 16 does); others get a number,
    and the text with `monitor why`.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._description: Description | None = None
        self.cpu = target.stop.cpu  # whose registers and memory are meant ("Hg")
        self.run_cpu = self.cpu  # who steps in the old packets ("Hc")
        self.extended = False
        self.gone = False  # the guest has ended or was killed; `run` brings it back
        self.errors_as_text = False
        self.last_error = ""
        self._names = sorted(_ANSWERS, key=len, reverse=True)

    @property
    def description(self) -> Description:
        """The registers of this conversation: decided when they are first needed."""
        if self._description is None:
            self._description = self._target.describe()
        return self._description

    def reply(self, packet: bytes) -> bytes:
        """The reply to a packet; never raises for what a peer sends."""
        for name in self._names:
            if packet == name or (packet.startswith(name) and name not in _WITHOUT_ARGUMENTS):
                try:
                    return _ANSWERS[name](self, packet[len(name) :])
                except PykvmError as error:
                    return self.error(error, packet[:1] in b"mxp")
        return b""

    def error(self, error: PykvmError, is_data: bool = False) -> bytes:
        """The reply for an error. Where data are expected, a text could be taken for them."""
        self.last_error = str(error)
        if self.errors_as_text and not is_data:
            return b"E." + escape(self.last_error.encode("utf-8", "replace")[:_MAX_TEXT])
        return b"E01"

    # -- registers -----------------------------------------------------------------------------

    def _read_registers(self, _: bytes) -> bytes:
        file = self._target.registers(self.cpu)
        out = []
        for register in self.description.registers:
            try:
                out.append(file.read(register).hex())
            except PykvmError as error:
                self.last_error = str(error)
                out.append("xx" * register.size)
        return "".join(out).encode("ascii")

    def _write_registers(self, rest: bytes) -> bytes:
        registers = self.description.registers
        total = sum(r.size for r in registers)
        if len(rest) != 2 * total:
            raise GdbError(f"all registers are {total} bytes, not {len(rest) / 2:g}")
        file = self._target.registers(self.cpu)
        for register in registers:
            text, rest = rest[: 2 * register.size], rest[2 * register.size :]
            if b"x" not in text:
                file.write(register, wire.unhex(text))
        return _OK

    def _read_register(self, rest: bytes) -> bytes:
        index = wire.number(rest, "register")
        registers = self.description.registers
        if index >= len(registers):
            raise GdbError(f"there is no register {index}; there are {len(registers)}")
        return self._target.registers(self.cpu).read(registers[index]).hex().encode("ascii")

    def _write_register(self, rest: bytes) -> bytes:
        which, _, value = rest.partition(b"=")
        index, registers = wire.number(which, "register"), self.description.registers
        if index >= len(registers):
            raise GdbError(f"there is no register {index}; there are {len(registers)}")
        register, data = registers[index], wire.unhex(value)
        if len(data) != register.size:
            raise GdbError(f"{register.name} has {register.size} bytes, not {len(data)}")
        self._target.registers(self.cpu).write(register, data)
        return _OK

    # -- memory --------------------------------------------------------------------------------

    def _read_memory(self, rest: bytes) -> bytes:
        address, length = wire.pair(rest)
        length = min(length, PACKET_SIZE // 2 - 1)
        return self._target.read(self.cpu, address, length).hex().encode("ascii")

    def _read_binary(self, rest: bytes) -> bytes:
        address, length = wire.pair(rest)
        length = min(length, PACKET_SIZE // 2 - 1)  # every byte may have to be escaped
        return b"b" + escape(self._target.read(self.cpu, address, length))

    def _write_memory(self, rest: bytes) -> bytes:
        where, _, text = rest.partition(b":")
        return self._write(where, wire.unhex(text))

    def _write_binary(self, rest: bytes) -> bytes:
        where, _, data = rest.partition(b":")
        return self._write(where, data)

    def _write(self, where: bytes, data: bytes) -> bytes:
        address, length = wire.pair(where)
        if length != len(data):
            raise GdbError(f"{length} bytes are announced, and {len(data)} are there")
        if data:
            self._target.write(self.cpu, address, data)
        return _OK

    # -- breakpoints ---------------------------------------------------------------------------

    def _insert(self, rest: bytes) -> bytes:
        point, address, length = _point(rest)
        if point is None:
            return b""
        self._target.insert(self.cpu, point, address, length)
        return _OK

    def _remove(self, rest: bytes) -> bytes:
        point, address, length = _point(rest)
        if point is None:
            return b""
        self._target.remove(point, address, length)
        return _OK

    # -- threads -------------------------------------------------------------------------------

    def _thread(self, rest: bytes) -> int:
        found = wire.thread(rest)
        if found > self._target.cpus:
            raise GdbError(f"there is no thread {found}; there are {self._target.cpus}")
        return found

    def _select(self, rest: bytes) -> bytes:
        found = self._thread(rest[1:])
        if rest[:1] == b"g":
            self.cpu = self.cpu if found in (wire.ALL, wire.ANY) else found - 1
        elif rest[:1] != b"c":
            return b""
        elif found > 0:
            self.run_cpu = found - 1
        return _OK

    def _is_alive(self, rest: bytes) -> bytes:
        self._thread(rest)
        return _OK

    def _threads(self, _: bytes) -> bytes:
        if self.gone:
            return b"l"
        return b"m" + b",".join(b"%x" % (i + 1) for i in range(self._target.cpus))

    def _thread_text(self, rest: bytes) -> bytes:
        found = self._thread(rest)
        return wire.hex_text(self._target.cpu_text(max(found, 1) - 1))

    # -- queries -------------------------------------------------------------------------------

    def _supported(self, rest: bytes) -> bytes:
        self.errors_as_text = b"error-message+" in rest[1:].split(b";")
        features = [
            f"PacketSize={PACKET_SIZE:x}", "QStartNoAckMode+", "qXfer:features:read+",
            "swbreak+", "hwbreak+", "vContSupported+", "binary-upload+",
        ]  # fmt: skip
        if self._target.can_reverse:
            features += ["ReverseStep+", "ReverseContinue+"]
        if self.errors_as_text:
            features.append("error-message+")
        return ";".join(features).encode("ascii")

    def _features(self, rest: bytes) -> bytes:
        annex, _, span = rest.partition(b":")
        if annex != b"target.xml":
            return b"E00"
        return _part(self.description.xml.encode("ascii"), span)

    def _monitor(self, rest: bytes) -> bytes:
        line = wire.unhex(rest).decode("utf-8", "replace").strip()
        if line == "why":
            text = self.last_error or "nothing was refused so far"
        else:
            text = self._target.monitor(self.cpu, line)
        if text and not text.endswith("\n"):
            text += "\n"
        shown = text.encode("utf-8", "replace")
        if len(shown) > _MAX_TEXT:
            shown = shown[: _MAX_TEXT - 20] + b"...\n(cut off)\n"
        return shown.hex().encode("ascii") or _OK

    def _extend(self, _: bytes) -> bytes:
        self.extended = True
        return _OK


def _point(rest: bytes) -> tuple[Point | None, int, int]:
    """`kind,address,length`, without the conditions that GDB would like us to evaluate."""
    kind, _, where = rest.partition(b";")[0].partition(b",")
    address, length = wire.pair(where)
    try:
        return Point(kind.decode("ascii", "replace")), address, length
    except ValueError:
        return None, 0, 0


def _part(document: bytes, span: bytes) -> bytes:
    """A piece of a document for `qXfer`: `m` if there is more, `l` for the last."""
    offset, length = wire.pair(span)
    length = min(length, PACKET_SIZE // 2 - 1)
    piece = document[offset : offset + length]
    return (b"m" if offset + length < len(document) else b"l") + escape(piece)


_ANSWERS: dict[bytes, Callable[[Commands, bytes], bytes]] = {
    b"g": Commands._read_registers,
    b"G": Commands._write_registers,
    b"p": Commands._read_register,
    b"P": Commands._write_register,
    b"m": Commands._read_memory,
    b"x": Commands._read_binary,
    b"M": Commands._write_memory,
    b"X": Commands._write_binary,
    b"Z": Commands._insert,
    b"z": Commands._remove,
    b"H": Commands._select,
    b"T": Commands._is_alive,
    b"!": Commands._extend,
    b"qSupported": Commands._supported,
    b"qXfer:features:read:": Commands._features,
    b"qfThreadInfo": Commands._threads,
    b"qsThreadInfo": lambda _, rest: b"l",
    b"qThreadExtraInfo,": Commands._thread_text,
    b"qAttached": lambda _, rest: b"1",
    b"qC": lambda self, rest: b"QC%x" % (self.cpu + 1),
    b"qSymbol:": lambda _, rest: _OK,
    b"qRcmd,": Commands._monitor,
    b"vCont?": lambda _, rest: b"vCont;c;C;s;S;t;r",
    b"vMustReplyEmpty": lambda _, rest: b"",
}
_WITHOUT_ARGUMENTS = frozenset(
    (b"g", b"!", b"qC", b"qfThreadInfo", b"qsThreadInfo", b"vCont?", b"vMustReplyEmpty")
)
