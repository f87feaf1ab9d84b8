"""Interrupts that wait for a moment which a KVM in software never sees.

Real-mode code that polls (GRUB's menu, option ROMs, DOS programs) opens its interrupt window for
two instructions: `sti; nop; cli`. A KVM whose emulator runs many instructions at a stretch looks
for interrupts at other moments only, and the keyboard waits for minutes. Where an interrupt of the
in-kernel PIC has waited for a tenth of a second while the CPU is in real mode, that CPU is
single-stepped for a while: every instruction is then a moment at which KVM looks. On a board with
a keyboard that is done for typed keys only: nobody waits for the timer.

Experimental, and off unless `machine.interrupt_windows` is set: GRUB's change to protected mode
once ended in a triple fault after it had been stepped through.
"""

from __future__ import annotations

import threading
from types import TracebackType

from pykvm.kvm import Vcpu
from pykvm.kvm.errors import ClosedError, KvmError
from pykvm.kvm.irqchip import PicState
from pykvm.typed import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pykvm.kvm.exits import Exit
    from pykvm.machine.machine import Machine

PERIOD = 0.05  # seconds between two looks at the PIC
MOST_STEPS = 4000  # instructions stepped through at a time: some 60 ms
_DEBUG_EXIT = 4  # KVM_EXIT_DEBUG
_PROTECTED = 1  # CR0.PE
_KEYBOARD = 1 << 1  # IRQ 1


class InterruptWindows:
    """While in force (a context manager), waiting interrupts reach vCPU 0 in real mode.

    `steps` counts the instructions that were stepped through; 0 where the host needs none of this.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._vcpu = machine.vcpus[0]
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._wanted = False
        self._left = 0
        self._keyboard = getattr(machine.board, "keyboard", None)
        self._cared_for = 0xFF if self._keyboard is None else 0
        self.steps = 0

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="pykvm-windows", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        self._wanted = False
        self._stop_stepping()

    def _watch(self) -> None:
        """Looks which interrupts wait; one that waits at two looks is cared for."""
        before = 0
        while not self._end.wait(PERIOD):
            try:
                pic = self._machine.vm.get_irqchip(0)
            except (KvmError, ClosedError):
                return
            assert isinstance(pic, PicState)
            if self._keyboard is not None and self._keyboard.typed_left:
                self._cared_for = _KEYBOARD
            waiting = pic.irr & ~pic.imr & self._cared_for
            if waiting & before:
                self._wanted = True
                self._vcpu.kick()
            before = waiting

    def at_kick(self, vcpu: Vcpu) -> None:
        """In the vCPU's own thread, outside the guest: steps from here, if it is in real mode."""
        if not self._wanted or vcpu is not self._vcpu:
            return
        self._wanted = False
        handlers = self._machine.exit_handlers
        # Somebody else's debugging goes first.
        if self._left or _DEBUG_EXIT in handlers or vcpu.guest_debug.control:
            return
        if vcpu.sregs.cr0 & _PROTECTED:
            return
        self._left = MOST_STEPS
        handlers[_DEBUG_EXIT] = self._stepped
        vcpu.set_guest_debug(singlestep=True)

    def _stepped(self, exit_: Exit) -> bool:
        self.steps += 1
        self._left -= 1
        if self._left <= 0 or self._vcpu.sregs.cr0 & _PROTECTED:
            self._stop_stepping()
        return True

    def _stop_stepping(self) -> None:
        handlers = self._machine.exit_handlers
        if handlers.get(_DEBUG_EXIT) == self._stepped:
            del handlers[_DEBUG_EXIT]
            self._left = 0
            if not self._machine.vm.closed:
                self._vcpu.clear_guest_debug()
