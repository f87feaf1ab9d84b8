"""The host's side of the guest protocol: guests report stages, failed assertions and their end.

The guest's side, with the register table, is `guests/lib/protocol.h`; a C guest uses
`GUEST_SYNC`, `GUEST_ASSERT`, `GUEST_CASE` and `GUEST_DONE`. In a host test:

    protocol = GuestProtocol(machine.memory)
    machine.add_device(protocol, pio=GuestProtocol.PORT, length=GuestProtocol.LENGTH)
    machine.load("selftest")
    machine.run(timeout=5)
    protocol.check()                # raises GuestAssertion with the guest's file and line
"""

from __future__ import annotations

from pykvm.devices.base import Device, StateReader
from pykvm.errors import PykvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.typed import Protocol

    class GuestRam(Protocol):
        """The part of `pykvm.memory.GuestMemory` that is used here."""

        def read(self, gpa: int, n: int) -> bytes: ...


__all__ = ["CaseResult", "GuestAssertion", "GuestProtocol", "GuestProtocolError", "Sync"]

_VERSION = 1
_U32 = 0xFFFF_FFFF
_ID, _SYNC, _FILE, _LINE, _TEXT, _ARG, _CASE, _DONE = range(0, 32, 4)

MOST_WORDS = 16  # appended by ARG to one report
MOST_RECORDS = 1000  # of each kind; a guest in a loop must not fill the host's memory
LONGEST_TEXT = 512  # bytes


class GuestProtocolError(PykvmError):
    """A guest did not report what it should have: an end, or a test case."""


class GuestAssertion(PykvmError, AssertionError):
    """An assertion failed in the guest: `file`, `line`, `expression`, the appended 32-bit `words`
    (for a comparison: left and right, two words each, low first), and the test `case` or None."""

    def __init__(
        self, file: str, line: int, expression: str, words: tuple[int, ...], case: str | None
    ) -> None:
        self.file = file
        self.line = line
        self.expression = expression
        self.words = words
        self.case = case
        super().__init__(f"{file}:{line}: guest assertion failed: {expression}{self._values()}")

    def _values(self) -> str:
        values = [low | high << 32 for low, high in zip(*[iter(self.words)] * 2, strict=False)]
        return f" ({' vs '.join(f'{value:#x}' for value in values)})" if values else ""


class Sync:
    """The guest reached `stage`; `words` were appended to it."""

    __slots__ = ("stage", "words")

    def __init__(self, stage: int, words: tuple[int, ...]) -> None:
        self.stage = stage
        self.words = words

    def __repr__(self) -> str:
        return f"Sync(stage={self.stage}, words={self.words})"


class CaseResult:
    """One run of a guest's test case: what failed in it, and whether it came to its end."""

    __slots__ = ("assertions", "ended", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.assertions: list[GuestAssertion] = []
        self.ended = False

    @property
    def passed(self) -> bool:
        """It ended and nothing failed."""
        return self.ended and not self.assertions


class GuestProtocol(Device):
    """Collects what a guest reports, and answers its SYNCs.

    `memory` is where the texts are read (`GuestMemory`). The callbacks run on the vCPU's thread;
    `on_sync` returns the answer that the guest reads back (None: 0), and any of them may raise to
    stop the machine. `syncs`, `assertions` and `cases` keep the first 1000 of each; `done` is the
    status that the guest ended with, or None.
    """

    name = "guest-protocol"
    access_sizes = (4,)
    max_access = 4
    PORT = 0x5E0
    LENGTH = 32
    MAGIC = 0x766B_7970  # "pykv"

    def __init__(
        self,
        memory: GuestRam,
        *,
        on_sync: Callable[[Sync], int | None] | None = None,
        on_assert: Callable[[GuestAssertion], object] | None = None,
        on_done: Callable[[int], object] | None = None,
    ) -> None:
        self._memory = memory
        self._on_sync = on_sync
        self._on_assert = on_assert
        self._on_done = on_done
        self.syncs: list[Sync] = []
        self.assertions: list[GuestAssertion] = []
        self.cases: list[CaseResult] = []
        self.done: int | None = None
        self._case: CaseResult | None = None
        self._case_address = 0
        self._file = self._line = self._answer = 0
        self._words: list[int] = []

    # -- what tests ask --------------------------------------------------------------------------

    def check(self) -> None:
        """Raise the first `GuestAssertion`, or `GuestProtocolError` if the guest has not ended
        through the protocol or ended with a status other than 0."""
        if self.assertions:
            raise self.assertions[0]
        if self.done is None:
            where = f" in case {self._case.name}" if self._case else ""
            raise GuestProtocolError(f"the guest stopped{where} without reporting that it is done")
        if self.done:
            raise GuestProtocolError(f"the guest reported status {self.done}")

    def check_case(self, name: str) -> None:
        """Raise what went wrong in test case `name`: its first `GuestAssertion`, or
        `GuestProtocolError` if it did not run or did not come to its end."""
        runs = [case for case in self.cases if case.name == name]
        if not runs:
            raise GuestProtocolError(f"the guest did not run case {name}")
        for case in runs:
            if case.assertions:
                raise case.assertions[0]
            if not case.ended:
                raise GuestProtocolError(f"the guest stopped in the middle of case {name}")

    # -- what the guest sees ---------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """ID gives the magic number, SYNC the answer to the last sync, the others 0."""
        if offset == _ID:
            return self.MAGIC
        return self._answer if offset == _SYNC else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Latch a register, or report. Writes between the registers are ignored."""
        value &= _U32
        if offset == _SYNC:
            self._sync(value)
        elif offset == _FILE:
            self._file = value
        elif offset == _LINE:
            self._line = value
        elif offset == _TEXT:
            self._assertion(value)
        elif offset == _ARG:
            if len(self._words) < MOST_WORDS:
                self._words.append(value)
        elif offset == _CASE:
            self._begin_or_end(value)
        elif offset == _DONE:
            self.done = value
            if self._on_done is not None:
                self._on_done(value)

    def _take_words(self) -> tuple[int, ...]:
        words = tuple(self._words)
        self._words.clear()
        return words

    def _sync(self, stage: int) -> None:
        sync = Sync(stage, self._take_words())
        if len(self.syncs) < MOST_RECORDS:
            self.syncs.append(sync)
        answer = self._on_sync(sync) if self._on_sync is not None else None
        self._answer = (answer or 0) & _U32

    def _assertion(self, text: int) -> None:
        case = self._current_case()
        failed = GuestAssertion(
            self._text(self._file),
            self._line,
            self._text(text),
            self._take_words(),
            case.name if case else None,
        )
        if len(self.assertions) < MOST_RECORDS:
            self.assertions.append(failed)
            if case:
                case.assertions.append(failed)
        if self._on_assert is not None:
            self._on_assert(failed)

    def _begin_or_end(self, name: int) -> None:
        case = self._current_case()
        if case is not None and name == 0:
            case.ended = True
        self._case_address = name
        self._case = None
        self._current_case()

    def _current_case(self) -> CaseResult | None:
        if self._case is None and self._case_address:
            case = self._case = CaseResult(self._text(self._case_address))
            if len(self.cases) < MOST_RECORDS:
                self.cases.append(case)
        return self._case

    def _text(self, address: int) -> str:
        """The NUL-terminated text at a guest-physical address, made safe to print."""
        data = bytearray()
        while len(data) < LONGEST_TEXT:
            try:  # byte by byte: it may end right at the end of memory
                byte = self._memory.read(address + len(data), 1)
            except PykvmError:
                if not data:
                    return f"<no text at {address:#x}>"
                break
            if byte == b"\0":
                break
            data += byte
        return "".join(c if c.isprintable() else "?" for c in data.decode("utf-8", "replace"))

    # -- life ------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything, as before the guest's start."""
        self.syncs = []
        self.assertions = []
        self.cases = []
        self.done = self._case = None
        self._case_address = self._file = self._line = self._answer = 0
        self._words = []

    def save(self) -> dict[str, object]:
        """The registers. What was collected is the host's and stays with it."""
        return {
            "version": _VERSION,
            "file": self._file,
            "line": self._line,
            "answer": self._answer,
            "words": list(self._words),
            "case": self._case_address,
            "done": self.done,
        }

    def load(self, state: dict[str, object]) -> None:
        """Take over registers; a case that was running is found again by its name's address."""
        take = StateReader(self.name, state, _VERSION)
        file, line = take.integer("file", _U32), take.integer("line", _U32)
        answer, words = take.integer("answer", _U32), take.integers("words", MOST_WORDS, _U32)
        case, done = take.integer("case", _U32), take.optional("done", _U32)
        take.finish()
        self.reset()
        self._file, self._line, self._answer, self._words = file, line, answer, words
        self._case_address, self.done = case, done
