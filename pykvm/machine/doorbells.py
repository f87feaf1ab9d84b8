"""Register writes of the guest that signal an eventfd, without an exit (KVM API, KVM_IOEVENTFD)."""

from __future__ import annotations

from contextlib import suppress

from pykvm.kvm import Vm
from pykvm.kvm.errors import KvmError


class Doorbell:
    """One of them; `remove()` lets the writes exit again."""

    __slots__ = ("_address", "_fd", "_length", "_match", "_pio", "_vm")

    def __init__(
        self, vm: Vm, fd: int, address: int, length: int, pio: bool, match: int | None
    ) -> None:
        self._vm = vm
        self._fd = fd
        self._address = address
        self._length = length
        self._pio = pio
        self._match = match
        vm.assign_ioeventfd(fd, address, length, pio=pio, datamatch=match)

    def remove(self) -> None:
        """Harmless where the VM is gone."""
        if not self._vm.closed:
            with suppress(KvmError):
                self._vm.deassign_ioeventfd(
                    self._fd, self._address, self._length, pio=self._pio, datamatch=self._match
                )


class IoEventFds:
    """`Doorbells` of a VM. Writes that KVM cannot take (it has room for 1000) exit as before."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        # Writes of any length need no decoding of the instruction on VMX hosts.
        self._any_length = bool(vm.check_extension("KVM_CAP_IOEVENTFD_ANY_LENGTH"))

    def add(
        self, fd: int, kind: str, address: int, length: int, match: int | None
    ) -> Doorbell | None:
        """See `Doorbells.add`."""
        if match is None and self._any_length:
            length = 0
        try:
            return Doorbell(self._vm, fd, address, length, kind == "pio", match)
        except KvmError:
            return None
