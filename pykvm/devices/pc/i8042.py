"""The keyboard controller (8042) with a PS/2 keyboard and mouse.

Sources: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and auxiliary device
controller"; the translation of scan codes and the commands that chipsets added: Andries Brouwer,
"Keyboard scancodes", sections 10 and 11.

Offset 0 is the data port (0x60), offset 4 status and commands (0x64). The controller has one
output byte; the next goes there when the guest has read it. It starts as firmware leaves it:
keyboard and its interrupt enabled, translation to set 1 on.

The host types through `type_text`, `press`, `release` and `tap`. A key is sent when the guest has
read everything before it, and at least `pace_ms` later, so that no BIOS drops one.
"""

from __future__ import annotations

from _thread import allocate_lock
from collections import deque

from pykvm.devices.base import Clock, Device, IrqLine, MonotonicClock, NullIrqLine, StateReader
from pykvm.devices.pc import ps2keys
from pykvm.devices.pc.a20 import A20Gate
from pykvm.devices.pc.ps2keyboard import Ps2Keyboard
from pykvm.devices.pc.ps2mouse import Ps2Mouse
from pykvm.devices.pc.window import PortRange, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DATA, COMMAND = 0, 4  # offsets
OBF, SYSTEM, WAS_COMMAND, NOT_INHIBITED, AUX_OBF = 0x01, 0x04, 0x08, 0x10, 0x20  # status
KBD_INT, AUX_INT, SYS, KBD_OFF, AUX_OFF, TRANSLATE = 0x01, 0x02, 0x04, 0x10, 0x20, 0x40
POWER_ON_MODE = KBD_INT | SYS | TRANSLATE
RAM_SIZE = 32  # bytes of the controller's RAM that commands 0x20-0x3f and 0x60-0x7f reach
TEST_PASSED, NO_PASSWORD, INTERFACE_GOOD = 0x55, 0xF1, 0x00
INPUT_PORT = 0x80 | 0x20  # keyboard not locked; a colour screen

# Where the byte in the output buffer came from.
CONTROLLER, KEYBOARD, MOUSE = range(3)
_WITH_DATA = frozenset((*range(0x60, 0x80), 0xD1, 0xD2, 0xD3, 0xD4))
_MOST_REPLIES = 8


class I8042(Device):
    """The controller. `reset()` is called for the pulse that restarts a PC.

    `keyboard_irq` and `mouse_irq` (IRQ 1 and 12) are levels, high while a byte waits. `irq` is
    another name of `keyboard_irq`. `a20` is shared with port 0x92.
    """

    name = "i8042"
    ADDRESS = 0x60
    LENGTH = 1  # the second range is a window

    def __init__(
        self,
        keyboard_irq: IrqLine | None = None,
        mouse_irq: IrqLine | None = None,
        clock: Clock | None = None,
        *,
        a20: A20Gate | None = None,
        reset: Callable[[], object] | None = None,
        pace_ms: float = 20,
    ) -> None:
        self.irq: IrqLine = keyboard_irq or NullIrqLine()
        self.mouse_irq: IrqLine = mouse_irq or NullIrqLine()
        self.a20 = a20 or A20Gate()
        self.keyboard = Ps2Keyboard()
        self.mouse = Ps2Mouse()
        self._reset = reset
        self._pace_ns = int(pace_ms * 1_000_000)
        self._own_clock = None if clock is not None else MonotonicClock()
        self._clock: Clock = clock or self._own_clock  # type: ignore[assignment]
        self._lock = allocate_lock()
        self._timer = self._clock.timer(self._on_timer)
        self._levels = [False, False]
        self._closed = False
        self._power_on()

    def _power_on(self) -> None:
        self.keyboard.power_on()
        self.mouse.power_on()
        self._ram = bytearray(RAM_SIZE)
        self._ram[0] = POWER_ON_MODE
        self._replies: deque[tuple[int, int]] = deque()  # (byte, where it seems to come from)
        self._full = False
        self._data = 0
        self._source = CONTROLLER
        self._waiting = 0  # the command whose data byte is due
        self._was_command = False
        # The translation has swallowed a break prefix; the keyboard always has its key ready.
        self._broken = False
        self._next_key_at = 0

    def ranges(self) -> list[PortRange]:
        """Ports 0x60 and 0x64."""
        return [
            PortRange("pio", self.ADDRESS, 1, self),
            PortRange("pio", self.ADDRESS + COMMAND, 1, Window(self, COMMAND)),
        ]

    @property
    def keyboard_irq(self) -> IrqLine:
        """The keyboard's interrupt line."""
        return self.irq

    @keyboard_irq.setter
    def keyboard_irq(self, line: IrqLine) -> None:
        self.irq = line

    # -- the host's hands ----------------------------------------------------------------------

    def type_text(self, text: str) -> None:
        """Type a text on a US keyboard. Raises `KeyNameError`, `KeyQueueFull`."""
        self._type(ps2keys.strokes(text))

    def press(self, names: str) -> None:
        """Press the keys of a combination such as "ctrl-alt-delete", or one key, and hold them."""
        self._type([down for down, _ in ps2keys.chord(names)])

    def release(self, names: str) -> None:
        """Let the keys go, in reverse order."""
        self._type([up for _, up in reversed(ps2keys.chord(names))])

    def tap(self, names: str) -> None:
        """Press a combination or a key, and let it go."""
        keys = ps2keys.chord(names)
        self._type([down for down, _ in keys] + [up for _, up in reversed(keys)])

    @property
    def typed_left(self) -> int:
        """How many key events (down or up) the guest has not been sent yet."""
        return len(self.keyboard.typed)

    def move_mouse(self, dx: int = 0, dy: int = 0, wheel: int = 0) -> None:
        """Move the mouse by counts: x to the right, y up, the wheel towards the user."""
        with self._lock:
            self.mouse.move(dx, dy, wheel)
            self._advance()

    def press_mouse(self, buttons: int) -> None:
        """Which mouse buttons are down now: 1 left, 2 right, 4 middle."""
        with self._lock:
            self.mouse.press(buttons)
            self._advance()

    def _type(self, events: list[bytes]) -> None:
        with self._lock:
            self.keyboard.type(events)
            self._advance()

    # -- ports ---------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """The output byte (again the last one if there is no new one), or the status."""
        if offset == DATA:
            with self._lock:
                value = self._data
                if self._full:
                    self._full = False
                    self._drive()  # low first: the next byte makes an edge
                    self._advance()
                return value
        if offset == COMMAND:
            with self._lock:
                self._advance()
                status = NOT_INHIBITED | (self._ram[0] & SYS)
                status |= WAS_COMMAND if self._was_command else 0
                if self._full:
                    status |= OBF | (AUX_OBF if self._source == MOUSE else 0)
                return status
        return 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """A byte to the keyboard or to whom the last command chose; or a command."""
        value &= 0xFF
        with self._lock:
            port = None
            if offset == COMMAND:
                self._was_command = True
                port = self._command(value)
            elif offset == DATA:
                self._was_command = False
                port = self._data_byte(value)
            self._advance()
        if port is not None:
            self._write_output_port(port)

    def _command(self, command: int) -> int | None:
        """A command; gives a new value of the output port, if it has one."""
        self._waiting = 0
        mode = self._ram[0]
        if command in _WITH_DATA:
            self._waiting = command
        elif 0x20 <= command < 0x40:
            self._reply(self._ram[command & 0x1F])
        elif command == 0xA4:
            self._reply(NO_PASSWORD)
        elif command in (0xA7, 0xA8):
            self._ram[0] = mode & ~AUX_OFF | (AUX_OFF if command == 0xA7 else 0)
        elif command == 0xAA:
            self._replies.clear()
            self._full = False
            self._ram[0] |= SYS
            self._reply(TEST_PASSED)
        elif command in (0xA9, 0xAB):
            self._reply(INTERFACE_GOOD)
        elif command in (0xAD, 0xAE):
            self._ram[0] = mode & ~KBD_OFF | (KBD_OFF if command == 0xAD else 0)
        elif command == 0xC0:
            self._reply(INPUT_PORT)
        elif command == 0xD0:
            self._reply(self._output_port())
        elif command == 0xE0:
            self._reply(0x00 if mode & KBD_OFF else 0x01)
        elif command in (0xDD, 0xDF):
            return 1 | (2 if command == 0xDF else 0)
        elif command >= 0xF0 and not command & 1:
            return self._output_port() & ~1  # a pulse on bit 0, the reset line
        return None

    def _data_byte(self, value: int) -> int | None:
        waiting, self._waiting = self._waiting, 0
        if 0x60 <= waiting < 0x80:
            self._ram[waiting & 0x1F] = value
        elif waiting == 0xD1:
            return value
        elif waiting == 0xD2:
            self._reply(value, KEYBOARD)
        elif waiting == 0xD3:
            self._reply(value, MOUSE)
        elif waiting == 0xD4:
            self._ram[0] &= ~AUX_OFF
            self.mouse.command(value)
        else:
            self._ram[0] &= ~KBD_OFF
            self.keyboard.command(value)
        return None

    def _reply(self, value: int, source: int = CONTROLLER) -> None:
        if len(self._replies) < _MOST_REPLIES:
            self._replies.append((value, source))

    def _output_port(self) -> int:
        waits = self._full << (5 if self._source == MOUSE else 4)
        return 0xC1 | self.a20.enabled << 1 | waits

    def _write_output_port(self, value: int) -> None:
        self.a20.set(value & 2 != 0)
        if not value & 1 and self._reset is not None:
            self._reset()

    # -- the output buffer ---------------------------------------------------------------------

    def _advance(self) -> None:
        """Fill the output buffer if it is empty, and send the next typed key if it is time."""
        mode = self._ram[0]
        if self._replies and not self._full:
            self._put(*self._replies.popleft())
        if not mode & KBD_OFF:
            self._type_next()
            while self.keyboard.queue and not self._full:
                self._from_keyboard(self.keyboard.take(), mode)
        if not mode & AUX_OFF and not self._full:
            self.mouse.send_movement()  # only now: until then movement adds up to one packet
            if self.mouse.queue:
                self._put(self.mouse.take(), MOUSE)
        self._drive()

    def _from_keyboard(self, value: int, mode: int) -> None:
        if mode & TRANSLATE:
            translated, self._broken = ps2keys.to_set1(bytes((value,)), self._broken)
            if not translated:
                return
            value = translated[0]
        self._put(value, KEYBOARD)

    def _put(self, value: int, source: int) -> None:
        self._full, self._data, self._source = True, value, source

    def _type_next(self) -> None:
        if self._closed or self._full or self.keyboard.queue or not self.keyboard.typed:
            return
        now = self._clock.now_ns()
        if now < self._next_key_at:
            self._timer.arm(self._next_key_at)
        elif self.keyboard.send_key():
            self._next_key_at = now + self._pace_ns

    def _drive(self) -> None:
        mode = self._ram[0]
        from_mouse = self._source == MOUSE
        self._set_line(0, self.irq, self._full and not from_mouse and mode & KBD_INT != 0)
        self._set_line(1, self.mouse_irq, self._full and from_mouse and mode & AUX_INT != 0)

    def _set_line(self, index: int, line: IrqLine, level: bool) -> None:
        if level != self._levels[index] and not self._closed:
            self._levels[index] = level
            line.set(level)

    def _on_timer(self) -> None:
        with self._lock:
            if not self._closed:
                self._advance()

    # -- life ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Power-on: nothing typed, nothing waiting, A20 enabled."""
        with self._lock:
            self._timer.cancel()
            self._power_on()
            self._drive()
        self.a20.set(True)

    def save(self) -> dict[str, object]:
        """Controller, keyboard (with what is still to be typed) and mouse."""
        with self._lock:
            state: dict[str, object] = {
                "ram": list(self._ram),
                "replies": [part for reply in self._replies for part in reply],
                "full": self._full,
                "data": self._data,
                "source": self._source,
                "waiting": self._waiting,
                "was_command": self._was_command,
                "a20": self.a20.enabled,
                "next_key_in_ns": max(0, self._next_key_at - self._clock.now_ns()),
            }
            for prefix, device in (("kbd_", self.keyboard), ("aux_", self.mouse)):
                state.update({prefix + name: value for name, value in device.save().items()})
            return state

    def load(self, state: dict[str, object]) -> None:
        """Take over a saved state; the interrupt lines follow."""
        take = StateReader(self.name, state)
        ram = bytearray(take.integers("ram", RAM_SIZE, 0xFF, least=RAM_SIZE))
        flat = take.integers("replies", 2 * _MOST_REPLIES, 0xFF)
        if len(flat) % 2 or any(source > MOUSE for source in flat[1::2]):
            take.refuse("replies", flat, "pairs of a byte and where it comes from")
        full, data = take.boolean("full"), take.integer("data", 0xFF)
        source, waiting = take.integer("source", MOUSE), take.integer("waiting", 0xFF)
        if waiting and waiting not in _WITH_DATA:
            take.refuse("waiting", waiting, "a command that has data")
        was_command = take.boolean("was_command")
        a20 = take.boolean("a20")
        wait = take.integer("next_key_in_ns", 1 << 40)
        keyboard, mouse = Ps2Keyboard(), Ps2Mouse()
        keyboard.load(take, "kbd_")
        mouse.load(take, "aux_")
        take.finish()
        with self._lock:
            self._timer.cancel()
            self._ram, self.keyboard, self.mouse = ram, keyboard, mouse
            self._replies = deque(zip(flat[::2], flat[1::2], strict=True))
            self._full, self._data, self._source = full, data, source
            self._waiting, self._was_command, self._broken = waiting, was_command, False
            self._next_key_at = self._clock.now_ns() + min(wait, self._pace_ns)
            self._drive()
            self._advance()
        self.a20.set(a20)

    def close(self) -> None:
        """Stop typing and leave the lines alone from now on."""
        with self._lock:
            self._closed = True
            self._timer.cancel()
        if self._own_clock is not None:
            self._own_clock.close()
