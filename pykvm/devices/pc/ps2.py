"""What a PS/2 keyboard and a PS/2 mouse have in common: commands, replies, bytes to the host.

Source: IBM PS/2 Hardware Interface Technical Reference, keyboard and auxiliary device sections.
"""

from __future__ import annotations

from collections import deque

from pykvm.devices.state import StateReader

ACK, RESEND, SELF_TEST_PASSED = 0xFA, 0xFE, 0xAA
ENABLE, DISABLE, DEFAULTS, SEND_AGAIN, RESET = 0xF4, 0xF5, 0xF6, 0xFE, 0xFF
GET_ID, SET_RATE = 0xF2, 0xF3
#: How many bytes wait for the host at most; a guest that sends commands and reads no reply loses
#: the newest.
QUEUE = 16


class Ps2Device:
    """One end of a PS/2 cable. The controller calls `command` and `take`, under its lock."""

    #: Commands that are followed by one more byte.
    with_argument: frozenset[int] = frozenset()
    #: A byte from here on is a command even where an argument is due.
    first_command = 0x100

    def __init__(self) -> None:
        self.queue: deque[int] = deque()
        self.waiting = 0  # the command whose argument is due, 0 for none
        self.last = 0  # what was sent last, for SEND_AGAIN
        self.power_on()

    def power_on(self) -> None:
        """The state after power-on; further state is the subclass's part."""
        self.queue.clear()
        self.waiting = self.last = 0

    def reply(self, *values: int) -> None:
        """Queue bytes for the host."""
        for value in values:
            if len(self.queue) < QUEUE:
                self.queue.append(value)

    def take(self) -> int:
        """The next byte to the host; there must be one."""
        self.last = self.queue.popleft()
        return self.last

    def command(self, value: int) -> None:
        """A byte from the host."""
        pending, self.waiting = self.waiting, 0
        if pending and value < self.first_command:
            self.argument(pending, value)
        elif value == SEND_AGAIN:
            self.queue.appendleft(self.last)
            while len(self.queue) > QUEUE:
                self.queue.pop()
        elif value in self.with_argument:
            self.waiting = value
            self.reply(ACK)
        else:
            self.execute(value)

    def execute(self, command: int) -> None:
        """A command without an argument."""
        raise NotImplementedError

    def argument(self, command: int, value: int) -> None:
        """A command with its argument."""
        raise NotImplementedError

    def save(self) -> dict[str, object]:
        """Plain values."""
        return {"queue": list(self.queue), "waiting": self.waiting, "last": self.last}

    def load(self, take: StateReader, prefix: str) -> None:
        """Take over what `save` gave, under names that start with `prefix`."""
        self.queue.extend(take.integers(prefix + "queue", QUEUE, 0xFF))
        self.waiting = take.integer(prefix + "waiting", 0xFF)
        if self.waiting and self.waiting not in self.with_argument:
            take.refuse(prefix + "waiting", self.waiting, "a command that has an argument")
        self.last = take.integer(prefix + "last", 0xFF)
