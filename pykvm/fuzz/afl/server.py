"""`ForkServer`: what afl-fuzz and its tools talk to, without a fork.

AFL++ starts a target once and asks it, over two pipes, for one run after the other: a word comes
on descriptor 198, the number of a process and then its wait status go out on 199. The coverage map
and, if both sides want it, the input are System V shared memory. (AFL++'s docs and
src/afl-forkserver.c; the first form of the protocol, which every version understands.)

A VM that is put back needs no process for a run. But when a run takes too long AFL++ kills the
process that it was told of: it gets one that does nothing, and its death ends the run.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import struct
from collections.abc import Callable, Sequence

from pykvm.children import die_with_parent
from pykvm.fuzz.afl.numbers import VARIABLE, Counter
from pykvm.fuzz.afl.sharedmemory import SharedMemory
from pykvm.fuzz.coverage import Coverage
from pykvm.fuzz.dictionary import words
from pykvm.fuzz.errors import FuzzError
from pykvm.fuzz.result import Outcome, Result
from pykvm.fuzz.ring3 import Ring3

CONTROL, STATUS = 198, 199
_WORD = struct.Struct("<I")
_ENABLED, _MAPSIZE, _SHARED_INPUT, _WORDS = 0x8000_0001, 0x4000_0000, 0x0100_0000, 0x1000_0000
_MAP, _INPUT = "__AFL_SHM_ID", "__AFL_SHM_FUZZ_ID"
_LARGEST = 1 << 20  # bytes of an input, as AFL++ has it
_PATIENCE = 60.0  # seconds that AFL++ may take to call a hang one

# What a process dies of that does the same natively.
SIGNALS = {
    "#DE": signal.SIGFPE, "#MF": signal.SIGFPE, "#XM": signal.SIGFPE, "#UD": signal.SIGILL,
    "#BP": signal.SIGTRAP, "#DB": signal.SIGTRAP, "#AC": signal.SIGBUS, "failed": signal.SIGABRT,
}  # fmt: skip


def wait_status(result: Result) -> int:
    """A result as waitpid(2) would tell it."""
    if result.outcome is Outcome.OK:
        return 0
    if result.crash is None:
        return signal.SIGKILL
    return SIGNALS.get(result.crash.kind, signal.SIGSEGV)


class Decoy:
    """The process that AFL++ may kill."""

    def __init__(self) -> None:
        self._alive = False
        self.pid = 0
        self.start()

    def start(self) -> None:
        """A new one, if the last is dead."""
        if self._alive:
            return
        ready, told = os.pipe()
        leave = die_with_parent()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if leave is not None:
                    leave()
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
                    signal.signal(number, signal.SIG_DFL)
                os.write(told, b"x")
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                while True:
                    signal.pause()
            finally:
                os._exit(0)
        os.close(told)
        os.read(ready, 1)
        os.close(ready)
        self._handle = os.pidfd_open(self.pid)
        self._alive = True

    def dead(self, patience: float = 0) -> bool:
        """Whether it was killed; waits up to `patience` seconds for that."""
        if self._alive and select.select([self._handle], [], [], patience)[0]:
            self._reap()
        return not self._alive

    def _reap(self) -> None:
        os.waitpid(self.pid, 0)
        os.close(self._handle)
        self._alive = False

    def close(self) -> None:
        """Ends it."""
        if self._alive:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()


class ForkServer:
    """Serves one target until AFL++ hangs up.

    - `source`: gives the input where it does not come in shared memory.
    - `words`: of the target, for the dictionary; afl-fuzz asks for them.
    - `control`, `status`: descriptors of the two pipes.

    Raises `FuzzError` where AFL++ is not there.
    """

    def __init__(
        self,
        target: Ring3,
        source: Callable[[], bytes],
        *,
        words: Sequence[bytes] = (),
        control: int = CONTROL,
        status: int = STATUS,
    ) -> None:
        self.target, self.source = target, source
        self._words = b"".join(bytes([len(word)]) + word for word in words)
        self._control, self._status = control, status
        if not (_is_open(control) and _is_open(status)):
            raise FuzzError(
                "this is not run by AFL++; start it with: afl-fuzz -i SEEDS -o OUT -- "
                "pykvm fuzz serve TARGET"
            )
        self._map = SharedMemory(_MAP, Coverage.size)
        self._input: SharedMemory | None = None
        if os.environ.get(_INPUT):
            self._input = SharedMemory(_INPUT, _WORD.size)
        self.counter = Counter(os.environ.get(VARIABLE))

    def run(self) -> None:
        """Until the other side hangs up."""
        before = signal.signal(signal.SIGCHLD, lambda *_: None)  # a death interrupts KVM_RUN
        decoy = Decoy()
        self.target.interrupted = decoy.dead
        try:
            self._hello()
            while self._ask() is not None:
                decoy.start()
                self._tell(decoy.pid)
                self._tell(self._one(decoy))
        except BrokenPipeError:
            pass
        finally:
            self.counter.write()
            self.target.interrupted = None
            decoy.close()
            signal.signal(signal.SIGCHLD, before)

    def _hello(self) -> None:
        word = _ENABLED | _MAPSIZE | (Coverage.size - 1) << 1
        if self._input is None:
            self._tell(word)
            return
        # Only with shared input does every tool answer to what is offered here.
        self._tell(word | _SHARED_INPUT | (_WORDS if self._words else 0))
        answer = self._ask() or 0
        if answer & _WORDS == _WORDS:
            self._tell(len(self._words))
            os.write(self._status, self._words)
        if answer & _SHARED_INPUT == 0:
            self._input = None

    def _one(self, decoy: Decoy) -> int:
        result = self.target.execute(self._data())
        self._map.view[: Coverage.size] = self.target.coverage.view
        self.counter.add(result)
        if result.outcome is Outcome.HANG:
            # Our own limit may come first: what this is called is for AFL++ to say.
            decoy.dead(_PATIENCE)
        return wait_status(result)

    def _data(self) -> bytes:
        limit = self.target.room
        if self._input is None:
            return self.source()[:limit]
        (length,) = _WORD.unpack_from(self._input.view)
        return bytes(self._input.view[_WORD.size : _WORD.size + min(length, limit)])

    def _ask(self) -> int | None:
        data = b""
        while len(data) < _WORD.size:
            piece = os.read(self._control, _WORD.size - len(data))
            if not piece:
                return None
            data += piece
        return int(_WORD.unpack(data)[0])

    def _tell(self, word: int) -> None:
        os.write(self._status, _WORD.pack(word))

    def close(self) -> None:
        """Lets go of the shared memory."""
        self._map.close()
        if self._input is not None:
            self._input.close()


def from_file(path: str) -> Callable[[], bytes]:
    """Inputs are what is in this file then (`@@` of afl-fuzz)."""

    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read(_LARGEST)

    return read


def from_stdin() -> bytes:
    """Inputs come as a file on descriptor 0, as AFL++ does without `@@`."""
    with contextlib.suppress(OSError):  # a pipe has one input only
        os.lseek(0, 0, os.SEEK_SET)
    data = b""
    while len(data) < _LARGEST and (piece := os.read(0, _LARGEST - len(data))):
        data += piece
    return data


def serve(target: Ring3, path: str | None = None) -> int:
    """Serves AFL++ with inputs from `path`, stdin or shared memory; how many runs it was.

    Without a fork server (afl-showmap for one input) it is one run, and this process ends as that.
    """
    source = from_stdin if path is None else from_file(path)
    if os.environ.get(_MAP) and not _is_open(CONTROL):
        return _once(target, source)
    server = ForkServer(target, source, words=words(target.program))
    try:
        server.run()
    finally:
        server.close()
    return server.counter.numbers.runs


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _once(target: Ring3, source: Callable[[], bytes]) -> int:
    memory = SharedMemory(_MAP, Coverage.size)
    result = target.execute(source()[: target.room])
    memory.view[: Coverage.size] = target.coverage.view
    memory.close()
    number = wait_status(result)
    if number:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    return 1
