"""The escape sequence that a user types at the guest's console: Ctrl-A and one more key."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.typed import Literal, TypeAlias

    Command: TypeAlias = Literal["quit", "help", "break"]

CTRL_A = 0x01
_COMMANDS: dict[int, Command] = {
    ord("x"): "quit",
    ord("h"): "help",
    ord("?"): "help",
    ord("b"): "break",
}

HELP = """\
Ctrl-A x       end the machine
Ctrl-A b       send a break
Ctrl-A Ctrl-A  send Ctrl-A (Ctrl-A a does too)
Ctrl-A h       this help
"""


class EscapeFilter:
    """Splits what is typed into text for the guest and commands for us.

    The state survives from one call to the next: the two keys rarely come together.
    """

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> list[bytes | Command]:
        """The typed bytes as a list of texts (bytes) and commands (str), in their order.

        After Ctrl-A, a key that means nothing is dropped.
        """
        parts: list[bytes | Command] = []
        text = bytearray()
        for code in data:
            if not self._escaped:
                if code == CTRL_A:
                    self._escaped = True
                else:
                    text.append(code)
                continue
            self._escaped = False
            if code in (CTRL_A, ord("a")):
                text.append(CTRL_A)
            elif code in _COMMANDS:
                if text:
                    parts.append(bytes(text))
                    text.clear()
                parts.append(_COMMANDS[code])
        if text:
            parts.append(bytes(text))
        return parts
