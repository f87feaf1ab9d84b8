"""`VirtioConsole`: consoles and named ports (VIRTIO 1.2, section 5.3).

Port 0 is a console: hvc0 in Linux. With MULTIPORT there are more, each with a name, which programs
in the guest find as /dev/virtio-ports/NAME (through udev); they may come and go while it runs.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable

from pykvm.datapath.statistics import IoStatistics
from pykvm.devices.base import Clock, MonotonicClock
from pykvm.devices.chardev.base import Chardev
from pykvm.devices.state import StateReader
from pykvm.devices.virtio.buffers import gather, scatter
from pykvm.devices.virtio.console_port import ConsolePort
from pykvm.devices.virtio.device import Commit, VirtioDevice
from pykvm.devices.virtio.queue import QueueError, VirtQueue

DEVICE_ID = 3
F_SIZE, F_MULTIPORT, F_EMERG_WRITE = 1, 2, 4
MAX_PORTS = 31
# Events of control messages (5.3.6.2)
(
    DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME,
) = range(8)  # fmt: skip

_CONTROL_IN, _CONTROL_OUT = 2, 3
_CONFIG = struct.Struct("<HHII")
_MESSAGE = struct.Struct("<IHH")  # port, event, value
_RETRY_NS = 10_000_000  # until a back end without room is looked at again


class VirtioConsole(VirtioDevice):
    """A console, and ports.

    - `backend`: where the console is: a `Chardev`, or None for nowhere.
    - `ports`: how many ports there can be, the console included; 1 leaves MULTIPORT out.
    - `size`: (columns, rows) of the console, if known; `resize` tells the guest of another.
    - `rows_first`: the RESIZE message has the rows before the columns, against 5.3.6.2, as Linux
      read it before that was mended in 2025.

    Back ends are connected here and started and closed by whoever made them.
    """

    def __init__(
        self, backend: Chardev | None = None, *, ports: int = 8,
        size: tuple[int, int] | None = None, rows_first: bool = False, queue_size: int = 64,
        clock: Clock | None = None, name: str = "virtio-console",
    ) -> None:  # fmt: skip
        if not 1 <= ports <= MAX_PORTS:
            raise ValueError(f"{ports} ports are not possible; choose 1 to {MAX_PORTS}")
        multiport = ports > 1
        features = F_SIZE | F_EMERG_WRITE | F_MULTIPORT * multiport
        queues = 2 * (ports + 1) if multiport else 2
        super().__init__(DEVICE_ID, [queue_size] * queues, features)
        self.name = name
        self.max_ports = ports
        self.size = size or (0, 0)
        self._rows_first = rows_first
        #: "in": to the guest, "out": from it, "control": messages either way.
        self.statistics = IoStatistics(["in", "out", "control"])
        self._own_clock: MonotonicClock | None = None
        if clock is None:
            clock = self._own_clock = MonotonicClock()
        self._clock = clock
        self._timer = clock.timer(self._retry)
        self._later: list[ConsolePort] = []
        self._later_lock = threading.Lock()
        # Control messages that wait for a buffer: the newest for each port and event.
        self._messages: dict[tuple[int, int], bytes] = {}
        self._guest_ready = False
        self._held_back = False  # output waits for a back end, which is asked again
        self.ports: dict[int, ConsolePort] = {}
        self._new_port(0, "", backend).is_console = True

    # -- the host's side -----------------------------------------------------------------------

    def add_port(self, name: str, backend: Chardev | None = None, *, console: bool = False) -> int:
        """Puts in another port, now or while the guest runs; returns its number.

        Raises `ValueError` where there is no place, or the name is taken or no name.
        """
        if not name or len(name.encode()) > 120 or not name.isprintable() or "/" in name:
            raise ValueError(f"{name!r} is not a name for a port; use letters, digits, dots")
        with self.lock:
            if any(port.name == name for port in self.ports.values()):
                raise ValueError(f"there is a port {name!r} already")
            index = next((n for n in range(self.max_ports) if n not in self.ports), None)
            if index is None:
                raise ValueError(
                    f"{self.name} has room for {self.max_ports} ports; make it with ports="
                )
            port = self._new_port(index, name, backend)
            port.is_console = console
            if self._guest_ready:
                self._tell(index, PORT_ADD, 1)
            return index

    def remove_port(self, which: int | str) -> None:
        """Takes a port out, by number or name; its back end stays the caller's."""
        with self.lock:
            found = [p for p in self.ports.values() if which in (p.index, p.name)]
            if not found or found[0].index == 0:
                raise ValueError(f"there is no port {which!r} that can be removed")
            port = self.ports.pop(found[0].index)
            for key in [key for key in self._messages if key[0] == port.index]:
                del self._messages[key]
            if self._guest_ready:
                self._tell(port.index, PORT_REMOVE, 1)
        port.disconnect()

    def resize(self, columns: int, rows: int) -> None:
        """The console has another size now."""
        if not (0 < columns < 1 << 16 and 0 < rows < 1 << 16):
            raise ValueError(f"a console of {columns} columns and {rows} rows is not possible")
        with self.lock:
            self.size = columns, rows
            if not self.has & F_MULTIPORT:
                self.config_changed()
            elif self.ports[0].ready:
                self._tell_size()

    def _new_port(self, index: int, name: str, backend: Chardev | None) -> ConsolePort:
        port = self.ports[index] = ConsolePort(self, index, name, backend)
        port.connect()
        return port

    # -- configuration (5.3.4) -----------------------------------------------------------------

    def config(self) -> bytes:
        """cols, rows, max_nr_ports, emerg_wr."""
        return _CONFIG.pack(*self.size, self.max_ports, 0)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """An emergency write: one character for port 0, at any time (5.3.5.1)."""
        if offset == 8:
            with self.lock:
                backend = self.ports[0].backend
            if backend is not None:
                backend.write(bytes([value & 0xFF]))

    # -- queues --------------------------------------------------------------------------------

    @staticmethod
    def _queue_numbers(index: int) -> tuple[int, int]:
        """The receive and the transmit queue of a port (5.3.2)."""
        return (0, 1) if index == 0 else (2 * index + 2, 2 * index + 3)

    def handle(self, queue: VirtQueue) -> None:
        """The guest has given room for input, output, or a control message."""
        multiport = bool(self.has & F_MULTIPORT)
        if queue.index == _CONTROL_IN and multiport:
            self._send_messages()
        elif queue.index == _CONTROL_OUT and multiport:
            self._take_messages(queue)
        else:
            index = queue.index // 2 - (queue.index > 3)
            port = self.ports.get(index)
            if queue.index & 1:
                self._take_output(queue, port)
            elif port is not None and port.refused:
                self._offer_later(port)

    def _take_output(self, queue: VirtQueue, port: ConsolePort | None) -> None:
        try:
            for _ in range(4 * queue.max_size):
                if port is not None and port.blocked:
                    break
                chain = queue.pop()
                if chain is None:
                    return
                length = 0
                if port is not None:  # output to a port that was removed goes nowhere
                    length = port.send(chain.readable)
                self.statistics["out"].add(length)
                queue.push(chain, 0)
        finally:
            self.finish(queue)
        self._held_back = True
        self._timer.arm(self._clock.now_ns() + _RETRY_NS)

    def _retry(self) -> None:
        """Back ends that had no room may have some now; input and messages may have waited."""
        self._held_back = False
        for index, port in list(self.ports.items()):
            self.kick(self._queue_numbers(index)[1])
            port.offer()
        if self.has & F_MULTIPORT:
            self.kick(_CONTROL_IN)

    def unquiesce(self) -> None:
        """What came meanwhile goes on."""
        if self._messages or any(port.refused for port in self.ports.values()):
            self._timer.arm(self._clock.now_ns())

    # -- input ---------------------------------------------------------------------------------

    def port_input(self, port: ConsolePort) -> VirtQueue | None:
        """See `Owner`."""
        if not self.active or self._frozen:
            return None
        if self.has & F_MULTIPORT and not (port.ready and port.guest_open):
            return None  # nobody reads it: what is sent would be lost, by Linux's console too
        queue = self.queues[self._queue_numbers(port.index)[0]]
        return queue if queue.ready else None

    def locked(self, work: Callable[[], int]) -> int:
        """See `Owner`."""
        with self.lock:
            done = work()
            if done:
                self.statistics["in"].add(done)
            return done

    def broken_rules(self, error: QueueError) -> None:
        """See `Owner`."""
        self.needs_reset(str(error))

    def _offer_later(self, port: ConsolePort) -> None:
        """Back ends call us with their lock held, so they must not be called with ours."""
        with self._later_lock:
            self._later.append(port)
        if self.io is not None:
            self.io.post(self._offer)

    def _offer(self) -> None:
        with self._later_lock:
            ports, self._later = self._later, []
        for port in ports:
            port.offer()

    def kick(self, index: int) -> None:
        """As the base class; then input that waited goes on."""
        super().kick(index)
        if self._later and self.io is None:
            self._offer()

    # -- control messages (5.3.6.2) ------------------------------------------------------------

    def _tell(self, index: int, event: int, value: int, more: bytes = b"") -> None:
        self._messages.pop((index, event), None)
        self._messages[index, event] = _MESSAGE.pack(index, event, value) + more
        try:
            self._send_messages()
        except QueueError as error:
            self.needs_reset(str(error))

    def _tell_size(self) -> None:
        if self.size != (0, 0):
            size = self.size[::-1] if self._rows_first else self.size
            self._tell(0, RESIZE, 0, struct.pack("<HH", *size))

    def _send_messages(self) -> None:
        queue = self.queues[_CONTROL_IN]
        if not self._messages or not self.active or self._frozen or not queue.ready:
            return
        try:
            while self._messages:
                chain = queue.pop()
                if chain is None:
                    return
                key = next(iter(self._messages))
                message = self._messages[key]
                if chain.writable_bytes < len(message):
                    raise QueueError(
                        f"{self.name}: a control message of {len(message)} bytes does not fit "
                        f"a buffer of {chain.writable_bytes}"
                    )
                del self._messages[key]
                self.statistics["control"].add(len(message))
                queue.push(chain, scatter(chain.writable, message))
        finally:
            self.finish(queue)

    def _take_messages(self, queue: VirtQueue) -> None:
        try:
            while (chain := queue.pop()) is not None:
                raw = gather(chain.readable, _MESSAGE.size)
                queue.push(chain, 0)
                self.statistics["control"].add(len(raw))
                if len(raw) == _MESSAGE.size:
                    self._obey(*_MESSAGE.unpack(raw))
        finally:
            self.finish(queue)

    def _obey(self, index: int, event: int, value: int) -> None:
        if event == DEVICE_READY:
            self._guest_ready = bool(value)
            for known in sorted(self.ports) if value else ():
                self._tell(known, PORT_ADD, 1)
            return
        port = self.ports.get(index)
        if port is None:
            return
        if event == PORT_READY:
            port.ready = bool(value)
            if not value:
                self.complain(f"{self.name}: the guest could not add port {index}")
                return
            if port.is_console:
                self._tell(index, CONSOLE_PORT, 1)
                if index == 0:
                    self._tell_size()
            if port.name:
                self._tell(index, PORT_NAME, 1, port.name.encode())
            self._tell(index, PORT_OPEN, int(port.host_open))
            if port.refused:
                self._offer_later(port)
        elif event == PORT_OPEN:
            port.guest_open = bool(value)
            if value and port.refused:
                self._offer_later(port)

    def port_changed(self, port: ConsolePort) -> None:
        """See `Owner`."""
        with self.lock:
            if port.ready and self.has & F_MULTIPORT and self.ports.get(port.index) is port:
                self._tell(port.index, PORT_OPEN, int(port.host_open))

    # -- life ----------------------------------------------------------------------------------

    def device_reset(self) -> None:
        """The guest knows no port."""
        self._timer.cancel()
        self._guest_ready = self._held_back = False
        self._messages.clear()
        for port in self.ports.values():
            port.power_on()

    def state(self) -> dict[str, object]:
        """The base class's, and what the guest knows of the ports."""
        ports = [
            [p.index, int(p.ready), int(p.guest_open), int(p.is_console)]
            for _, p in sorted(self.ports.items())
        ]
        return {
            **super().state(),
            "console_size": list(self.size),
            "console_ready": self._guest_ready,
            "console_held_back": self._held_back,
            "console_ports": [word for port in ports for word in port],
            "console_messages": [
                byte for m in self._messages.values() for byte in (len(m), *m)
            ],
        }  # fmt: skip

    def take(self, take: StateReader) -> Commit:
        """Reads them back; the ports must be those that there were."""
        base = super().take(take)
        size = take.integers("console_size", 2, 0xFFFF, least=2)
        ready, held_back = take.boolean("console_ready"), take.boolean("console_held_back")
        words = take.integers("console_ports", 4 * MAX_PORTS, MAX_PORTS)
        raw = bytes(take.integers("console_messages", 1 << 16, 0xFF))
        if len(words) % 4 or words[0::4] != sorted(self.ports):
            take.refuse("console_ports", words[0::4], f"the ports {sorted(self.ports)}")
        messages: dict[tuple[int, int], bytes] = {}
        while raw:
            message, raw = raw[1 : 1 + raw[0]], raw[1 + raw[0] :]
            if len(message) < _MESSAGE.size or message[0] >= MAX_PORTS:
                take.refuse("console_messages", "...", "messages after their length")
            index, event, _ = _MESSAGE.unpack_from(message)
            messages[index, event] = message

        def commit() -> None:
            base()
            self._timer.cancel()
            self.size = size[0], size[1]
            self._guest_ready, self._messages = ready, messages
            for at in range(0, len(words), 4):
                port = self.ports[words[at]]
                port.ready, port.guest_open = bool(words[at + 1]), bool(words[at + 2])
                port.is_console = bool(words[at + 3])
            self._held_back = held_back
            if held_back:
                self._timer.arm(self._clock.now_ns())

        return commit

    def close(self) -> None:
        """Lets the back ends go."""
        super().close()
        self._timer.cancel()
        for port in self.ports.values():
            port.disconnect()
        if self._own_clock is not None:
            self._own_clock.close()
