"""An encoder for ACPI Machine Language (ACPI 6.5 chapter 20).

Every function gives the bytes of one term. Where a term takes terms, plain values stand for
themselves: an `int` is an integer constant, a `str` a name (`"\\\\_SB.PCI0"`, `"^LNKA"`), `bytes`
are terms that were encoded before. String constants are `text("...")`.
"""

from __future__ import annotations

import re
import struct

from pykvm.arch.errors import ArchError

Term = bytes | int | str

ZERO, ONE, ONES = b"\0", b"\1", b"\xff"
NOTHING = b"\0"
"""A null name: the target of an operation whose result is only returned."""

# Region spaces (ACPI 6.5 table 5.131).
SYSTEM_MEMORY, SYSTEM_IO, PCI_CONFIG = 0, 1, 2
# Field access types and update rules (ACPI 6.5 20.2.5.2).
ANY_ACCESS, BYTE_ACCESS, WORD_ACCESS, DWORD_ACCESS = 0, 1, 2, 3
PRESERVE = 0

_SEGMENT = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")
_MAX_PACKAGE = 1 << 28


def name_string(path: str) -> bytes:
    """A name: `\\\\` for the root, `^` for a parent, segments of up to 4 characters.

    Raises `ArchError` for a segment that is not a name.
    """
    rest = path.lstrip("\\^")
    prefix = path[: len(path) - len(rest)].encode()
    segments = rest.split(".") if rest else []
    for segment in segments:
        if not _SEGMENT.fullmatch(segment):
            raise ArchError(f"{segment!r} in {path!r} is not an ACPI name of 1 to 4 characters")
    packed = b"".join(segment.ljust(4, "_").encode() for segment in segments)
    if not segments:
        return prefix + NOTHING
    if len(segments) == 1:
        return prefix + packed
    if len(segments) == 2:
        return prefix + b"\x2e" + packed
    if len(segments) > 255:
        raise ArchError("an ACPI name has at most 255 segments")
    return prefix + b"\x2f" + bytes([len(segments)]) + packed


def package_length(length: int) -> bytes:
    """PkgLength for `length` bytes that follow it; it counts its own bytes too (20.2.4)."""
    if length + 1 < 1 << 6:
        return bytes([length + 1])
    for extra in (1, 2, 3):
        total = length + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 15]) + (total >> 4).to_bytes(extra, "little")
    raise ArchError(f"an AML package of {length} bytes is longer than {_MAX_PACKAGE - 1}")


def integer(value: int) -> bytes:
    """The shortest constant for an unsigned 64-bit integer."""
    if value in (0, 1):
        return bytes([value])
    for limit, prefix, form in ((8, 0x0A, "<B"), (16, 0x0B, "<H"), (32, 0x0C, "<I")):
        if 0 <= value < 1 << limit:
            return bytes([prefix]) + struct.pack(form, value)
    if 0 <= value < 1 << 64:
        return b"\x0e" + struct.pack("<Q", value)
    raise ArchError(f"{value:#x} is no AML integer: those are unsigned and have 64 bits")


def term(value: Term) -> bytes:
    """A term from a plain value: see the module's description."""
    if isinstance(value, bytes):
        return value
    return integer(value) if isinstance(value, int) else name_string(value)


def terms(values: tuple[Term, ...]) -> bytes:
    """Terms one after another."""
    return b"".join(map(term, values))


def text(value: str) -> bytes:
    """A string constant."""
    if not value.isascii() or "\0" in value:
        raise ArchError(f"{value!r} is no AML string: those are ASCII without NUL")
    return b"\x0d" + value.encode() + b"\0"


def _sized(opcode: bytes, body: bytes) -> bytes:
    return opcode + package_length(len(body)) + body


def buffer(data: bytes) -> bytes:
    """A buffer constant."""
    return _sized(b"\x11", integer(len(data)) + data)


def package(*elements: Term) -> bytes:
    """A package of at most 255 elements."""
    if len(elements) > 255:
        raise ArchError(f"an AML package has at most 255 elements, not {len(elements)}")
    return _sized(b"\x12", bytes([len(elements)]) + terms(elements))


def eisa_id(text_id: str) -> bytes:
    """`PNP0A08` as the integer that _HID and _CID take (EISAID macro, 19.6.35)."""
    if not re.fullmatch(r"[A-Z]{3}[0-9A-F]{4}", text_id):
        raise ArchError(f"{text_id!r} is no EISA ID: three letters, four hexadecimal digits")
    letters = [ord(c) - 0x40 for c in text_id[:3]]
    vendor = letters[0] << 10 | letters[1] << 5 | letters[2]
    raw = struct.pack(">HH", vendor, int(text_id[3:], 16))
    return b"\x0c" + raw


def uuid(value: str) -> bytes:
    """A buffer with a UUID in the order of the ToUUID macro (19.6.142)."""
    parts = value.split("-")
    if [len(p) for p in parts] != [8, 4, 4, 4, 12]:
        raise ArchError(f"{value!r} is no UUID")
    raw = [bytes.fromhex(p) for p in parts]
    return buffer(raw[0][::-1] + raw[1][::-1] + raw[2][::-1] + raw[3] + raw[4])


# -- named objects -------------------------------------------------------------------------------


def name(path: str, value: Term) -> bytes:
    """Name (path, value)."""
    return b"\x08" + name_string(path) + term(value)


def scope(path: str, *body: Term) -> bytes:
    """Scope (path) {...}."""
    return _sized(b"\x10", name_string(path) + terms(body))


def device(path: str, *body: Term) -> bytes:
    """Device (path) {...}."""
    return _sized(b"\x5b\x82", name_string(path) + terms(body))


def method(path: str, arguments: int, *body: Term, serialized: bool = False) -> bytes:
    """Method (path, arguments, Serialized or not) {...}."""
    if not 0 <= arguments <= 7:
        raise ArchError(f"an AML method has 0 to 7 arguments, not {arguments}")
    flags = bytes([arguments | serialized << 3])
    return _sized(b"\x14", name_string(path) + flags + terms(body))


def region(path: str, space: int, offset: Term, length: Term) -> bytes:
    """OperationRegion (path, space, offset, length in bytes)."""
    return b"\x5b\x80" + name_string(path) + bytes([space]) + term(offset) + term(length)


def fields(path: str, access: int, *parts: tuple[str, int], lock: bool = False) -> bytes:
    """Field (path, access, lock, Preserve): (name, bits) one after another; "" skips bits."""
    body = b""
    for unit, bits in parts:
        body += name_string(unit) if unit else b"\0"
        # A field's width is encoded like a length, but does not count its own bytes.
        body += _field_bits(bits)
    flags = bytes([access | lock << 4 | PRESERVE << 5])
    return _sized(b"\x5b\x81", name_string(path) + flags + body)


def _field_bits(bits: int) -> bytes:
    if bits < 1 << 6:
        return bytes([bits])
    for extra in (1, 2, 3):
        if bits < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | bits & 15]) + (bits >> 4).to_bytes(extra, "little")
    raise ArchError(f"an AML field of {bits} bits is too wide")


def create_dword_field(source: Term, offset: Term, path: str) -> bytes:
    """CreateDWordField (source, byte offset, name)."""
    return b"\x8a" + term(source) + term(offset) + name_string(path)


# -- statements and expressions --------------------------------------------------------------------


def local(n: int) -> bytes:
    """Local0 to Local7."""
    return bytes([0x60 + n])


def arg(n: int) -> bytes:
    """Arg0 to Arg6."""
    return bytes([0x68 + n])


def store(value: Term, target: Term) -> bytes:
    """Store (value, target)."""
    return b"\x70" + term(value) + term(target)


def and_(left: Term, right: Term, target: Term = NOTHING) -> bytes:
    """And (left, right, target): bitwise."""
    return b"\x7b" + term(left) + term(right) + term(target)


def or_(left: Term, right: Term, target: Term = NOTHING) -> bytes:
    """Or (left, right, target): bitwise."""
    return b"\x7d" + term(left) + term(right) + term(target)


def shift_left(value: Term, by: Term, target: Term = NOTHING) -> bytes:
    """ShiftLeft (value, by, target)."""
    return b"\x79" + term(value) + term(by) + term(target)


def find_set_right_bit(value: Term, target: Term = NOTHING) -> bytes:
    """FindSetRightBit (value, target): the lowest set bit counted from 1, or 0."""
    return b"\x82" + term(value) + term(target)


def subtract(left: Term, right: Term, target: Term = NOTHING) -> bytes:
    """Subtract (left, right, target)."""
    return b"\x74" + term(left) + term(right) + term(target)


def equal(left: Term, right: Term) -> bytes:
    """LEqual (left, right)."""
    return b"\x93" + term(left) + term(right)


def not_equal(left: Term, right: Term) -> bytes:
    """LNotEqual (left, right)."""
    return b"\x92\x93" + term(left) + term(right)


def if_(condition: Term, *body: Term) -> bytes:
    """If (condition) {...}."""
    return _sized(b"\xa0", term(condition) + terms(body))


def else_(*body: Term) -> bytes:
    """Else {...}, right after an `if_`."""
    return _sized(b"\xa1", terms(body))


def return_(value: Term) -> bytes:
    """Return (value)."""
    return b"\xa4" + term(value)


def call(path: str, *arguments: Term) -> bytes:
    """A call of a method."""
    return name_string(path) + terms(arguments)


def notify(target: Term, value: Term) -> bytes:
    """Notify (object, value)."""
    return b"\x86" + term(target) + term(value)
