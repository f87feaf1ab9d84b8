"""What `run` does beside the guest's serial port: screen, typed keys, a log, and what to say when
the guest is silent. Loaded only where an option asks for it (or stderr is a terminal)."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pykvm.cli.common import Parser, UsageError, printable, seconds
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.machine import Machine

_POLL_S = 0.05
QUIET_S = 10.0


def add_watch_options(parser: Parser) -> None:
    """The options of this module."""
    group = parser.add_argument_group("screen and keyboard (pc board)")
    group.add_argument(
        "--display",
        choices=("text", "none"),
        default="none",
        help="text: show the VGA's screen in the terminal (COM1 then goes nowhere unless --serial "
        "says so)",
    )
    group.add_argument("--screenshot", metavar="FILE.png", help="save the screen when the run ends")
    group.add_argument(
        "--type",
        metavar="TEXT",
        help="type TEXT on the keyboard; \\n is Enter, {esc}, {f12}, {ctrl-alt-delete} are keys",
    )
    group.add_argument(
        "--type-after",
        metavar="TEXT",
        help="type only once the guest has shown this, on its screen or on COM1",
    )
    group = parser.add_argument_group("a silent guest")
    group.add_argument(
        "--console-log", metavar="FILE", help="keep everything that COM1 prints in FILE, too"
    )
    group.add_argument(
        "--report-silence",
        type=seconds,
        metavar="S",
        help="say on stderr what the guest is doing when it has printed nothing for S seconds "
        f"(default on a terminal: {QUIET_S:g})",
    )


def is_wanted(options: Namespace) -> bool:
    """Whether there is anything to do here."""
    return (
        options.display != "none"
        or options.report_silence is not None
        or any((options.screenshot, options.type, options.type_after, options.gpu_screenshot))
        or _on_terminal()
    )


def check_watching(options: Namespace) -> None:
    """Options that contradict each other. Raises `UsageError`."""
    if options.type_after is not None and options.type is None:
        raise UsageError("--type-after says when to type; add --type TEXT")
    if options.display == "text" and options.json:
        raise UsageError("--json needs stdout for itself; leave --display text out")


def _on_terminal() -> bool:
    try:
        return os.isatty(2)
    except OSError:
        return False


@contextmanager
def watched(options: Namespace, machine: Machine) -> Iterator[None]:
    """While entered: the screen is shown, keys are typed, silence is reported."""
    with ExitStack() as stack:
        quiet = options.report_silence or (QUIET_S if _on_terminal() else None)
        if quiet is not None:
            wait = 0.0 if options.report_silence is not None else quiet / 2
            stack.enter_context(Listener(machine, quiet, wait))
        if options.display == "text":
            from pykvm.devices.display import TerminalView

            view = TerminalView(machine.screen, sys.stdout)
            view.start()
            stack.callback(view.stop)
        if options.type is not None:
            stack.enter_context(Typist(machine, options.type, options.type_after))
        try:
            yield
        finally:
            if options.screenshot is not None:
                machine.screen.save_png(options.screenshot)
            if options.gpu_screenshot is not None and machine.gpu is not None:
                machine.gpu.screen().save_png(options.gpu_screenshot)


def _say(report: Any) -> None:
    print(report.text(), file=sys.stderr, flush=True)


class Listener:
    """Reports silence; what that takes is loaded `wait` seconds into the run, if it lasts so long.

    A run whose silence was asked about is reported on also when the guest seems to wait for input.
    """

    def __init__(self, machine: Machine, quiet: float, wait: float) -> None:
        self._machine, self._quiet, self._wait = machine, quiet, wait
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pykvm-listener", daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        if self._wait and self._end.wait(self._wait):
            return
        from pykvm.lab.silence import SilenceWatcher

        with SilenceWatcher(self._machine, _say, after=self._quiet, idle=not self._wait):
            self._end.wait()


class Typist:
    """Types a text on the machine's keyboard, once the guest has shown another one."""

    def __init__(self, machine: Machine, text: str, after: str | None) -> None:
        self._machine = machine
        self._strokes = parse_keys(text)
        self._after = after
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pykvm-typist", daemon=True)

    def __enter__(self) -> Typist:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._shown():
            if self._end.wait(_POLL_S):
                return
        keyboard = self._machine.keyboard
        for is_key, text in self._strokes:
            if is_key:
                keyboard.tap(text)
            else:
                keyboard.type_text(text)

    def _shown(self) -> bool:
        if self._after is None:
            return True
        standard = self._machine.standard
        if standard is not None and self._after.encode() in standard.captured.since(0):
            return True
        try:
            return self._after in self._machine.screen.text()
        except ValueError:  # the screen is being reprogrammed
            return False


def parse_keys(text: str) -> list[tuple[bool, str]]:
    """`{esc}ls\\n` as (is a key, text) pieces. Raises `UsageError` for keys that do not exist."""
    from pykvm.devices.pc import ps2keys
    from pykvm.errors import PykvmError

    text = text.replace("\\n", "\n").replace("\\t", "\t")
    pieces: list[tuple[bool, str]] = []
    while text:
        before, brace, rest = text.partition("{")
        if before:
            pieces.append((False, before))
        name, closed, after = rest.partition("}")
        if brace and not closed:
            raise UsageError(f"--type: {printable(brace + rest)} has no closing brace")
        if brace:
            pieces.append((True, name))
        text = after
    try:
        for is_key, piece in pieces:
            if is_key:
                ps2keys.chord(piece)
            else:
                ps2keys.strokes(piece)
    except PykvmError as error:
        raise UsageError(f"--type: {error}") from None
    return pieces
