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


def _table(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(code, 16) for name, code in zip(words[::2], words[1::2], strict=True)}


_ONE_BYTE = _table(
    """
    a 1c  b 32  c 21  d 23  e 24  f 2b  g 34  h 33  i 43  j 3b  k 42  l 4b  m 3a  n 31
    o 44  p 4d  q 15  r 2d  s 1b  t 2c  u 3c  v 2a  w 1d  x 22  y 35  z 1a  0 45  1 16
    2 1e  3 26  4 25  5 2e  6 36  7 3d  8 3e  9 46  esc 76  f1 05  f2 06  f3 04  f4 0c
    f5 03  f6 0b  f7 83  f8 0a  f9 01  f10 09  f11 78  f12 07  grave_accent 0e  minus 4e
    equal 55  backspace 66  tab 0d  bracket_left 54  bracket_right 5b  backslash 5d
    caps_lock 58  semicolon 4c  apostrophe 52  ret 5a  shift 12  comma 41  dot 49  slash 4a
    shift_r 59  ctrl 14  alt 11  spc 29  num_lock 77  scroll_lock 7e  less 61
    kp_multiply 7c  kp_subtract 7b  kp_add 79  kp_decimal 71  kp_0 70  kp_1 69  kp_2 72
    kp_3 7a  kp_4 6b  kp_5 73  kp_6 74  kp_7 6c  kp_8 75  kp_9 7d
    """
)
_EXTENDED = _table(  # these have the prefix 0xE0
    """
    meta_l 1f  ctrl_r 14  alt_r 11  meta_r 27  menu 2f  insert 70  home 6c  pgup 7d
    delete 71  end 69  pgdn 7a  up 75  left 6b  down 72  right 74  kp_divide 4a
    kp_enter 5a  power 37  sleep 3f  wake 5e
    """
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
    **{name: (bytes((c,)), bytes((BREAK, c))) for name, c in _ONE_BYTE.items()},
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
