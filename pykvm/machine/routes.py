"""The VM's table of interrupt routes: its one owner.

KVM takes the table whole (KVM_SET_GSI_ROUTING). The interrupt controllers' pins have the GSIs below
24; messages that eventfds send (irqfd) get GSIs above them.
"""

from __future__ import annotations

from threading import Lock

from pykvm.kvm import Vm
from pykvm.kvm.errors import KvmError
from pykvm.kvm.irqchip import MsiRoute, Route
from pykvm.machine.boards import layout
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Routes:
    """Pins and messages of one VM. Thread-safe."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._lock = Lock()
        self._pins: list[Route] = vm.gsi_routes
        self._messages: dict[int, MsiRoute | None] = {}
        self._limit = vm.check_extension("KVM_CAP_IRQ_ROUTING")

    def set_pins(self, routes: Iterable[Route]) -> None:
        """Where the controllers' pins lead. Raises `KvmError`; then nothing has changed."""
        with self._lock:
            before, self._pins = self._pins, list(routes)
            try:
                self._commit()
            except KvmError:
                self._pins = before
                raise

    def reserve(self) -> int | None:
        """A GSI for a message, which leads nowhere yet; None when KVM has no more."""
        with self._lock:
            gsi = layout.IOAPIC_PINS
            while gsi in self._messages:
                gsi += 1
            if gsi >= self._limit:
                return None
            self._messages[gsi] = None
            return gsi

    def aim(self, gsi: int, address: int, data: int) -> bool:
        """The GSI sends this message from now on; False if KVM does not take it."""
        with self._lock:
            before = self._messages[gsi]
            self._messages[gsi] = MsiRoute(gsi, address, data)
            try:
                self._commit()
            except KvmError:
                self._messages[gsi] = before
                return False
            return True

    def release(self, gsi: int) -> None:
        """The GSI is free again; nothing is attached to it."""
        with self._lock:
            if self._messages.pop(gsi, None) is not None and not self._vm.closed:
                self._commit()

    def _commit(self) -> None:
        messages = [route for route in self._messages.values() if route is not None]
        self._vm.set_gsi_routing([*self._pins, *messages])
