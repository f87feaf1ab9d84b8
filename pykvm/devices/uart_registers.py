"""The registers of a 16550A and what they do to each other: the chip without its surroundings.

`uart16550.Uart16550` adds those: the lock, the interrupt line, time and the host. What starts with
an underscore here is called with that lock held.
"""

from __future__ import annotations

from pykvm.devices.uart_state import (
    FCR_CLEAR_RX,
    FCR_CLEAR_TX,
    FCR_ENABLE,
    FCR_KEPT,
    FIFO_DEPTH,
    IER_MSI,
    IER_RDI,
    IER_RLSI,
    IER_THRI,
    IIR_MODEM,
    IIR_NONE,
    IIR_RDA,
    IIR_RLS,
    IIR_THRE,
    IIR_TIMEOUT,
    LCR_BREAK,
    LCR_DLAB,
    LSR_DR,
    LSR_ERRORS,
    LSR_FIFO_ERROR,
    LSR_OE,
    LSR_PER_CHARACTER,
    LSR_TEMT,
    LSR_THRE,
    MCR_AFE,
    MCR_DTR,
    MCR_LOOP,
    MCR_RTS,
    MSR_DCTS,
    MSR_DELTAS,
    MSR_LINES,
    MSR_RI,
    MSR_TERI,
    UartState,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.devices.clock import Clock


class UartRegisters:
    """What register writes and arriving characters do, and which interrupt follows from it."""

    def __init__(self, clock: Clock, clock_hz: int) -> None:
        #: The frequency at the XIN pin.
        self.clock_hz = clock_hz
        self._clock = clock
        self._state = UartState()
        self._timeout_ns = self._state.timeout_ns(clock_hz)

    @property
    def baud(self) -> float:
        """Bits per second by the divisor; 0.0 where that is 0 and the clock stands still."""
        divisor = self._state.divisor
        return self.clock_hz / 16 / divisor if divisor else 0.0

    @property
    def line_format(self) -> str:
        """Data bits, parity and stop bits as people write them, such as `8N1`."""
        return self._state.line_format

    @property
    def dtr(self) -> bool:
        """The DTR output; low in loopback mode."""
        return self._state.mcr & (MCR_DTR | MCR_LOOP) == MCR_DTR

    @property
    def rts(self) -> bool:
        """The RTS output; low in loopback mode, and while automatic flow control stops the peer."""
        state = self._state
        return state.mcr & (MCR_RTS | MCR_LOOP) == MCR_RTS and not state.auto_rts_off

    @property
    def sending_break(self) -> bool:
        """The guest holds the line in break (LCR bit 6)."""
        return bool(self._state.lcr & LCR_BREAK)

    # -- register writes -----------------------------------------------------------------------

    def _write_register(self, offset: int, value: int) -> None:
        """Any write but one to THR."""
        state = self._state
        if 0 <= offset <= 1 and state.lcr & LCR_DLAB:
            shift = 8 * offset
            state.divisor = state.divisor & ~(0xFF << shift) | value << shift
        elif offset == 1:
            changed = state.ier ^ value
            state.ier = value & 0x0F
            if changed & IER_THRI:
                # Enabling the interrupt while THR is empty raises it, once per enabling.
                state.thre_pending = bool(value & IER_THRI and state.lsr & LSR_THRE)
        elif offset == 2:
            self._write_fcr(value)
        elif offset == 3:
            state.lcr = value
        elif offset == 4:
            state.mcr = value & 0x3F
            if not value & MCR_LOOP and value & MCR_RTS:
                state.rts_seen = True
            self._refresh_modem()
            self._watch_auto_rts()
        elif offset == 7:
            state.scr = value
        # LSR and MSR are read-only; factory tests alone write them.

    def _write_fcr(self, value: int) -> None:
        state = self._state
        toggled = (state.fcr ^ value) & FCR_ENABLE
        # The other bits count only in a write that has bit 0 set.
        enabled = value & FCR_ENABLE
        state.fcr = value & FCR_KEPT if enabled else 0
        if toggled or (enabled and value & FCR_CLEAR_RX):
            state.rx.clear()
            state.lsr &= ~(LSR_DR | LSR_PER_CHARACTER | LSR_FIFO_ERROR)
            state.timeout_at = None
        if state.tx and (toggled or value & FCR_CLEAR_TX):
            state.tx.clear()
            self._transmitter_empty()
        self._watch_auto_rts()

    def _transmitter_empty(self) -> None:
        state = self._state
        if not state.tx:
            state.lsr |= LSR_THRE | LSR_TEMT
            state.thre_pending = bool(state.ier & IER_THRI)

    # -- the receiver --------------------------------------------------------------------------

    def _push(self, character: int, flags: int) -> None:
        """One character, with its `LSR_PER_CHARACTER` flags, out of the shift register."""
        state = self._state
        rx = state.rx
        fifo = state.fcr & FCR_ENABLE
        if len(rx) >= (FIFO_DEPTH if fifo else 1):
            state.lsr |= LSR_OE
            if fifo:
                return  # the FIFO keeps what it has
            rx.clear()
        if fifo and (state.timeout_at is None or self._clock.now_ns() < state.timeout_at):
            # A time-out that has struck stays until a character is read.
            state.timeout_at = self._clock.now_ns() + self._timeout_ns
        rx.append(flags << 8 | character)
        state.lsr |= LSR_DR
        if len(rx) == 1:
            self._expose_errors()
        if flags:
            state.mark_fifo_error()
        self._watch_auto_rts()

    def _pop(self) -> None:
        """Move the oldest character to RBR."""
        state = self._state
        rx = state.rx
        state.last = rx.popleft() & 0xFF
        state.timeout_at = None
        if rx:
            self._expose_errors()
            state.timeout_at = self._clock.now_ns() + self._timeout_ns
        else:
            state.lsr &= ~LSR_DR
        self._watch_auto_rts()

    def _expose_errors(self) -> None:
        """The errors of a character show in LSR when it becomes the oldest."""
        rx = self._state.rx
        if rx[0] > 0xFF:
            self._state.lsr |= rx[0] >> 8
            rx[0] &= 0xFF

    def _watch_auto_rts(self) -> None:
        """Automatic RTS: stop at the trigger level, go on when the FIFO is empty."""
        state = self._state
        if not state.rx or state.mcr & (MCR_AFE | MCR_RTS) != MCR_AFE | MCR_RTS:
            state.auto_rts_off = False
        elif len(state.rx) >= state.trigger:
            state.auto_rts_off = True

    def _room(self) -> int:
        """How many characters a peer that honours flow control may send now."""
        state = self._state
        mcr = state.mcr
        if mcr & MCR_LOOP or (state.rts_seen and not mcr & MCR_RTS):
            return 0
        if not state.fcr & FCR_ENABLE:
            return 1 - len(state.rx)
        if mcr & MCR_AFE and mcr & MCR_RTS:
            return 0 if state.auto_rts_off else state.trigger - len(state.rx)
        return FIFO_DEPTH - len(state.rx)

    # -- modem lines and interrupts ------------------------------------------------------------

    def _refresh_modem(self) -> None:
        """Bring MSR up to date with the inputs, which MCR's outputs replace in loopback mode."""
        state = self._state
        mcr = state.mcr
        lines = state.lines
        if mcr & MCR_LOOP:
            # OUT1 -> RI, OUT2 -> DCD; RTS -> CTS; DTR -> DSR
            lines = (mcr & 0x0C) << 4 | (mcr & MCR_RTS) << 3 | (mcr & MCR_DTR) << 5
        changed = (state.msr ^ lines) & MSR_LINES
        deltas = changed >> 4 & ~MSR_TERI
        if changed & ~lines & MSR_RI:
            deltas |= MSR_TERI  # the trailing edge alone counts
        if mcr & MCR_AFE:
            deltas &= ~MSR_DCTS  # automatic flow control looks after CTS
        state.msr = lines | state.msr & MSR_DELTAS | deltas

    def _interrupt(self, now_ns: int) -> int:
        """The identity of the highest interrupt that is pending and enabled, or `IIR_NONE`."""
        state = self._state
        ier = state.ier
        if ier & IER_RLSI and state.lsr & LSR_ERRORS:
            return IIR_RLS
        if ier & IER_RDI and state.rx:
            if len(state.rx) >= state.trigger:
                return IIR_RDA
            if state.timeout_at is not None and now_ns >= state.timeout_at:
                return IIR_TIMEOUT
        if state.thre_pending:
            return IIR_THRE
        if ier & IER_MSI and state.msr & MSR_DELTAS:
            return IIR_MODEM
        return IIR_NONE
