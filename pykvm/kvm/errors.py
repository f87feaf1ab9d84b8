"""What can go wrong between pykvm and the kernel."""

from __future__ import annotations

import errno as _errno
import os

from pykvm.errors import PykvmError
from pykvm.typed import Any


class KvmError(PykvmError, OSError):
    """The kernel refused an ioctl, or would have.

    `.ioctl`: its name ("KVM_SET_USER_MEMORY_REGION"). `.errno`: the error number. `.argument`: what
    was refused ("gpa=0x1000", "MSR 0x1b"), None where that cannot be known. `.hint`: why, and what
    to do about it, "" where unknown. `str()` is all of it in one sentence.
    """

    ioctl: str
    argument: str | None
    hint: str

    def __init__(
        self, ioctl: str, errno: int, argument: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(errno, os.strerror(errno))
        self.ioctl = ioctl
        self.argument = argument
        self.hint = hint or _GENERAL_HINTS.get(errno, "")

    def __str__(self) -> str:
        number = self.errno or 0
        code = _errno.errorcode.get(number, str(number))
        what = f" {self.argument}" if self.argument else ""
        why = f": {self.hint}" if self.hint else ""
        return f"{self.ioctl} refused{what} ({code}, {self.strerror}){why}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.ioctl, self.errno, self.argument, self.hint))

    def explained(self, argument: str | None = None, hint: str = "") -> KvmError:
        """This error with what the caller of the ioctl knows about it: `raise e.explained(...)`."""
        self.argument = argument or self.argument
        self.hint = hint or self.hint
        return self


class InvalidArgument(KvmError, ValueError):
    """An argument that pykvm refused itself, knowing that the kernel would say no less clearly."""

    def __init__(
        self, ioctl: str, argument: str | None, hint: str, errno: int = _errno.EINVAL
    ) -> None:
        KvmError.__init__(self, ioctl, errno, argument, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.ioctl, self.argument, self.hint, self.errno))


class Unsupported(KvmError):
    """The host's KVM lacks what was asked for. `.hint` says what would have it."""

    def __init__(
        self, ioctl: str, argument: str | None, hint: str, errno: int = _errno.EOPNOTSUPP
    ) -> None:
        super().__init__(ioctl, errno, argument, hint)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.ioctl, self.argument, self.hint, self.errno))


class KvmUnavailable(KvmError):
    """/dev/kvm is missing, closed to this user, or not what pykvm needs. `str()` has the remedy."""

    def __init__(self, path: str, errno: int, problem: str, remedy: str) -> None:
        super().__init__("open", errno, path, f"{problem}; {remedy}")
        self.path = path
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.path, self.errno, self.problem, self.remedy))


class ClosedError(PykvmError):
    """Use of an object after its `close()`; the message names the object."""


_GENERAL_HINTS = {
    _errno.ENOTTY: "this kernel does not have that ioctl for this kind of file",
    _errno.ENOMEM: "the host is out of memory",
    _errno.EMFILE: "this process has too many open files; raise `ulimit -n`",
    _errno.ENFILE: "the host has too many open files",
    _errno.EIO: "the VM is dead: another process or an earlier failure ended it; make a new one",
}
