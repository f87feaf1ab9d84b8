"""A 16550A UART, as the PC's serial ports have it.

Registers, FIFOs, interrupts and loopback follow the PC16550D data sheet. Where a chip leaves room:

- Sending takes no time: THR and the shift register are empty again after each write. Only automatic
  CTS flow control (MCR bit 5, as the TL16C550C has it) holds characters back, while CTS is low.
- The line format (LCR) sets the length of the character time-out and `baud`, and changes no data.
- The host end honours flow control: it never sends into a full FIFO. A guest that has raised RTS
  once since reset stops input by lowering it; one that never touched RTS gets input all the same.
- As on a PC, MCR.OUT2 lets the interrupt out to the line; in loopback mode too, as in super-I/O
  chips.
- A wider access than a byte reaches the registers one by one, in ascending order.
"""

from __future__ import annotations

from _thread import allocate_lock

from pykvm.devices.base import Clock, Device, IrqLine, MonotonicClock, NullIrqLine
from pykvm.devices.uart_registers import UartRegisters
from pykvm.devices.uart_state import (
    FCR,
    FCR_ENABLE,
    FIFO_DEPTH,
    IER_RDI,
    IER_THRI,
    IIR_FIFOS,
    IIR_NONE,
    IIR_THRE,
    LCR_DLAB,
    LSR_BI,
    LSR_DR,
    LSR_ERRORS,
    LSR_FE,
    LSR_PE,
    LSR_TEMT,
    LSR_THRE,
    MCR,
    MCR_LOOP,
    MCR_OUT2,
    MSR_CTS,
    MSR_DCD,
    MSR_DELTAS,
    MSR_DSR,
    MSR_RI,
    UartState,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.devices.chardev.base import Chardev, ChardevEvent

#: The characters as `bytes`, so that the transmit path builds none.
_CHARACTERS = tuple(bytes((code,)) for code in range(256))


def _discard(data: bytes) -> None:
    """The output of a UART that nothing is connected to."""


class Uart16550(UartRegisters, Device):
    """A 16550A with eight registers.

    `irq` is driven with levels. `output` gets each sent character, on the vCPU's thread and with no
    lock held. `on_ready` is called when input that `receive` refused may be offered again.
    `connect` sets both for a back end. `clock_hz` is the frequency at the XIN pin. Without a
    `clock` the UART has a `MonotonicClock` of its own.

    Thread-safe: vCPU threads, a back end's reader and timers may come in at the same time.
    """

    LENGTH = 8

    def __init__(
        self,
        irq: IrqLine | None = None,
        output: Callable[[bytes], object] | None = None,
        clock: Clock | None = None,
        *,
        on_ready: Callable[[], object] | None = None,
        clock_hz: int = 1_843_200,
        out2_gates_irq: bool = True,
        name: str = "uart16550",
    ) -> None:
        self._own_clock: MonotonicClock | None = None
        if clock is None:
            clock = self._own_clock = MonotonicClock()
        super().__init__(clock, clock_hz)
        self.name = name
        self.on_ready = on_ready
        self._irq: IrqLine = irq or NullIrqLine()
        self._output: Callable[[bytes], object] = output or _discard
        self._gated = out2_gates_irq
        self._lock = allocate_lock()
        self._level = False
        self._closed = False
        self._timer = clock.timer(self._on_timer)
        self._timer_at: int | None = None
        self._refused = False  # the back end has more input than was taken
        self._offer_at: int | None = None  # when it is asked again at the latest
        self._settle()

    # -- what the guest does -------------------------------------------------------------------

    def write(self, offset: int, size: int, value: int) -> None:
        """A register write. Offset 0 with DLAB clear sends a character."""
        if offset == 0 and self._direct and size == 1:
            self._output(_CHARACTERS[value & 0xFF])
            return
        if size != 1:
            for index in range(min(size, 8)):
                self.write(offset + index, 1, value >> 8 * index)
            return
        value &= 0xFF
        if offset == 0 and not self._state.lcr & LCR_DLAB:
            self._send(value)
            return
        with self._lock:
            self._write_register(offset, value)
            self._settle()
        if offset in (FCR, MCR):
            self._follow_up()

    def read(self, offset: int, size: int) -> int:
        """A register read, with its side effects."""
        if size != 1:
            return sum(self.read(offset + i, 1) << 8 * i for i in range(min(size, 8)))
        state = self._state
        if offset == 5:
            return self._line_status(state)
        if offset == 0 and not state.lcr & LCR_DLAB:
            return self._take_character()
        if offset == 2:
            return self._identify()
        if offset == 6:
            with self._lock:
                value = state.msr
                state.msr &= ~MSR_DELTAS
                self._update_irq()
            return value
        if offset == 0:
            return state.divisor & 0xFF
        if offset == 1:
            return state.divisor >> 8 if state.lcr & LCR_DLAB else state.ier
        if offset == 3:
            return state.lcr
        if offset == 4:
            return state.mcr
        return state.scr if offset == 7 else 0xFF

    def _line_status(self, state: UartState) -> int:
        # Drivers poll this register: no lock while there is no error to clear.
        value = state.lsr
        if value & LSR_ERRORS:
            with self._lock:
                value = state.lsr
                state.lsr &= ~LSR_ERRORS
                state.mark_fifo_error()
                self._update_irq()
        if self._refused and not value & LSR_DR and not state.ier & IER_RDI:
            self._offer()  # a guest that polls has seen that it got everything
        return value

    def _identify(self) -> int:
        with self._lock:
            state = self._state
            identity = self._interrupt(0 if state.timeout_at is None else self._clock.now_ns())
            value = identity | IIR_FIFOS if state.fcr & FCR_ENABLE else identity
            if identity == IIR_THRE:
                state.thre_pending = False
                self._update_irq()
        if identity == IIR_NONE and self._refused:
            # The end of an interrupt handler. More input any earlier would keep it there: Linux
            # complains of "too much work" when a UART never runs dry.
            self._offer()
        return value

    def _take_character(self) -> int:
        with self._lock:
            state = self._state
            if state.rx:
                self._pop()
                if self._refused and not state.rx and self.on_ready is not None:
                    # For guests that look neither at LSR nor at IIR afterwards.
                    self._offer_at = self._clock.now_ns() + self._timeout_ns
                    self._arm(self._offer_at)
                self._update_irq()
            return state.last

    # -- the transmitter -----------------------------------------------------------------------

    def _send(self, value: int) -> None:
        """A write to THR that is more than handing a character to the back end."""
        with self._lock:
            state = self._state
            state.thre_pending = False
            self._update_irq()  # drops the line, so that raising it again is an edge
            looped = state.mcr & MCR_LOOP
            if looped:
                self._push(value, 0)
            elif state.holding:
                if len(state.tx) < (FIFO_DEPTH if state.fcr & FCR_ENABLE else 1):
                    state.tx.append(value)
                else:
                    state.tx[-1] = value  # overwritten: the guest did not look at THRE
                state.lsr &= ~(LSR_THRE | LSR_TEMT)
                self._settle()
                return
        # Sent before THRE rises: a second vCPU that takes the interrupt must come later.
        if not looped:
            self._output(_CHARACTERS[value])
        self._sent()

    def _sent(self) -> None:
        with self._lock:
            self._transmitter_empty()
            self._settle()

    def _follow_up(self) -> None:
        """After a change of the control registers or the modem inputs: let go what was held."""
        state = self._state
        if state.tx and not state.holding:
            with self._lock:
                data = bytes(state.tx)
                state.tx.clear()
                looped = state.mcr & MCR_LOOP
                for value in data if looped else b"":
                    self._push(value, 0)
            if not looped:
                self._output(data)
            self._sent()
        if self._refused:
            self._offer()

    # -- the receiver --------------------------------------------------------------------------

    def receive(self, data: bytes) -> int:
        """Characters from the host; gives how many of them were taken, from the front.

        None are taken in loopback mode or while the guest holds RTS low, at most 16 with the FIFO
        enabled, 1 without. `on_ready` is called when offering the rest makes sense.
        """
        with self._lock:
            taken = 0 if self._closed else min(self._room(), len(data))
            if taken < len(data):
                self._refused = True
            if taken <= 0:
                return 0
            for value in data[:taken]:
                self._push(value, 0)
            self._offer_at = None
            self._update_irq()
        return taken

    def receive_break(self) -> None:
        """A break condition from the host: a zero character marked BI. Overruns a full FIFO."""
        self.inject(0, break_=True)

    def inject(
        self,
        character: int,
        *,
        parity_error: bool = False,
        framing_error: bool = False,
        break_: bool = False,
    ) -> None:
        """One character off the line, with errors, heedless of flow control (tests, fuzzing)."""
        flags = LSR_PE * parity_error | LSR_FE * framing_error | LSR_BI * break_
        with self._lock:
            if not self._state.mcr & MCR_LOOP:
                self._push(character & 0xFF, flags)
                self._update_irq()

    def _offer(self) -> None:
        """Ask the back end for what was refused, if there is room now."""
        with self._lock:
            if not self._refused or self._room() <= 0:
                return
            self._refused = False
            self._offer_at = None
        if self.on_ready is not None:
            self.on_ready()

    # -- interrupts and time -------------------------------------------------------------------

    def _update_irq(self) -> None:
        state = self._state
        # Only the time-out looks at the time; one look, so that it is either pending or armed.
        due = state.timeout_at
        now = 0 if due is None else self._clock.now_ns()
        identity = self._interrupt(now)
        if due is not None and now < due and state.ier & IER_RDI and len(state.rx) < state.trigger:
            self._arm(due)
        level = identity != IIR_NONE and (not self._gated or state.mcr & MCR_OUT2 != 0)
        if level != self._level and not self._closed:
            self._level = level
            self._irq.set(level)

    def _settle(self) -> None:
        """Recompute what follows from the control registers."""
        state = self._state
        self._timeout_ns = state.timeout_ns(self.clock_hz)
        #: THR writes need not do more than hand the character over.
        self._direct = not (
            state.lcr & LCR_DLAB
            or state.mcr & MCR_LOOP
            or state.ier & IER_THRI
            or state.tx
            or state.holding
        )
        self._update_irq()

    def _arm(self, deadline: int) -> None:
        # A timer armed for earlier finds the later deadline when it fires: most never need to.
        if (self._timer_at is None or deadline < self._timer_at) and not self._closed:
            self._timer_at = deadline
            self._timer.arm(deadline)

    def _on_timer(self) -> None:
        with self._lock:
            self._timer_at = None
            if self._closed:
                return
            self._update_irq()
            due = self._offer_at
            if due is not None and self._clock.now_ns() < due:
                self._arm(due)
                due = None
        if due is not None:
            self._offer()

    # -- the host's side -----------------------------------------------------------------------

    def connect(self, backend: Chardev) -> None:
        """Join the UART with a back end: output, input with flow control, break and carrier."""
        self._output = backend.write
        self.on_ready = backend.receiver_ready
        backend.add_event_handler(self._on_event)
        backend.set_receiver(self.receive)

    def _on_event(self, event: ChardevEvent) -> None:
        if event == "break":
            self.receive_break()
        elif event in ("connected", "disconnected"):
            carrier = event == "connected"
            self.set_modem_lines(dsr=carrier, dcd=carrier)

    def set_modem_lines(
        self,
        *,
        cts: bool | None = None,
        dsr: bool | None = None,
        ri: bool | None = None,
        dcd: bool | None = None,
    ) -> None:
        """Drive the modem inputs; `None` leaves one as it is.

        After power-on CTS, DSR and DCD are high and RI is low.
        """
        with self._lock:
            state = self._state
            for level, bit in ((cts, MSR_CTS), (dsr, MSR_DSR), (ri, MSR_RI), (dcd, MSR_DCD)):
                if level is not None:
                    state.lines = state.lines | bit if level else state.lines & ~bit
            self._refresh_modem()
            self._settle()
        self._follow_up()

    def reset(self) -> None:
        """Master reset: power-on registers, empty FIFOs, interrupt low. The modem inputs stay."""
        with self._lock:
            fresh = UartState()
            fresh.lines = fresh.msr = self._state.lines
            self._install(fresh)
        self._follow_up()

    def save(self) -> dict[str, object]:
        """The registers, the FIFOs and the pending interrupts (`UartState.save`)."""
        with self._lock:
            return self._state.save(self._clock.now_ns())

    def load(self, state: dict[str, object]) -> None:
        """Take over a saved state and drive the interrupt line to its level."""
        with self._lock:
            self._install(UartState.from_saved(self.name, state, self._clock.now_ns()))
        self._follow_up()

    def input_waits(self, waits: bool) -> None:
        """The back end has input (or has none) that was offered before; for restored machines."""
        with self._lock:
            self._refused = waits

    def _install(self, state: UartState) -> None:
        self._timer.cancel()
        self._timer_at = self._offer_at = None
        self._state = state
        self._settle()
        if not self._closed:
            self._irq.set(self._level)  # wherever the line was before

    def close(self) -> None:
        """Stop the timer; the line and the back end are left alone from now on."""
        with self._lock:
            self._closed = True
            self._output = _discard
            self.on_ready = None
            self._timer.cancel()
        if self._own_clock is not None:
            self._own_clock.close()
