"""Interrupts that a write to an eventfd makes, without user space (KVM API, KVM_IRQFD)."""

from __future__ import annotations

from contextlib import suppress

from pykvm.kvm import Vm
from pykvm.kvm.errors import KvmError
from pykvm.machine.msi import LAPIC_MESSAGES
from pykvm.machine.routes import Routes


class IrqFd:
    """An eventfd that raises a GSI; `remove()` takes it back, after its last interrupt."""

    __slots__ = ("_fd", "_gsi", "_vm")

    def __init__(self, vm: Vm, fd: int, gsi: int) -> None:
        self._vm = vm
        self._fd = fd
        self._gsi = gsi
        vm.assign_irqfd(fd, gsi)

    def remove(self) -> None:
        """Twice is harmless, and so is a VM that is gone."""
        if not self._vm.closed:
            with suppress(KvmError):
                self._vm.deassign_irqfd(self._fd, self._gsi)


def _assign(vm: Vm, fd: int, gsi: int) -> IrqFd | None:
    try:
        return IrqFd(vm, fd, gsi)
    except KvmError:  # too many, or none on this host: somebody listens to the eventfd instead
        return None


class LineEdges:
    """A `LineIrqFd`: edges of GSI `gsi` of the in-kernel interrupt controllers."""

    def __init__(self, vm: Vm, gsi: int) -> None:
        self._vm = vm
        self._gsi = gsi

    def attach(self, fd: int) -> IrqFd | None:
        """Each write to `fd` is an edge."""
        return _assign(self._vm, fd, self._gsi)


class MessageVectors:
    """A `MessageIrqFds`: messages to the in-kernel LAPICs."""

    def __init__(self, vm: Vm, routes: Routes) -> None:
        self._vm = vm
        self._routes = routes

    def vector(self) -> _Vector | None:
        """A vector with a GSI of its own."""
        gsi = self._routes.reserve()
        return None if gsi is None else _Vector(self._vm, self._routes, gsi)


class _Vector:
    """See `MessageVector`."""

    def __init__(self, vm: Vm, routes: Routes, gsi: int) -> None:
        self._vm = vm
        self._routes = routes
        self._gsi = gsi

    def aim(self, address: int, data: int) -> bool:
        """False for an address at which no LAPIC is: the guest chose it."""
        if (address & 0xFFFF_FFFF) >> 20 != LAPIC_MESSAGES:
            return False
        return self._routes.aim(self._gsi, address, data)

    def attach(self, fd: int) -> IrqFd | None:
        """Writes to `fd` send the message."""
        return _assign(self._vm, fd, self._gsi)

    def close(self) -> None:
        """The GSI is free again."""
        self._routes.release(self._gsi)
