"""What every verb shares: numbers, signals, and errors in one line."""

from __future__ import annotations

import os
import sys

# What `signal` wraps in enums: those take 2 ms to import.
from _signal import SIG_DFL, SIGHUP, SIGINT, SIGPIPE, SIGTERM, getsignal, signal  # type: ignore[import-not-found]
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType

from pykvm.cli.parser import Parser, UsageError
from pykvm.errors import PykvmError
from pykvm.typed import Any, Self

__all__ = [
    "HOST_ERROR",
    "SIGINT",
    "SIGPIPE",
    "Interrupt",
    "Parser",
    "Terminated",
    "UsageError",
    "complain",
    "end_on_signals",
    "memory",
    "near",
    "number",
    "one_line",
    "print_json",
    "printable",
    "seconds",
    "settle",
    "silence_stdout",
    "tolerate_any_encoding",
]

HOST_ERROR = 125


class Terminated(BaseException):
    """A signal asked the command to end; raised so that terminals and files are put right."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def number(text: str) -> int:
    """A non-negative integer as typed: 4096, 0x1000, 0b1, 0o17. For argparse's `type=`."""
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if value < 0:
        raise _wrong(f"{printable(text)} is not a number; write it like 0x1000 or 4096")
    return value


def seconds(text: str) -> float:
    """A positive time in seconds. For argparse's `type=`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise _wrong(f"{printable(text)} is not a time in seconds; write it like 5 or 0.5")
    return value


def _wrong(message: str) -> Exception:
    from argparse import ArgumentTypeError

    return ArgumentTypeError(message)


def memory(text: str) -> str | int:
    """A size as `Machine(memory=)` takes it, or bytes as 0x4000000. For argparse's `type=`."""
    if text[:2].lower() == "0x":
        return number(text)
    return text


def printable(text: str) -> str:
    """`text` as a message can show it: quoted and escaped where it is unusual, and not too long."""
    shown = text if len(text) <= 80 else text[:77] + "..."
    if shown and shown.isprintable() and " " not in shown:
        return shown
    return repr(shown)


def near(word: str, known: Iterable[str]) -> list[str]:
    """The known words that look like `word`, best first."""
    import difflib

    return difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    import json

    json.dump(value, sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")


def one_line(error: BaseException) -> str:
    """What went wrong in one line without control characters."""
    if isinstance(error, PykvmError):
        text = str(error)
    elif isinstance(error, OSError):
        text = _os_error(error)
    elif isinstance(error, MemoryError):
        text = "the host has not enough memory for this; try a smaller --memory"
    else:
        text = f"internal error, please report it: {type(error).__name__}: {error}"
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def _os_error(error: OSError) -> str:
    why = error.strerror or str(error)
    if error.filename is not None:
        return f"{printable(os.fsdecode(error.filename))}: {why}"
    return why


def complain(error: BaseException) -> int:
    """The one line on stderr that an error gets, and its exit code.

    `PYKVM_TRACEBACK=1` in the environment shows the traceback before it.
    """
    if os.environ.get("PYKVM_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        silence_stdout()
    try:
        print(f"pykvm: {one_line(error)}", file=sys.stderr)
    except (OSError, ValueError):
        pass  # nobody is there to read it
    return HOST_ERROR


def silence_stdout() -> None:
    """Nobody reads stdout any more: what is still buffered goes nowhere, also at exit."""
    try:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.close(sink)
    except OSError:
        pass


def tolerate_any_encoding() -> None:
    """Characters that a stream's encoding lacks are replaced; a closed stream swallows."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for the rest of the process)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None and (stream.encoding or "").lower() != "utf-8":
            reconfigure(errors="replace")


def settle() -> None:
    """The program is loaded: collect garbage again, but not in what is there already."""
    import gc

    gc.freeze()
    gc.enable()


class Interrupt:
    """While entered, the first Ctrl-C calls `stop` (so that a report can still be made).

    The second one raises `KeyboardInterrupt` as usual. `came` says whether there was one.
    """

    def __init__(self, stop: Callable[[], object]) -> None:
        self.stop = stop
        self._before: Any = None
        self.came = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
        self.stop()

    def __enter__(self) -> Self:
        self._before = signal(SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal(SIGINT, self._before)


def end_on_signals() -> None:
    """From here on SIGTERM and SIGHUP raise `Terminated`, so that `finally` blocks run."""

    def handler(signum: int, frame: FrameType | None) -> None:
        raise Terminated(signum)

    for signum in (SIGTERM, SIGHUP):
        if getsignal(signum) == SIG_DFL:
            signal(signum, handler)
