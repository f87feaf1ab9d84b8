"""`FdOwner`: the life of a KVM file descriptor, and the one place where ioctls are issued."""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Callable
from types import TracebackType

from pykvm._native import lib
from pykvm.kvm.constants import header_ioctls
from pykvm.kvm.errors import ClosedError, KvmError
from pykvm.typed import Any, Protocol, Self


class HasFileno(Protocol):
    """A file, socket or other object with a file descriptor."""

    def fileno(self) -> int: ...


FileLike = int | HasFileno


def fileno(file: FileLike) -> int:
    """The descriptor of an int or of anything with `fileno()`."""
    return file if isinstance(file, int) else file.fileno()


class FdOwner:
    """Owns one file descriptor: a context manager with a finalizer; unusable after `close()`.

    `name` stands for the object in messages: "vCPU 0", "this VM".

    Subclasses put work that must precede the close of the descriptor into `_before_close()`, and
    resources that must go even when the object is only garbage into `_at_close()`.
    """

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._cleanups: list[Callable[[], object]] = []
        self._finalizer = weakref.finalize(self, _release, fd, self._cleanups)

    @property
    def fd(self) -> int:
        """The open file descriptor; it stays this object's. Raises `ClosedError`."""
        if self._fd < 0:
            raise self._closed_error()
        return self._fd

    def fileno(self) -> int:
        """The same as `.fd`, for `select` and friends."""
        return self.fd

    @property
    def closed(self) -> bool:
        """Whether `close()` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Closes the descriptor and what depends on it. Closing twice is harmless."""
        if self._fd < 0:
            return
        self._before_close()
        self._fd = -1
        self._finalizer()

    def ioctl(self, request: str | int, argument: Any = 0) -> int:
        """Issues an ioctl and returns its result (>= 0).

        `request` is a name from `pykvm.kvm.ioctls` or a number; `argument` an int, or cffi data of
        the ioctl's structure (a pointer or an array, which the caller keeps alive). The interpreter
        lock is released meanwhile. Raises `KvmError`, `ClosedError`.
        """
        if isinstance(request, str):
            name, number = request, _number(request)
        else:
            from pykvm.kvm.ioctls import name_of

            name, number = name_of(request), request
        self._before_ioctl(name)
        call = lib.pykvm_ioctl_int if isinstance(argument, int) else lib.pykvm_ioctl
        while True:
            fd = self._fd
            if fd < 0:
                raise self._closed_error()
            result: int = call(fd, number, argument)
            if result >= 0:
                return result
            if result == -errno.EINTR and number != _KVM_RUN:
                continue  # Python's own signal handlers have run between the calls
            raise KvmError(name, -result)

    def _before_close(self) -> None:
        """Called once, with the descriptor still open."""

    def _at_close(self, cleanup: Callable[[], object]) -> None:
        """Runs `cleanup` before the descriptor goes. It must not refer to this object."""
        self._cleanups.append(cleanup)

    def _before_ioctl(self, name: str) -> None:
        """Called before every ioctl, with its name; for state that is held back in user space."""

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"{self._name} is closed; make a new one")

    def __enter__(self) -> Self:
        if self._fd < 0:
            raise self._closed_error()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd={self._fd}"
        return f"<{type(self).__name__} {state}>"


def _number(name: str) -> int:
    """The compiler's own number; what its headers lacked is composed in `pykvm.kvm.ioctls`.

    That table is held against the compiler's by a test, and not loaded at every start: composing
    it takes longer than making a VM.
    """
    number = header_ioctls().get(name)
    if number is None:
        from pykvm.kvm.ioctls import IOCTLS

        number = IOCTLS[name].number
    return number


_KVM_RUN = _number("KVM_RUN")


def _release(fd: int, cleanups: list[Callable[[], object]]) -> None:
    try:
        while cleanups:
            cleanups.pop()()
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
