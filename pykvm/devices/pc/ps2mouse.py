"""A PS/2 mouse with three buttons, and a wheel for drivers that ask for it.

Sources: IBM PS/2 Hardware Interface Technical Reference, "Auxiliary device"; the wheel (ID 3) is
Microsoft's IntelliMouse extension, turned on by the sample rates 200, 100, 80 in a row.
"""

from __future__ import annotations

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
from pykvm.devices.state import StateReader

SCALE_1, SCALE_2, SET_RESOLUTION, STATUS = 0xE6, 0xE7, 0xE8, 0xE9
STREAM, READ_DATA, LEAVE_WRAP, WRAP, REMOTE = 0xEA, 0xEB, 0xEC, 0xEE, 0xF0
LEFT, RIGHT, MIDDLE = 1, 2, 4
_WHEEL_KNOCK = [200, 100, 80]
_FARTHEST = 1 << 15  # movement that is remembered at most


class Ps2Mouse(Ps2Device):
    """The mouse: commands on one side, movement on the other."""

    with_argument = frozenset((SET_RESOLUTION, SET_RATE))

    def power_on(self) -> None:
        """Streaming mode, reporting disabled, no wheel."""
        super().power_on()
        self.knocks: list[int] = []
        self.has_wheel = False
        self.wrap = False
        self.dx = self.dy = self.dz = self.buttons = 0
        self.moved = False
        self._defaults()

    def _defaults(self) -> None:
        self.rate, self.resolution = 100, 2
        self.double = self.remote = self.reporting = False

    def move(self, dx: int, dy: int, wheel: int = 0) -> None:
        """Move by counts: x to the right, y up, the wheel towards the user."""
        self.dx = max(-_FARTHEST, min(_FARTHEST, self.dx + dx))
        self.dy = max(-_FARTHEST, min(_FARTHEST, self.dy + dy))
        self.dz = max(-_FARTHEST, min(_FARTHEST, self.dz + wheel))
        self.moved = True

    def press(self, buttons: int) -> None:
        """Which buttons are down now: `LEFT`, `RIGHT`, `MIDDLE` together."""
        if buttons & 7 != self.buttons:
            self.buttons = buttons & 7
            self.moved = True

    def send_movement(self) -> None:
        """Queue a packet if there is something to report and the host has read the last one."""
        if self.moved and self.reporting and not (self.remote or self.queue or self.wrap):
            self._packet()

    def _packet(self) -> None:
        dx, dy = (max(-255, min(255, value)) for value in (self.dx, self.dy))
        dz = max(-8, min(7, self.dz)) if self.has_wheel else self.dz
        self.dx, self.dy, self.dz = self.dx - dx, self.dy - dy, self.dz - dz
        self.moved = bool(self.dx or self.dy or self.dz)
        first = self.buttons | 8 | (dx < 0) << 4 | (dy < 0) << 5
        self.reply(first, dx & 0xFF, dy & 0xFF)
        if self.has_wheel:
            self.reply(dz & 0xFF)

    def command(self, value: int) -> None:
        """A byte from the host; in wrap mode most come straight back."""
        if self.wrap and value not in (RESET, LEAVE_WRAP):
            self.reply(value)
            return
        super().command(value)

    def execute(self, command: int) -> None:
        """A command without an argument."""
        if command == RESET:
            self.power_on()
            self.reply(ACK, SELF_TEST_PASSED, 0)
        elif command == GET_ID:
            self.reply(ACK, 3 if self.has_wheel else 0)
        elif command == STATUS:
            flags = self.remote << 6 | self.reporting << 5 | self.double << 4
            buttons = (self.buttons & LEFT) << 2 | self.buttons & RIGHT | self.buttons >> 2
            self.reply(ACK, flags | buttons, self.resolution, self.rate)
        elif command == READ_DATA:
            self.reply(ACK)
            self._packet()
        elif command in (SCALE_1, SCALE_2):
            self.double = command == SCALE_2
            self.reply(ACK)
        elif command in (STREAM, REMOTE):
            self.remote = command == REMOTE
            self.reply(ACK)
        elif command in (WRAP, LEAVE_WRAP):
            self.wrap = command == WRAP
            self.reply(ACK)
        elif command in (ENABLE, DISABLE):
            self.reporting = command == ENABLE
            self.reply(ACK)
        elif command == DEFAULTS:
            self._defaults()
            self.reply(ACK)
        else:
            self.reply(RESEND)

    def argument(self, command: int, value: int) -> None:
        """A command with its argument."""
        if command == SET_RESOLUTION:
            self.resolution = value & 3
        else:
            self.rate = value
            self.knocks = [*self.knocks, value][-3:]
            self.has_wheel = self.has_wheel or self.knocks == _WHEEL_KNOCK
        self.reply(ACK)

    _FLAGS = ("has_wheel", "wrap", "moved", "double", "remote", "reporting")

    def save(self) -> dict[str, object]:
        """Plain values."""
        return {
            **super().save(),
            **{name: getattr(self, name) for name in self._FLAGS},
            "knocks": list(self.knocks),
            "dx": self.dx,
            "dy": self.dy,
            "dz": self.dz,
            "buttons": self.buttons,
            "rate": self.rate,
            "resolution": self.resolution,
        }

    def load(self, take: StateReader, prefix: str) -> None:
        """Take over what `save` gave."""
        super().load(take, prefix)
        for name in self._FLAGS:
            setattr(self, name, take.boolean(prefix + name))
        self.knocks = take.integers(prefix + "knocks", 3, 0xFF)
        for name in ("dx", "dy", "dz"):
            setattr(self, name, take.integer(prefix + name, _FARTHEST, -_FARTHEST))
        self.buttons = take.integer(prefix + "buttons", 7)
        self.rate = take.integer(prefix + "rate", 0xFF)
        self.resolution = take.integer(prefix + "resolution", 3)
