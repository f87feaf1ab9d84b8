"""Keys of a US keyboard: names, scan codes, and the key strokes that type a text.

Sources: the IBM PS/2 Hardware Interface Technical Reference, keyboard section (scan-code set 2),
and the 8042's translation of it to set 1 as Andries Brouwer's "Keyboard scancodes", section 10.3,
lists it. Names are those of QEMU's `sendkey`, plus a few that people try first.
"""

from __future__ import annotations

from pykvm.errors import PykvmError


class KeyNameError(PykvmError):
    """There is no such key, or no key that types a character."""


BREAK = 0xF0  # set 2: the key in the next byte goes up

_LETTERS = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz0123456789",
        bytes.fromhex(
            "1c32212324 2b3433433b 424b3a3144 4d152d1b2c 3c2a1d2235 1a45161e2625 2e363d3e46"
        ),
        strict=True,
    )
)
_CONTROL = dict(
    zip(
        ["esc", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "f11", "f12", "grave_accent", "minus", "equal", "backspace", "tab", "bracket_left", "bracket_right", "backslash", "caps_lock", "semicolon", "apostrophe", "ret", "shift", "comma", "dot", "slash", "shift_r", "ctrl", "alt", "spc", "num_lock", "scroll_lock", "less", "kp_multiply", "kp_subtract", "kp_add", "kp_decimal", "kp_0", "kp_1", "kp_2", "kp_3", "kp_4", "kp_5", "kp_6", "kp_7", "kp_8", "kp_9"],
        bytes.fromhex(
            "76 05 06 04 0c 03 0b 83 0a 01 09 78 07 0e 4e 55 66 0d 54 5b 5d 58 4c 52 5a 12 41 49"
            "4a 59 14 11 29 77 7e 61 7c 7b 79 71 70 69 72 7a 6b 73 74 6c 75 7d"
        ),
        strict=True,
    )
)
_EXTENDED = dict(  # these have the prefix 0xE0
    zip(
        ["meta_l", "ctrl_r", "alt_r", "meta_r", "menu", "insert", "home", "pgup", "delete", "end", "pgdn", "up", "left", "down", "right", "kp_divide", "kp_enter", "power", "sleep", "wake"],
        bytes.fromhex("1f 14 11 27 2f 70 6c 7d 71 69 7a 75 6b 72 74 4a 5a 37 3f 5e"),
        strict=True,
    )
)
_ALIASES = {
    "enter": "ret", "return": "ret", "escape": "esc", "space": "spc", "control": "ctrl",
    "ctrl_l": "ctrl", "shift_l": "shift", "alt_l": "alt", "altgr": "alt_r", "win": "meta_l",
    "super": "meta_l", "del": "delete", "ins": "insert", "pageup": "pgup", "page_up": "pgup",
    "pagedown": "pgdn", "page_down": "pgdn", "asterisk": "kp_multiply", "print": "sysrq",
    "printscreen": "sysrq", "capslock": "caps_lock", "numlock": "num_lock", "period": "dot",
    "`": "grave_accent", "=": "equal", "[": "bracket_left", "]": "bracket_right",
    "\\": "backslash", ";": "semicolon", "'": "apostrophe", ",": "comma", ".": "dot",
    "/": "slash", " ": "spc", "\n": "ret", "\t": "tab", "\b": "backspace", "\x1b": "esc",
    "-": "minus", "break": "pause",
}  # fmt: skip
_SHIFTED = dict(zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True))

#: Name → the bytes of set 2 when it goes down, and when it goes up.
KEYS: dict[str, tuple[bytes, bytes]] = {
    **{name: (bytes((c,)), bytes((BREAK, c))) for name, c in (_LETTERS | _CONTROL).items()},
    **{name: (bytes((0xE0, c)), bytes((0xE0, BREAK, c))) for name, c in _EXTENDED.items()},
    "sysrq": (bytes.fromhex("e012e07c"), bytes.fromhex("e0f07ce0f012")),
    "pause": (bytes.fromhex("e11477e1f014f077"), b""),
}

#: Set 2 → set 1, byte by byte; 0xF0 is no key but sets bit 7 of what follows.
TRANSLATION = bytes.fromhex(
    "ff43413f3d3b3c5864444240 3e0f2959 6538 2a701d10025a6671 2c1f1e11035b"
    "672e2d201205045c68392f211413065d 69313023221507 5e6a72322416 08095f"
    "6b33251718 0b0a606c3435262719 0c61 6d7328741a0d626e3a361c1b752b6376"
    "55567778797a0e7b7c4f7d4b477e7f6f 5253504c4d48014557 4e514a37494654"
    "80818241 54"
) + bytes(range(0x85, 0x100))


def key(name: str) -> tuple[bytes, bytes]:
    """The set 2 bytes of a key by name, in any case. Raises `KeyNameError`."""
    folded = name.lower()
    found = KEYS.get(_ALIASES.get(folded, folded))
    if found is None:
        raise KeyNameError(
            f"there is no key {name!r}; names are letters, digits, f1 to f12, ret, esc, up, "
            "ctrl, ... as in QEMU's sendkey"
        )
    return found


def chord(names: str) -> list[tuple[bytes, bytes]]:
    """The keys of a combination such as "ctrl-alt-delete", in the order they go down."""
    if names in ("-", "minus"):
        return [key("minus")]
    return [key(name) for name in names.split("-")]


def strokes(text: str) -> list[bytes]:
    """Set 2 bytes, one item for each key going down or up, that type `text` on a US keyboard."""
    found: list[bytes] = []
    shift_down, shift_up = key("shift")
    for character in text.replace("\r\n", "\n").replace("\r", "\n"):
        plain = _SHIFTED.get(character, character.lower())
        try:
            down, up = key(plain)
        except KeyNameError:
            raise KeyNameError(
                f"no key of a US keyboard types {character!r}; use press() and release()"
            ) from None
        if plain == character:
            found += [down, up]
        else:
            found += [shift_down, down, up, shift_up]
    return found


def to_set1(data: bytes, broken: bool = False) -> tuple[bytes, bool]:
    """Set 2 bytes as set 1, and whether the last one was a break prefix."""
    found = bytearray()
    for byte in data:
        if byte == BREAK:
            broken = True
            continue
        found.append(TRANSLATION[byte] | (0x80 if broken else 0))
        broken = False
    return bytes(found), broken
