"""Register bits and guest-visible state of the 16550A, apart from its behaviour (`uart16550`).

Names and bits follow the National Semiconductor PC16550D data sheet (June 1995), section 8; MCR
bit 5 is the automatic flow control of the TL16C550C.
"""

from __future__ import annotations

from collections import deque

from pykvm.devices.state import StateReader

# Register offsets. DLL/DLM replace RBR/THR and IER while LCR.DLAB is set.
RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR = 3
MCR = 4
LSR = 5
MSR = 6
SCR = 7

IER_RDI = 0x01  # received data available, and the character time-out
IER_THRI = 0x02  # transmitter holding register empty
IER_RLSI = 0x04  # receiver line status
IER_MSI = 0x08  # modem status

IIR_NONE = 0x01
IIR_RLS = 0x06
IIR_RDA = 0x04
IIR_TIMEOUT = 0x0C
IIR_THRE = 0x02
IIR_MODEM = 0x00
IIR_FIFOS = 0xC0

FCR_ENABLE = 0x01
FCR_CLEAR_RX = 0x02
FCR_CLEAR_TX = 0x04
FCR_KEPT = 0xC9  # enable, DMA mode and trigger level; the clear bits clear themselves
TRIGGER_LEVELS = (1, 4, 8, 14)

LCR_STOP = 0x04
LCR_PARITY = 0x08
LCR_BREAK = 0x40
LCR_DLAB = 0x80

MCR_DTR = 0x01
MCR_RTS = 0x02
MCR_OUT1 = 0x04
MCR_OUT2 = 0x08
MCR_LOOP = 0x10
MCR_AFE = 0x20

LSR_DR = 0x01
LSR_OE = 0x02
LSR_PE = 0x04
LSR_FE = 0x08
LSR_BI = 0x10
LSR_THRE = 0x20
LSR_TEMT = 0x40
LSR_FIFO_ERROR = 0x80
LSR_PER_CHARACTER = LSR_PE | LSR_FE | LSR_BI
LSR_ERRORS = LSR_OE | LSR_PER_CHARACTER

MSR_DCTS = 0x01
MSR_DDSR = 0x02
MSR_TERI = 0x04
MSR_DDCD = 0x08
MSR_DELTAS = 0x0F
MSR_CTS = 0x10
MSR_DSR = 0x20
MSR_RI = 0x40
MSR_DCD = 0x80
MSR_LINES = 0xF0

FIFO_DEPTH = 16
#: 9600 baud from the PC's 1.8432 MHz; the data sheet leaves the divisor undefined after reset.
RESET_DIVISOR = 12

_VERSION = 1
#: No time-out of a 16550A is longer (divisor 65535, 12 bits, 4 characters, at 1.8432 MHz): 28 s.
_LONGEST_TIMEOUT_NS = 60_000_000_000


class UartState:
    """What a snapshot of a 16550A holds. Power-on values.

    `rx` holds the receiver FIFO, oldest first, each character with its `LSR_PER_CHARACTER` flags
    shifted left by 8. Those of the oldest have moved into `lsr` already.
    """

    __slots__ = (
        "auto_rts_off",
        "divisor",
        "fcr",
        "ier",
        "last",
        "lcr",
        "lines",
        "lsr",
        "mcr",
        "msr",
        "rts_seen",
        "rx",
        "scr",
        "thre_pending",
        "timeout_at",
        "tx",
    )

    def __init__(self) -> None:
        self.ier = 0
        self.fcr = 0
        self.lcr = 0
        self.mcr = 0
        self.scr = 0
        self.lsr = LSR_THRE | LSR_TEMT
        self.divisor = RESET_DIVISOR
        #: Modem inputs as the peer drives them (`MSR_LINES` bits); `msr` is what the guest sees.
        self.lines = MSR_CTS | MSR_DSR | MSR_DCD
        self.msr = self.lines
        #: The character in RBR, kept after it was read.
        self.last = 0
        self.rx: deque[int] = deque()
        #: Characters that automatic CTS flow control holds back; otherwise none are.
        self.tx = bytearray()
        #: The THRE interrupt is raised. Only used while IER_THRI is set.
        self.thre_pending = False
        #: When the character time-out strikes (clock nanoseconds), None without FIFO or characters.
        self.timeout_at: int | None = None
        #: The guest has raised RTS since reset, so lowering it means "stop sending".
        self.rts_seen = False
        #: Automatic RTS has stopped the peer until the FIFO is empty.
        self.auto_rts_off = False

    def save(self, now_ns: int) -> dict[str, object]:
        """Plain values; times relative to `now_ns`."""
        return {
            "version": _VERSION,
            "ier": self.ier,
            "fcr": self.fcr,
            "lcr": self.lcr,
            "mcr": self.mcr,
            "scr": self.scr,
            "errors": self.lsr & LSR_ERRORS,
            "divisor": self.divisor,
            "lines": self.lines,
            "msr": self.msr,
            "last": self.last,
            "rx": list(self.rx),
            "tx": list(self.tx),
            "thre_pending": self.thre_pending,
            "timeout_in_ns": None if self.timeout_at is None else max(0, self.timeout_at - now_ns),
            "rts_seen": self.rts_seen,
            "auto_rts_off": self.auto_rts_off,
        }

    @classmethod
    def from_saved(cls, device: str, saved: dict[str, object], now_ns: int) -> UartState:
        """The state that `save` gave; raises `DeviceStateError` for anything else."""
        take = StateReader(device, saved, _VERSION)
        state = cls()
        state.ier = take.integer("ier", 0x0F)
        state.fcr = take.integer("fcr", 0xFF) & FCR_KEPT
        state.lcr = take.integer("lcr", 0xFF)
        state.mcr = take.integer("mcr", 0x3F)
        state.scr = take.integer("scr", 0xFF)
        state.lsr = take.integer("errors", 0xFF) & LSR_ERRORS
        state.divisor = take.integer("divisor", 0xFFFF)
        state.lines = take.integer("lines", 0xFF) & MSR_LINES
        state.msr = take.integer("msr", 0xFF)
        state.last = take.integer("last", 0xFF)
        depth = FIFO_DEPTH if state.fcr & FCR_ENABLE else 1
        state.rx.extend(take.integers("rx", depth, LSR_PER_CHARACTER << 8 | 0xFF))
        state.tx.extend(take.integers("tx", depth, 0xFF))
        state.thre_pending = take.boolean("thre_pending") and state.ier & IER_THRI != 0
        timeout = take.optional("timeout_in_ns", _LONGEST_TIMEOUT_NS)
        state.rts_seen = take.boolean("rts_seen")
        state.auto_rts_off = take.boolean("auto_rts_off")
        take.finish()
        if timeout is not None and state.rx and state.fcr & FCR_ENABLE:
            state.timeout_at = now_ns + timeout
        if state.rx:
            state.lsr |= LSR_DR
        if not state.tx:
            state.lsr |= LSR_THRE | LSR_TEMT
        state.mark_fifo_error()
        return state

    @property
    def trigger(self) -> int:
        """The fill level of the receiver that raises "data available"."""
        return TRIGGER_LEVELS[self.fcr >> 6] if self.fcr & FCR_ENABLE else 1

    @property
    def holding(self) -> bool:
        """Automatic CTS flow control stops the transmitter."""
        return self.mcr & MCR_AFE != 0 and not self.lines & MSR_CTS

    @property
    def line_format(self) -> str:
        """Data bits, parity and stop bits as people write them, such as `8N1`."""
        lcr = self.lcr
        parity = "OEMS"[lcr >> 4 & 3] if lcr & LCR_PARITY else "N"
        stop = "1" if not lcr & LCR_STOP else "2" if lcr & 3 else "1.5"
        return f"{5 + (lcr & 3)}{parity}{stop}"

    def timeout_ns(self, clock_hz: int) -> int:
        """The character time-out: four characters at the line's speed and format."""
        # start bit, 5 to 8 data bits, one or two stop bits (1.5 taken as 2), parity
        bits = 7 + (self.lcr & 3) + bool(self.lcr & LCR_STOP) + bool(self.lcr & LCR_PARITY)
        return 4 * bits * max(1, self.divisor) * 16_000_000_000 // clock_hz

    def mark_fifo_error(self) -> None:
        """Set LSR bit 7 where a character in the FIFO has an error, clear it where none has."""
        self.lsr &= ~LSR_FIFO_ERROR
        if self.fcr & FCR_ENABLE and (
            self.lsr & LSR_PER_CHARACTER or any(entry > 0xFF for entry in self.rx)
        ):
            self.lsr |= LSR_FIFO_ERROR
