"""Numbers, addresses and threads as they stand in packets. Whatever does not parse is an error
that GDB gets as a reply."""

from __future__ import annotations

from pykvm.lab.gdb.target import GdbError, How, Resume, Stop

_MAX_DIGITS = 16
_HEX = frozenset(b"0123456789abcdefABCDEF")

ALL, ANY = -1, 0


def number(text: bytes, what: str = "number") -> int:
    """A hexadecimal number of up to 64 bits. Raises `GdbError`."""
    if not text or len(text) > _MAX_DIGITS or not _HEX.issuperset(text):
        raise GdbError(f"{text[:40]!r} is no {what}; it takes 1 to 16 hexadecimal digits")
    return int(text, 16)


def pair(text: bytes, separator: bytes = b",") -> tuple[int, int]:
    """`address,length`. Raises `GdbError`."""
    first, found, second = text.partition(separator)
    if not found:
        raise GdbError(f"{text[:40]!r} is no address and length")
    return number(first, "address"), number(second, "length")


def unhex(text: bytes) -> bytes:
    """Bytes from pairs of digits. Raises `GdbError`."""
    if len(text) % 2 or not _HEX.issuperset(text):
        raise GdbError(f"{text[:40]!r} is no even number of hexadecimal digits")
    return bytes.fromhex(text.decode("ascii"))


def thread(text: bytes) -> int:
    """A thread-id: 1 and up, `ANY` or `ALL`. Raises `GdbError`."""
    if text == b"-1":
        return ALL
    return number(text, "thread-id")


def actions(text: bytes, cpus: int) -> Resume:
    """`vCont` actions, with their semicolons: `;s:1;c`. Raises `GdbError`.

    The leftmost action that fits a thread counts (GDB manual, "vCont"). Signals are left out: a
    CPU has none.
    """
    chosen: dict[int, bytes] = {}
    for action in text.split(b";")[1 : 4 * cpus + 4]:
        verb, found, who = action.partition(b":")
        wanted = thread(who) if found else ALL
        if wanted > cpus:
            raise GdbError(f"there is no thread {wanted}")
        if verb[:1] not in (b"c", b"C", b"s", b"S", b"r", b"t") or not verb:
            raise GdbError(f"{action[:40]!r} is no action")
        for cpu in range(cpus) if wanted in (ALL, ANY) else (wanted - 1,):
            chosen.setdefault(cpu, verb)
    going = {cpu: verb for cpu, verb in chosen.items() if verb[:1] != b"t"}
    if not going:
        raise GdbError("no thread has anything to do")
    only = len(going) < cpus
    for cpu, verb in going.items():
        if verb[:1] == b"r":
            start, end = pair(verb[1:])
            return Resume(How.STEP_RANGE, cpu, only, start, end)
        if verb[:1] in (b"s", b"S"):
            return Resume(How.STEP, cpu, only)
    if only and len(going) > 1:
        raise GdbError("one thread can go on alone, or all of them")
    return Resume(How.CONTINUE, min(going), only)


def stop_reply(stop: Stop) -> bytes:
    """The reply that says why the guest stands still (GDB manual, "Stop Reply Packets")."""
    if stop.exit_code is not None:
        return b"W%02x" % (stop.exit_code & 0xFF)
    reason = f"{stop.reason};" if stop.reason else ""
    return f"T{stop.signal:02x}thread:{stop.cpu + 1:x};core:{stop.cpu:x};{reason}".encode()


def hex_text(text: str) -> bytes:
    """A text as GDB takes it in `O` packets and monitor replies."""
    return text.encode("utf-8", "replace").hex().encode("ascii")
