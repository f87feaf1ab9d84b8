"""A PS/2 keyboard with scan-code sets 1 and 2.

Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboards (101- and 102-key)". Typematic
rates are accepted and mean nothing: a held key does not repeat. Set 3 is refused (RESEND).
"""

from __future__ import annotations

from collections import deque

from pykvm.devices.pc.ps2 import (
    ACK,
    DEFAULTS,
    DISABLE,
    ENABLE,
    GET_ID,
    RESEND,
    RESET,
    SELF_TEST_PASSED,
    SET_RATE,
    Ps2Device,
)
from pykvm.devices.pc.ps2keys import to_set1
from pykvm.devices.state import StateReader
from pykvm.errors import PykvmError

SET_LEDS, ECHO, SCAN_SET = 0xED, 0xEE, 0xF0
SCROLL_LED, NUM_LED, CAPS_LED = 1, 2, 4
_IDENTITY = (0xAB, 0x83)

#: Key events that wait to be typed at most: several thousand characters.
TYPED_LIMIT = 16384


class KeyQueueFull(PykvmError):
    """More was typed than is kept; wait until the guest has read some of it."""


class Ps2Keyboard(Ps2Device):
    """The keyboard: commands on one side, keys on the other.

    Keys wait in `typed` and go to the host one at a time, when the controller says so (`I8042`
    keeps the pace). They also wait while the host has disabled scanning.
    """

    with_argument = frozenset((SET_LEDS, SCAN_SET, SET_RATE, 0xFB, 0xFC, 0xFD))
    first_command = SET_LEDS

    def power_on(self) -> None:
        """Scanning, set 2, LEDs off, nothing typed."""
        super().power_on()
        self.typed: deque[bytes] = deque()
        self._defaults()
        self.scanning = True
        self.leds = 0

    def _defaults(self) -> None:
        self.scan_set = 2

    def type(self, events: list[bytes]) -> None:
        """Queue key events (set 2 bytes each). Raises `KeyQueueFull`, and then queues none."""
        if len(self.typed) + len(events) > TYPED_LIMIT:
            raise KeyQueueFull(
                f"{len(events)} key events do not fit: {len(self.typed)} of {TYPED_LIMIT} wait"
            )
        self.typed.extend(event for event in events if event)

    def send_key(self) -> bool:
        """Move the next typed event to the host's queue; false if there is none to move now."""
        if not self.typed or not self.scanning or self.queue or self.waiting:
            return False
        event = self.typed.popleft()
        self.reply(*(to_set1(event)[0] if self.scan_set == 1 else event))
        return True

    def execute(self, command: int) -> None:
        """A command without an argument."""
        if command == RESET:
            self._defaults()
            self.scanning, self.leds = True, 0
            self.queue.clear()
            self.reply(ACK, SELF_TEST_PASSED)
        elif command == ECHO:
            self.reply(ECHO)
        elif command == GET_ID:
            self.reply(ACK, *_IDENTITY)
        elif command == ENABLE:
            self.scanning = True
            self.reply(ACK)
        elif command in (DISABLE, DEFAULTS):
            self._defaults()
            self.scanning = command == DEFAULTS
            self.reply(ACK)
        elif 0xF7 <= command <= 0xFA:  # key types of set 3
            self.reply(ACK)
        else:
            self.reply(RESEND)

    def argument(self, command: int, value: int) -> None:
        """A command with its argument."""
        if command == SET_LEDS:
            self.leds = value & 7
        elif command == SCAN_SET:
            if value == 0:
                self.reply(ACK, self.scan_set)
                return
            if value not in (1, 2):
                self.reply(RESEND)
                return
            self.scan_set = value
        self.reply(ACK)

    def save(self) -> dict[str, object]:
        """Plain values; typed events as their bytes, each after its length."""
        typed = [value for event in self.typed for value in (len(event), *event)]
        return {
            **super().save(),
            "scanning": self.scanning,
            "scan_set": self.scan_set,
            "leds": self.leds,
            "typed": typed,
        }

    def load(self, take: StateReader, prefix: str) -> None:
        """Take over what `save` gave."""
        super().load(take, prefix)
        self.scanning = take.boolean(prefix + "scanning")
        self.scan_set = take.integer(prefix + "scan_set", 2, 1)
        self.leds = take.integer(prefix + "leds", 7)
        typed = bytes(take.integers(prefix + "typed", 10 * TYPED_LIMIT, 0xFF))
        while typed:
            length, event = typed[0], typed[1 : 1 + typed[0]]
            typed = typed[1 + length :]
            if not 1 <= length == len(event) <= 8 or len(self.typed) >= TYPED_LIMIT:
                take.refuse(prefix + "typed", "...", "events of 1 to 8 bytes after their length")
            self.typed.append(event)
