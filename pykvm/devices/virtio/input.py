"""`VirtioInput`: a keyboard, a mouse or a tablet (VIRTIO 1.2, section 5.8).

Events are those of Linux's evdev (linux/input-event-codes.h): type, code, value, and a SYN_REPORT
after what belongs together.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping, Sequence

from pykvm.datapath.statistics import IoStatistics
from pykvm.devices.pc import ps2keys
from pykvm.devices.pc.ps2keyboard import TYPED_LIMIT, KeyQueueFull
from pykvm.devices.state import StateReader
from pykvm.devices.virtio.buffers import gather, scatter
from pykvm.devices.virtio.device import DRIVER_OK, Commit, VirtioDevice
from pykvm.devices.virtio.input_codes import (
    ABS,
    BTN_LEFT,
    BTN_MIDDLE,
    BTN_RIGHT,
    EV_ABS,
    EV_KEY,
    EV_LED,
    EV_REL,
    EV_REP,
    EV_SYN,
    LEDS,
    REL_WHEEL,
    REL_X,
    REL_Y,
    bitmap,
    evdev_key,
    known_keys,
)
from pykvm.devices.virtio.queue import QueueError, VirtQueue

DEVICE_ID = 18
(
    CFG_UNSET, CFG_ID_NAME, CFG_ID_SERIAL, CFG_ID_DEVIDS, CFG_PROP_BITS, CFG_EV_BITS, CFG_ABS_INFO,
) = (0, 1, 2, 3, 0x10, 0x11, 0x12)  # fmt: skip
EVENTS, STATUS = 0, 1
BUS_VIRTUAL = 6

_QUEUE_SIZE = 64
_EVENT = struct.Struct("<HHI")
_IDS = struct.Struct("<4H")
_ABS_INFO = struct.Struct("<5i")
_PAYLOAD = 128
_MOST_STATUS = 64  # events of one request
_BUTTONS = {1: BTN_LEFT, 2: BTN_RIGHT, 4: BTN_MIDDLE}

Event = tuple[int, int, int]  # type, code, value


class VirtioInput(VirtioDevice):
    """An input device: `supported` says which codes there are for each event type.

    `VirtioKeyboard`, `VirtioMouse` and `VirtioTablet` are the usual ones. Events wait, bounded,
    until the driver has given buffers for all that belong together.

    - `axes`: for EV_ABS codes (minimum, maximum, fuzz, flat, resolution).
    """

    kind = "input"
    product = 0

    def __init__(
        self, supported: Mapping[int, Sequence[int]], *, label: str = "pykvm input",
        serial: str = "", axes: dict[int, tuple[int, int, int, int, int]] | None = None,
        name: str = "",
    ) -> None:  # fmt: skip
        super().__init__(DEVICE_ID, [_QUEUE_SIZE, _QUEUE_SIZE])
        self.name = name or f"virtio-{self.kind}"
        self.statistics = IoStatistics(["event", "status"])
        self.label, self.serial = label.encode()[:_PAYLOAD], serial.encode()[:_PAYLOAD]
        self._bits = {kind: bitmap(codes) for kind, codes in supported.items() if codes}
        self._axes = dict(axes or {})
        self._select = self._subsel = 0
        self._waiting: deque[list[Event]] = deque()  # reports: what ends with a SYN
        #: Events of reports that were lost because the guest took none.
        self.dropped = 0
        self._leds = 0

    @property
    def leds(self) -> dict[str, bool]:
        """The lights as the guest has set them, by name: num, caps, scroll."""
        return {name: bool(self._leds >> code & 1) for name, code in LEDS.items()}

    # -- configuration (5.8.4, 5.8.5) ----------------------------------------------------------

    def _payload(self) -> bytes:
        select, subsel = self._select, self._subsel
        if select == CFG_EV_BITS:
            return self._bits.get(subsel, b"")
        if select == CFG_ABS_INFO:
            return _ABS_INFO.pack(*self._axes[subsel]) if subsel in self._axes else b""
        if subsel:
            return b""
        if select == CFG_ID_NAME:
            return self.label
        if select == CFG_ID_SERIAL:
            return self.serial
        if select == CFG_ID_DEVIDS:
            return _IDS.pack(BUS_VIRTUAL, 0x1AF4, self.product, 1)
        return b""  # CFG_PROP_BITS: no properties

    def config(self) -> bytes:
        """select, subsel, size, and what was selected."""
        payload = self._payload()
        head = bytes((self._select, self._subsel, len(payload), 0, 0, 0, 0, 0))
        return head + payload.ljust(_PAYLOAD, b"\0")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The driver selects."""
        for at in range(offset, min(offset + size, 2)):
            byte = value >> 8 * (at - offset) & 0xFF
            if at == 0:
                self._select = byte
            else:
                self._subsel = byte

    # -- events --------------------------------------------------------------------------------

    def send(self, reports: Sequence[Sequence[Event]]) -> None:
        """Reports for the guest, each with its SYN added.

        Raises `KeyQueueFull`, and queues none, where more would wait than are kept.
        """
        with self.lock:
            if not self.status & DRIVER_OK:
                self.dropped += sum(len(report) for report in reports)
                return  # nobody is at the other end: keys pressed before boot are not kept
            if len(self._waiting) + len(reports) > TYPED_LIMIT:
                raise KeyQueueFull(
                    f"{len(reports)} events do not fit: {len(self._waiting)} of {TYPED_LIMIT} wait"
                )
            self._waiting.extend([*report, (EV_SYN, 0, 0)] for report in reports)
        self.kick(EVENTS)

    @property
    def waiting(self) -> int:
        """Reports that the guest has not been sent yet."""
        return len(self._waiting)

    def handle(self, queue: VirtQueue) -> None:
        """Room for events, or the state of the lights."""
        try:
            if queue.index == EVENTS:
                self._send_events(queue)
            else:
                self._take_status(queue)
        finally:
            self.finish(queue)

    def _send_events(self, queue: VirtQueue) -> None:
        while self._waiting:
            report = self._waiting[0]
            while report:
                chain = queue.pop()
                if chain is None:
                    return
                if chain.writable_bytes < _EVENT.size:
                    raise QueueError(
                        f"{self.name}: a buffer of {chain.writable_bytes} bytes for an event"
                    )
                kind, code, value = report.pop(0)
                raw = _EVENT.pack(kind, code, value & 0xFFFF_FFFF)
                queue.push(chain, scatter(chain.writable, raw))
                self.statistics["event"].add(len(raw))
            self._waiting.popleft()

    def _take_status(self, queue: VirtQueue) -> None:
        while (chain := queue.pop()) is not None:
            raw = gather(chain.readable, _EVENT.size * _MOST_STATUS)
            for kind, code, value in _EVENT.iter_unpack(raw[: len(raw) - len(raw) % _EVENT.size]):
                if kind == EV_LED and code < 16:
                    self._leds = self._leds & ~(1 << code) | bool(value) << code
            self.statistics["status"].add(len(raw))
            queue.push(chain, 0)

    # -- life ----------------------------------------------------------------------------------

    def unquiesce(self) -> None:
        """What came meanwhile goes on."""
        if self._waiting and self.active:
            self.kick(EVENTS)

    def device_reset(self) -> None:
        """Nothing waits, nothing is lit."""
        self._waiting.clear()
        self._select = self._subsel = self._leds = 0

    def state(self) -> dict[str, object]:
        """The base class's, what is selected, the lights, what waits."""
        words: list[int] = []
        for report in self._waiting:
            words.append(len(report))
            for kind, code, value in report:
                words += [kind, code, value & 0xFFFF_FFFF]
        return {
            **super().state(),
            "input_select": [self._select, self._subsel],
            "input_leds": self._leds,
            "input_waiting": words,
        }

    def take(self, take: StateReader) -> Commit:
        """Reads them back."""
        base = super().take(take)
        select = take.integers("input_select", 2, 0xFF, least=2)
        leds = take.integer("input_leds", 0xFFFF)
        words = take.integers("input_waiting", 64 * TYPED_LIMIT, 0xFFFF_FFFF)
        waiting: deque[list[Event]] = deque()
        at = 0
        while at < len(words):
            count = words[at]
            flat = words[at + 1 : at + 1 + 3 * count]
            if not 1 <= count <= 16 or len(flat) != 3 * count or len(waiting) >= TYPED_LIMIT:
                take.refuse("input_waiting", "...", "reports of 1 to 16 events after their length")
            triples = zip(flat[0::3], flat[1::3], flat[2::3], strict=True)
            waiting.append([(k & 0xFFFF, c & 0xFFFF, v) for k, c, v in triples])
            at += 1 + 3 * count

        def commit() -> None:
            base()
            self._select, self._subsel = select
            self._leds, self._waiting = leds, waiting

        return commit


class VirtioKeyboard(VirtioInput):
    """A keyboard, typed on as the PS/2 one: `type_text`, `tap("ctrl-alt-delete")`."""

    kind = "keyboard"
    product = 1

    def __init__(self, *, label: str = "pykvm virtio keyboard", serial: str = "") -> None:
        supported = {EV_KEY: known_keys(), EV_LED: list(LEDS.values()), EV_REP: [0]}
        super().__init__(supported, label=label, serial=serial)

    def type_text(self, text: str) -> None:
        """Type a text on a US keyboard. Raises `KeyNameError`, `KeyQueueFull`."""
        self._strokes(ps2keys.strokes(text))

    def press(self, names: str) -> None:
        """Press the keys of a combination such as "ctrl-alt-delete", or one key, and hold them."""
        self._strokes([down for down, _ in ps2keys.chord(names)])

    def release(self, names: str) -> None:
        """Let the keys go, in reverse order."""
        self._strokes([up or b"\xf0" + down for down, up in reversed(ps2keys.chord(names))])

    def tap(self, names: str) -> None:
        """Press a combination or a key, and let it go."""
        keys = ps2keys.chord(names)
        ups = [up or b"\xf0" + down for down, up in reversed(keys)]
        self._strokes([down for down, _ in keys] + ups)

    def _strokes(self, strokes: list[bytes]) -> None:
        self.send([[(EV_KEY, *evdev_key(stroke))] for stroke in strokes])


class _Pointer(VirtioInput):
    def __init__(
        self, supported: Mapping[int, Sequence[int]], label: str, serial: str,
        axes: dict[int, tuple[int, int, int, int, int]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(supported, label=label, serial=serial, axes=axes)
        self._down = 0

    def _button_events(self, buttons: int) -> list[Event]:
        changed = buttons ^ self._down
        self._down = buttons & 7
        return [
            (EV_KEY, code, int(bool(buttons & bit)))
            for bit, code in _BUTTONS.items()
            if changed & bit
        ]

    def press_mouse(self, buttons: int) -> None:
        """Which mouse buttons are down now: 1 left, 2 right, 4 middle."""
        events = self._button_events(buttons)
        if events:
            self.send([events])


class VirtioMouse(_Pointer):
    """A mouse with three buttons and a wheel; it says how far it moved."""

    kind = "mouse"
    product = 2

    def __init__(self, *, label: str = "pykvm virtio mouse", serial: str = "") -> None:
        supported = {EV_KEY: list(_BUTTONS.values()), EV_REL: [REL_X, REL_Y, REL_WHEEL]}
        super().__init__(supported, label, serial)

    def move_mouse(self, dx: int = 0, dy: int = 0, wheel: int = 0) -> None:
        """Move by counts: x to the right, y up, the wheel towards the user."""
        steps = ((REL_X, dx), (REL_Y, -dy), (REL_WHEEL, -wheel))
        events = [(EV_REL, code, value) for code, value in steps if value]
        if events:
            self.send([events])


class VirtioTablet(_Pointer):
    """A pointer that says where it is: 0 to 32767 from the left, and from the top."""

    kind = "tablet"
    product = 3
    LIMIT = 0x7FFF

    def __init__(self, *, label: str = "pykvm virtio tablet", serial: str = "") -> None:
        supported = {EV_KEY: list(_BUTTONS.values()), EV_ABS: list(ABS), EV_REL: [REL_WHEEL]}
        axes = dict.fromkeys(ABS, (0, self.LIMIT, 0, 0, 0))
        super().__init__(supported, label, serial, axes)

    def point(self, x: int, y: int) -> None:
        """Goes to a place. Raises `ValueError` outside of 0 to 32767."""
        for value in (x, y):
            if not 0 <= value <= self.LIMIT:
                raise ValueError(f"{value} is no coordinate of a tablet; 0 to {self.LIMIT}")
        self.send([[(EV_ABS, ABS[0], x), (EV_ABS, ABS[1], y)]])
