"""Ends of level interrupts that KVM saw and did not report.

With the split irqchip KVM reports the EOI of a level interrupt by an exit before the vCPU enters
the guest again (KVM_EXIT_IOAPIC_EOI). A KVM that executes guest code inside one entry may meet the
guest's HLT first: the vCPU sleeps, the exit waits for its next entry, and the IOAPIC believes for
so long that the interrupt is being served. So, where one stays in service for a while, the vCPUs
are asked: a vector that is in no local APIC any more has been ended.
"""

from __future__ import annotations

from threading import Lock

from pykvm.kvm import Vcpu
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.devices.pc import IoApic
    from pykvm.machine.machine import Machine
    from pykvm.machine.msi import MsiSender

FIRST_LOOK_NS, LAST_LOOK_NS = 1_000_000, 64_000_000
_LEVEL = 1 << 15  # of a message's data


class MissedEoi:
    """Between the IOAPIC and the LAPICs: passes messages on, and watches the level ones.

    Costs a timer while a level interrupt is in service, and one look at each vCPU where one is in
    service for 1 ms, then 2, 4 ... 64 ms.
    """

    def __init__(self, machine: Machine, sender: MsiSender) -> None:
        self.machine = machine
        self.ioapic: IoApic | None = None
        self._sender = sender
        self._lock = Lock()
        self._timer = machine.clock.timer(self._on_timer)
        self._wait = 0  # ns until the next look; 0: the timer is not armed
        self._sent: set[int] = set()  # level vectors sent since the round of looks began
        self._missing: set[int] = set()  # vCPUs that have not been looked at in this round
        self._alive: set[int] = set()  # vectors found in LAPICs in this round
        self._ended: set[int] = set()  # vectors ended here, whose exit is still to come

    def send(self, address: int, data: int) -> None:
        """One message to the LAPICs."""
        self._sender.send(address, data)
        if data & _LEVEL:
            with self._lock:
                self._sent.add(data & 0xFF)
                self._arm(FIRST_LOOK_NS)

    def _arm(self, wait: int) -> None:
        if not self._wait:
            self._wait = wait
            self._timer.arm(self.machine.clock.now_ns() + wait)

    def _on_timer(self) -> None:
        """A clock's thread: are there interrupts in service still? Then ask the vCPUs."""
        assert self.ioapic is not None
        serving = self.ioapic.serving()
        with self._lock:
            wait, self._wait = self._wait, 0
            if not serving:
                return
            self._sent.clear()
            self._alive.clear()
            self._missing = {vcpu.id for vcpu in self.machine.vcpus}
            self._arm(min(2 * wait, LAST_LOOK_NS))
        for vcpu in self.machine.vcpus:
            vcpu.kick()

    def look(self, vcpu: Vcpu) -> None:
        """The vCPU is outside the guest, in its own thread, after a kick."""
        with self._lock:
            if vcpu.id not in self._missing:
                return
            lapic = vcpu.get_lapic()
            self._alive.update(lapic.irr, lapic.isr)
            self._missing.discard(vcpu.id)
            if self._missing:
                return
            alive = self._alive | self._sent
        assert self.ioapic is not None
        for vector in self.ioapic.serving() - alive:
            self._ended.add(vector)
            self.ioapic.eoi(vector)

    def reported(self, vector: int) -> None:
        """KVM_EXIT_IOAPIC_EOI: the end of a level interrupt, unless it was found out before."""
        assert self.ioapic is not None
        with self._lock:
            known = vector in self._ended
            self._ended.discard(vector)
        if not known:
            self.ioapic.eoi(vector)
