"""What the protocol needs of a debuggee. `LabTarget` is the real one; tests have a fake."""

from __future__ import annotations

from pykvm.enums import StrEnum
from pykvm.errors import PykvmError
from pykvm.lab.gdb.descriptions import Description, Register
from pykvm.typed import NamedTuple, Protocol

# GDB's own numbers of signals (include/gdb/signals.def); these are the same as Linux's.
SIGINT, SIGTRAP, SIGABRT, SIGSEGV = 2, 5, 6, 11


class GdbError(PykvmError):
    """GDB asked for something that is not possible; the text says why."""


class Stop(NamedTuple):
    """Why the guest stands still.

    `cpu` counts from 0. `reason` is empty, or as it stands in a stop reply: "swbreak:",
    "watch:ffff8000", "replaylog:begin". `text`: a line for the user. `exit_code` is set when
    the guest ended; there is nothing to continue then, nor when it `crashed`.
    """

    signal: int
    cpu: int = 0
    reason: str = ""
    text: str = ""
    exit_code: int | None = None
    crashed: bool = False


class How(StrEnum):
    """How to go on."""

    CONTINUE = "continue"
    STEP = "step"
    STEP_RANGE = "step range"
    BACK = "reverse continue"
    STEP_BACK = "reverse step"


class Resume(NamedTuple):
    """What GDB wants to happen next.

    `cpu`: who steps, or is looked at first. `only`: the others stand still (GDB's
    `scheduler-locking`). `start`, `end`: linear addresses, for `STEP_RANGE`: steps as long as
    RIP is in [start, end).
    """

    how: How
    cpu: int = 0
    only: bool = False
    start: int = 0
    end: int = 0


class Point(StrEnum):
    """The kinds of `Z` packets; the value is the digit."""

    SOFTWARE = "0"
    HARDWARE = "1"
    WRITE = "2"
    READ = "3"
    ACCESS = "4"


class Registers(Protocol):
    """One vCPU's registers."""

    def read(self, register: Register) -> bytes:
        """Little-endian bytes."""

    def write(self, register: Register, data: bytes) -> None:
        """Sets one."""


class Target(Protocol):
    """A debuggee. Addresses are linear (guest-virtual); errors are `PykvmError`."""

    @property
    def cpus(self) -> int:
        """How many vCPUs there are: threads 1 to n."""

    @property
    def stop(self) -> Stop:
        """Why it stands still now."""

    @property
    def can_reverse(self) -> bool:
        """Whether there is a recording to go back in."""

    def describe(self) -> Description:
        """The registers, for a connection that begins now."""

    def cpu_text(self, cpu: int) -> str:
        """What `info threads` shows of a vCPU."""

    def registers(self, cpu: int) -> Registers:
        """A vCPU's registers, until it runs again."""

    def read(self, cpu: int, address: int, length: int) -> bytes:
        """Memory as the vCPU maps it: what there is up to the first hole."""

    def write(self, cpu: int, address: int, data: bytes) -> None:
        """Writes memory as the vCPU maps it."""

    def insert(self, cpu: int, point: Point, address: int, length: int) -> None:
        """Sets a breakpoint or watchpoint; the same one twice is one."""

    def remove(self, point: Point, address: int, length: int) -> None:
        """Takes one away; one that is not there is no error."""

    def remove_all(self) -> None:
        """Takes away all that `insert` set."""

    def resume(self, resume: Resume) -> Stop:
        """Runs until something happens. Blocks; `interrupt` ends it."""

    def interrupt(self) -> None:
        """From another thread: `resume` is to end soon, also one that is just about to begin."""

    def reset(self) -> None:
        """The machine as it was after loading; stands still."""

    def monitor(self, cpu: int, line: str) -> str:
        """A `monitor` command; the text for the user."""
