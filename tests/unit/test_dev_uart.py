"""The 16550A, register by register, as the PC16550D data sheet describes it."""

from __future__ import annotations

import pytest

from pykvm.devices import DeviceStateError, ManualClock, RecordingIrqLine, Uart16550

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

RDI, THRI, RLSI, MSI = 1, 2, 4, 8
OUT2 = 0x08
#: Four characters at 9600 8N1... the power-on format is 5N1: 7 bits each.
CHARACTER_9600_8N1 = 10 * 10**9 // 9600


class Rig:
    """A UART with a recorded line, recorded output and a clock that the test owns."""

    def __init__(self) -> None:
        self.irq = RecordingIrqLine()
        self.sent = bytearray()
        self.clock = ManualClock(5_000)
        self.offers = 0
        self.uart = Uart16550(self.irq, self.sent.extend, self.clock, on_ready=self._offer)

    def _offer(self) -> None:
        self.offers += 1

    def out(self, offset: int, value: int) -> None:
        self.uart.write(offset, 1, value)

    def inp(self, offset: int) -> int:
        return self.uart.read(offset, 1)

    def line(self, *, divisor: int = 1, lcr: int = 3, fcr: int | None = None) -> None:
        """Set speed, format and FIFOs, as drivers do."""
        self.out(LCR, 0x80 | lcr)
        self.out(DLL, divisor & 0xFF)
        self.out(DLM, divisor >> 8)
        self.out(LCR, lcr)
        if fcr is not None:
            self.out(FCR, fcr)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_power_on(rig: Rig) -> None:
    assert [rig.inp(offset) for offset in (IER, IIR, LCR, MCR, LSR, MSR, SCR)] == [
        0x00,
        0x01,
        0x00,
        0x00,
        0x60,
        0xB0,  # DCD, DSR and CTS, and no change of them
        0x00,
    ]
    assert rig.uart.baud == 9600
    assert rig.irq.history == []


@pytest.mark.parametrize(
    ("offset", "kept"),
    [(IER, 0x0F), (LCR, 0xFF), (MCR, 0x3F), (SCR, 0xFF)],
)
def test_bits_that_stick(rig: Rig, offset: int, kept: int) -> None:
    rig.out(offset, 0xFF)
    assert rig.inp(offset) == kept
    rig.out(offset, 0)
    assert rig.inp(offset) == 0


def test_status_registers_cannot_be_written(rig: Rig) -> None:
    rig.out(LSR, 0)
    rig.out(MSR, 0xFF)
    assert rig.inp(LSR) == 0x60
    assert rig.inp(MSR) == 0xB0


def test_dlab_switches_the_first_two_registers(rig: Rig) -> None:
    rig.out(IER, 0x05)
    rig.out(LCR, 0x83)
    rig.out(DLL, 0x34)
    rig.out(DLM, 0x12)
    assert (rig.inp(DLL), rig.inp(DLM)) == (0x34, 0x12)
    rig.out(LCR, 0x03)
    assert rig.inp(IER) == 0x05
    assert rig.sent == b""
    rig.out(THR, 0x34)
    assert rig.sent == b"\x34"


@pytest.mark.parametrize(
    ("divisor", "baud"), [(1, 115200), (2, 57600), (12, 9600), (96, 1200), (0, 0.0)]
)
def test_baud(rig: Rig, divisor: int, baud: float) -> None:
    rig.line(divisor=divisor)
    assert rig.uart.baud == baud


@pytest.mark.parametrize(
    ("lcr", "text"),
    [
        (0x00, "5N1"),
        (0x03, "8N1"),
        (0x07, "8N2"),
        (0x04, "5N1.5"),
        (0x0A, "7O1"),
        (0x1A, "7E1"),
        (0x2B, "8M1"),
        (0x3B, "8S1"),
    ],
)
def test_line_format(rig: Rig, lcr: int, text: str) -> None:
    rig.out(LCR, lcr)
    assert rig.uart.line_format == text


def test_every_character_is_sent_as_it_is(rig: Rig) -> None:
    for code in range(256):
        rig.out(THR, code)
    assert rig.sent == bytes(range(256))
    assert rig.inp(LSR) == 0x60


def test_break_and_modem_outputs_show(rig: Rig) -> None:
    rig.out(LCR, 0x43)
    rig.out(MCR, 0x03)
    assert (rig.uart.sending_break, rig.uart.dtr, rig.uart.rts) == (True, True, True)
    rig.out(MCR, 0x13)
    assert (rig.uart.dtr, rig.uart.rts) == (False, False)  # inactive in loopback mode


# -- the transmitter's interrupt -------------------------------------------------------------------


def test_enabling_the_thre_interrupt_raises_it_and_reading_iir_clears_it(rig: Rig) -> None:
    rig.out(MCR, OUT2)
    rig.out(IER, THRI)
    assert rig.irq.level
    assert rig.inp(IIR) == 0x02
    assert not rig.irq.level
    assert rig.inp(IIR) == 0x01


def test_thre_is_raised_again_by_disabling_and_enabling_only(rig: Rig) -> None:
    rig.out(MCR, OUT2)
    rig.out(IER, THRI)
    rig.inp(IIR)
    rig.out(IER, THRI | RDI)
    assert rig.inp(IIR) == 0x01
    rig.out(IER, 0)
    rig.out(IER, THRI)
    assert rig.inp(IIR) == 0x02


def test_each_character_sent_is_a_new_edge(rig: Rig) -> None:
    """A driver that just writes the next character on each interrupt must get the next one."""
    rig.out(MCR, OUT2)
    rig.out(IER, THRI)
    for code in b"abc":
        assert rig.irq.take_edge()
        rig.out(THR, code)
    assert rig.irq.take_edge()
    assert not rig.irq.take_edge()
    assert rig.sent == b"abc"


def test_the_character_is_out_before_thre_rises() -> None:
    order: list[str] = []

    class Line(RecordingIrqLine):
        def set(self, level: bool) -> None:
            order.append("high" if level else "low")

    uart = Uart16550(Line(), lambda data: order.append(data.decode()), ManualClock())
    uart.write(MCR, 1, OUT2)
    uart.write(IER, 1, THRI)
    uart.write(THR, 1, ord("x"))
    assert order == ["high", "low", "x", "high"]


# -- the receiver ----------------------------------------------------------------------------------


def test_without_fifo_one_character_at_a_time(rig: Rig) -> None:
    rig.out(MCR, OUT2)
    rig.out(IER, RDI)
    assert rig.uart.receive(b"ab") == 1
    assert rig.irq.level
    assert rig.inp(IIR) == 0x04
    assert rig.inp(LSR) == 0x61
    assert rig.uart.receive(b"b") == 0
    assert rig.inp(RBR) == ord("a")
    assert not rig.irq.level
    assert rig.inp(LSR) == 0x60
    assert rig.uart.receive(b"b") == 1


def test_rbr_keeps_the_last_character(rig: Rig) -> None:
    rig.uart.receive(b"q")
    assert [rig.inp(RBR) for _ in range(3)] == [ord("q")] * 3


def test_fifo_takes_16_in_order(rig: Rig) -> None:
    rig.line(fcr=0x01)
    data = bytes(range(65, 65 + 20))
    assert rig.uart.receive(data) == 16
    assert bytes(rig.inp(RBR) for _ in range(16)) == data[:16]
    assert rig.inp(LSR) == 0x60


@pytest.mark.parametrize(("fcr", "trigger"), [(0x01, 1), (0x41, 4), (0x81, 8), (0xC1, 14)])
def test_trigger_levels(rig: Rig, fcr: int, trigger: int) -> None:
    rig.line(fcr=fcr)
    rig.out(MCR, OUT2)
    rig.out(IER, RDI)
    for _ in range(trigger - 1):
        rig.uart.receive(b"x")
        assert not rig.irq.level
    assert rig.inp(IIR) == 0xC1
    rig.uart.receive(b"x")
    assert rig.irq.level
    assert rig.inp(IIR) == 0xC4
    rig.inp(RBR)
    assert not rig.irq.level


def test_fifo_control_bits(rig: Rig) -> None:
    rig.out(FCR, 0xC6)  # without bit 0 the others count for nothing
    assert rig.inp(IIR) == 0x01
    rig.out(FCR, 0x01)
    assert rig.inp(IIR) == 0xC1
    rig.uart.receive(b"abc")
    rig.out(FCR, 0x01)
    assert rig.inp(LSR) & 1  # neither cleared nor toggled
    rig.out(FCR, 0x03)
    assert rig.inp(LSR) == 0x60
    rig.uart.receive(b"abc")
    assert rig.inp(LSR) & 1  # the clear bit has cleared itself
    rig.out(FCR, 0x00)
    assert rig.inp(LSR) == 0x60
    assert rig.inp(IIR) == 0x01


def test_character_timeout(rig: Rig) -> None:
    rig.line(divisor=12, fcr=0xC1)
    rig.out(MCR, OUT2)
    rig.out(IER, RDI)
    rig.uart.receive(b"ab")
    rig.clock.advance(4 * CHARACTER_9600_8N1 - 2)
    assert not rig.irq.level
    rig.clock.advance(4)
    assert rig.irq.level
    assert rig.inp(IIR) == 0xCC
    rig.uart.receive(b"c")
    assert rig.inp(IIR) == 0xCC  # stays until a character is read
    assert rig.inp(RBR) == ord("a")
    assert not rig.irq.level
    assert rig.inp(IIR) == 0xC1
    rig.clock.advance(4 * CHARACTER_9600_8N1 + 4)
    assert rig.inp(IIR) == 0xCC
    assert [rig.inp(RBR), rig.inp(RBR)] == [ord("b"), ord("c")]
    rig.clock.advance(10**10)
    assert rig.inp(IIR) == 0xC1
    assert rig.clock.armed == 0


def test_arrivals_and_reads_put_the_timeout_off(rig: Rig) -> None:
    rig.line(divisor=12, fcr=0xC1)
    rig.out(MCR, OUT2)
    rig.out(IER, RDI)
    for _ in range(4):
        rig.uart.receive(b"x")
        rig.clock.advance(3 * CHARACTER_9600_8N1)
    for _ in range(3):
        rig.inp(RBR)
        rig.clock.advance(3 * CHARACTER_9600_8N1)
    assert not any(rig.irq.history)
    rig.clock.advance(3 * CHARACTER_9600_8N1)
    assert rig.irq.level


def test_clearing_the_fifo_ends_its_timeout(rig: Rig) -> None:
    rig.line(divisor=1, fcr=0xC1)
    rig.out(IER, RDI)
    rig.uart.receive(b"x")
    rig.clock.advance(10**9)
    rig.out(FCR, 0xC3)
    rig.uart.receive(b"y")
    assert rig.inp(IIR) == 0xC1
    rig.clock.advance(10**9)
    assert rig.inp(IIR) == 0xCC


def test_no_timeout_without_fifo(rig: Rig) -> None:
    rig.line(divisor=1)
    rig.out(IER, RDI)
    rig.uart.receive(b"x")
    assert rig.inp(IIR) == 0x04
    assert rig.clock.armed == 0


def test_timeout_fires_with_the_real_clock() -> None:
    import threading

    raised = threading.Event()

    class Line(RecordingIrqLine):
        def set(self, level: bool) -> None:
            if level:
                raised.set()

    uart = Uart16550(Line())
    try:
        for offset, value in ((LCR, 0x83), (DLL, 1), (LCR, 3), (FCR, 0xC1), (MCR, OUT2), (IER, 1)):
            uart.write(offset, 1, value)
        uart.receive(b"x")
        assert raised.wait(5)
        assert uart.read(IIR, 1) == 0xCC
    finally:
        uart.close()
    assert not [t for t in threading.enumerate() if t.name == "pykvm-timer"]


# -- errors ----------------------------------------------------------------------------------------


def test_overrun_keeps_the_fifo_and_replaces_a_single_character(rig: Rig) -> None:
    for code in b"ab":
        rig.uart.inject(code)
    assert rig.inp(LSR) == 0x63
    assert rig.inp(LSR) == 0x61
    assert rig.inp(RBR) == ord("b")
    rig.line(fcr=0x01)
    for code in range(17):
        rig.uart.inject(code)
    assert rig.inp(LSR) == 0x63
    assert [rig.inp(RBR) for _ in range(16)] == list(range(16))


def test_break_and_line_status_interrupt(rig: Rig) -> None:
    rig.line(fcr=0x01)
    rig.out(MCR, OUT2)
    rig.out(IER, RDI | RLSI)
    rig.uart.receive_break()
    assert rig.irq.level
    assert rig.inp(IIR) == 0xC6
    assert rig.inp(LSR) == 0xF1  # BI, FIFO error, DR, THRE, TEMT
    assert rig.inp(IIR) == 0xC4
    assert rig.inp(RBR) == 0
    assert not rig.irq.level


def test_errors_show_with_their_character(rig: Rig) -> None:
    rig.line(fcr=0x01)
    rig.uart.inject(ord("a"))
    rig.uart.inject(ord("b"), parity_error=True)
    rig.uart.inject(ord("c"), framing_error=True)
    assert rig.inp(LSR) == 0xE1  # something in the FIFO is bad, not the oldest
    assert rig.inp(RBR) == ord("a")
    assert rig.inp(LSR) == 0xE5
    assert rig.inp(LSR) == 0xE1
    assert rig.inp(RBR) == ord("b")
    assert rig.inp(LSR) == 0xE9
    assert rig.inp(LSR) == 0x61
    assert rig.inp(RBR) == ord("c")
    assert rig.inp(LSR) == 0x60


def test_no_fifo_error_bit_without_fifo(rig: Rig) -> None:
    rig.uart.inject(1, parity_error=True, framing_error=True)
    assert rig.inp(LSR) == 0x6D


# -- priorities ------------------------------------------------------------------------------------


def test_interrupts_come_by_priority(rig: Rig) -> None:
    rig.line(divisor=1, fcr=0x41)
    rig.out(MCR, OUT2)
    rig.inp(MSR)
    rig.out(IER, 0x0F)
    rig.uart.set_modem_lines(dcd=False)
    rig.uart.receive(b"0123")
    rig.uart.inject(ord("4"))
    for _ in range(12):
        rig.uart.inject(0)  # the last one overruns
    rig.clock.advance(10**9)
    seen = []
    seen.append(rig.inp(IIR) & 0x0F)
    rig.inp(LSR)
    seen.append(rig.inp(IIR) & 0x0F)
    for _ in range(13):
        rig.inp(RBR)
    rig.clock.advance(10**9)
    seen.append(rig.inp(IIR) & 0x0F)
    for _ in range(3):
        rig.inp(RBR)
    seen.append(rig.inp(IIR) & 0x0F)
    seen.append(rig.inp(IIR) & 0x0F)
    assert rig.irq.level
    rig.inp(MSR)
    seen.append(rig.inp(IIR) & 0x0F)
    assert seen == [0x06, 0x04, 0x0C, 0x02, 0x00, 0x01]
    assert not rig.irq.level


def test_out2_lets_interrupts_out(rig: Rig) -> None:
    rig.out(IER, RDI)
    rig.uart.receive(b"x")
    assert rig.inp(IIR) == 0x04
    assert not rig.irq.level
    rig.out(MCR, OUT2)
    assert rig.irq.level
    rig.out(MCR, 0)
    assert not rig.irq.level


def test_out2_can_be_left_out_of_it() -> None:
    irq = RecordingIrqLine()
    uart = Uart16550(irq, out2_gates_irq=False, clock=ManualClock())
    uart.write(IER, 1, THRI)
    assert irq.level


# -- modem lines and loopback ----------------------------------------------------------------------


def test_modem_status_changes(rig: Rig) -> None:
    rig.out(MCR, OUT2)
    rig.out(IER, MSI)
    rig.uart.set_modem_lines(cts=False)
    assert rig.irq.level
    assert rig.inp(IIR) == 0x00
    assert rig.inp(MSR) == 0xA1
    assert not rig.irq.level
    assert rig.inp(MSR) == 0xA0
    rig.uart.set_modem_lines(cts=True, dsr=False, dcd=False)
    assert rig.inp(MSR) == 0x1B
    rig.uart.set_modem_lines(ri=True)
    assert rig.inp(MSR) == 0x50  # the leading edge of RI does not count
    rig.uart.set_modem_lines(ri=False)
    assert rig.inp(MSR) == 0x14


@pytest.mark.parametrize(
    ("mcr", "msr"), [(0x10, 0x00), (0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80)]
)
def test_loopback_maps_outputs_to_inputs(rig: Rig, mcr: int, msr: int) -> None:
    rig.out(MCR, mcr)
    assert rig.inp(MSR) & 0xF0 == msr
    rig.out(MCR, 0)
    assert rig.inp(MSR) & 0xF0 == 0xB0


def test_loopback_interrupts_on_modem_changes(rig: Rig) -> None:
    rig.out(MCR, 0x10 | OUT2)
    rig.inp(MSR)
    rig.out(IER, MSI)
    rig.out(MCR, 0x10 | OUT2 | 0x02)
    assert rig.irq.level
    assert rig.inp(MSR) == 0x91


def test_loopback_data_stays_inside(rig: Rig) -> None:
    rig.line(fcr=0x01)
    rig.out(MCR, 0x10)
    for code in b"loop":
        rig.out(THR, code)
    assert rig.sent == b""
    assert bytes(rig.inp(RBR) for _ in range(4)) == b"loop"
    assert rig.uart.receive(b"outside") == 0
    rig.uart.receive_break()
    assert rig.inp(LSR) == 0x60


def test_the_fifo_is_16_deep_in_loopback(rig: Rig) -> None:
    """How Linux measures FIFOs: send 256 in loopback, count what comes back."""
    rig.line(fcr=0x01)
    rig.out(MCR, 0x10)
    for code in range(256):
        rig.out(THR, code)
    assert rig.inp(LSR) & 0x02
    count = 0
    while rig.inp(LSR) & 1:
        assert rig.inp(RBR) == count
        count += 1
    assert count == 16


# -- flow control ----------------------------------------------------------------------------------


def test_rts_counts_once_it_was_raised(rig: Rig) -> None:
    assert rig.uart.receive(b"a") == 1  # a guest that knows nothing of RTS
    rig.inp(RBR)
    rig.out(MCR, 0x02)
    assert rig.uart.receive(b"a") == 1
    rig.inp(RBR)
    rig.out(MCR, 0x00)
    assert rig.uart.receive(b"b") == 0
    assert rig.offers == 0
    rig.out(MCR, 0x02)
    assert rig.offers == 1
    assert rig.uart.receive(b"b") == 1


def test_rts_in_loopback_mode_does_not_count(rig: Rig) -> None:
    rig.out(MCR, 0x12)
    rig.out(MCR, 0x00)
    assert rig.uart.receive(b"a") == 1


def test_automatic_rts_stops_at_the_trigger_until_the_fifo_is_empty(rig: Rig) -> None:
    rig.line(fcr=0x81)
    rig.out(MCR, 0x22)
    assert rig.uart.receive(bytes(16)) == 8
    assert not rig.uart.rts
    for _ in range(7):
        rig.inp(RBR)
    assert rig.uart.receive(b"x") == 0
    rig.inp(RBR)
    assert rig.uart.rts
    assert rig.uart.receive(b"x") == 1


@pytest.mark.parametrize(("fcr", "depth"), [(0x00, 1), (0x01, 16)])
def test_automatic_cts_holds_the_transmitter(rig: Rig, fcr: int, depth: int) -> None:
    rig.line(fcr=fcr)
    rig.out(MCR, 0x20 | OUT2)
    rig.uart.set_modem_lines(cts=False)
    for code in range(depth):
        rig.out(THR, code)
    assert rig.inp(LSR) == 0x00
    assert rig.inp(MSR) == 0xA0  # automatic flow control looks after CTS: no change reported
    rig.out(IER, THRI)
    assert rig.inp(IIR) & 0x0F == 0x01
    rig.out(THR, 0xEE)  # too many: the last one is overwritten
    assert rig.sent == b""
    rig.uart.set_modem_lines(cts=True)
    assert rig.sent == bytes([*range(depth - 1), 0xEE])
    assert rig.irq.level
    assert rig.inp(IIR) & 0x0F == 0x02
    assert rig.inp(LSR) == 0x60


def test_held_characters_can_be_cleared_or_let_go(rig: Rig) -> None:
    rig.line(fcr=0x01)
    rig.out(MCR, 0x20)
    rig.uart.set_modem_lines(cts=False)
    rig.out(THR, ord("a"))
    rig.out(FCR, 0x05)
    assert rig.inp(LSR) == 0x60
    rig.out(THR, ord("b"))
    rig.out(MCR, 0x00)
    assert rig.sent == b"b"


def test_more_is_asked_for_when_the_guest_has_seen_the_end(rig: Rig) -> None:
    rig.line(fcr=0x01)
    assert rig.uart.receive(bytes(20)) == 16
    for _ in range(16):
        rig.inp(LSR)
        rig.inp(RBR)
    assert rig.offers == 0
    rig.inp(LSR)
    assert rig.offers == 1
    rig.inp(LSR)
    assert rig.offers == 1


def test_an_interrupt_driven_guest_is_asked_when_its_handler_ends(rig: Rig) -> None:
    rig.line(fcr=0x01)
    rig.out(IER, RDI)
    rig.uart.receive(bytes(20))
    while rig.inp(LSR) & 1:
        rig.inp(RBR)
    assert rig.offers == 0
    assert rig.inp(IIR) == 0xC1
    assert rig.offers == 1


def test_a_guest_that_looks_at_no_status_is_asked_after_a_while(rig: Rig) -> None:
    rig.line(divisor=12)
    rig.uart.receive(b"ab")
    rig.inp(RBR)
    rig.clock.advance(CHARACTER_9600_8N1)
    assert rig.offers == 0
    rig.clock.advance(4 * CHARACTER_9600_8N1)
    assert rig.offers == 1


@pytest.mark.parametrize("action", ["clear", "enable", "reset"])
def test_room_made_by_control_is_offered_at_once(rig: Rig, action: str) -> None:
    rig.uart.receive(b"ab")
    if action == "reset":
        rig.uart.reset()
    else:
        rig.out(FCR, 0x03 if action == "clear" else 0x01)
    assert rig.offers == 1


# -- the bus's promises and a snapshot's lies ------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2, 4, 8, 100])
@pytest.mark.parametrize("offset", [-3, 0, 1, 5, 7, 8, 1000])
def test_no_access_crashes(rig: Rig, offset: int, size: int) -> None:
    rig.out(LCR, 0x80)
    rig.uart.write(offset, size, (1 << 70) - 1)
    assert 0 <= rig.uart.read(offset, size) < 1 << 64


def test_a_wide_access_reaches_the_registers_in_order(rig: Rig) -> None:
    rig.uart.write(IER, 2, 0x0105)  # FCR = 01, IER = 05
    assert rig.inp(IER) == 5
    assert rig.uart.read(IER, 2) == 0xC105


def test_reset(rig: Rig) -> None:
    rig.line(fcr=0xC1)
    rig.out(MCR, OUT2)
    rig.out(IER, 0x0F)
    rig.uart.set_modem_lines(dsr=False)
    rig.uart.receive(b"abc")
    assert rig.irq.level
    rig.uart.reset()
    assert not rig.irq.level
    assert rig.inp(MSR) == 0x90  # the wire is as it was, and nothing has changed since
    assert rig.inp(LSR) == 0x60
    assert rig.inp(IIR) == 0x01


def test_a_closed_uart_touches_nothing(rig: Rig) -> None:
    rig.out(MCR, OUT2)
    rig.line(fcr=0xC1)
    rig.out(IER, RDI)
    rig.uart.receive(b"x")
    rig.uart.close()
    rig.uart.close()
    rig.irq.history.clear()
    rig.clock.advance(10**10)
    rig.out(THR, 1)
    assert rig.uart.receive(b"y") == 0
    assert rig.irq.history == []
    assert rig.sent == b""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", 2),
        ("ier", 0x10),
        ("fcr", -1),
        ("lcr", "3"),
        ("mcr", None),
        ("divisor", 1 << 16),
        ("rx", [0] * 17),
        ("rx", [1 << 20]),
        ("rx", "abc"),
        ("tx", [256]),
        ("thre_pending", 1),
        ("timeout_in_ns", 1 << 60),
        ("timeout_in_ns", -1),
        ("unheard_of", 0),
    ],
)
def test_a_hostile_state_is_refused_and_changes_nothing(rig: Rig, name: str, value: object) -> None:
    rig.out(SCR, 0x5A)
    rig.out(FCR, 0x01)
    state = rig.uart.save()
    state[name] = value
    state["scr"] = 0
    with pytest.raises(DeviceStateError, match=r"^uart16550: saved state") as refused:
        rig.uart.load(state)
    assert name in str(refused.value)
    assert rig.inp(SCR) == 0x5A


def test_every_field_of_a_state_is_needed(rig: Rig) -> None:
    for name in rig.uart.save():
        state = rig.uart.save()
        del state[name]
        with pytest.raises(DeviceStateError, match=f"lacks '{name}'"):
            rig.uart.load(state)


def test_load_drives_the_line_either_way(rig: Rig) -> None:
    idle = rig.uart.save()
    rig.out(MCR, OUT2)
    rig.out(IER, THRI)
    busy = rig.uart.save()
    rig.uart.load(idle)
    assert rig.irq.history[-1] is False
    rig.uart.load(busy)
    assert rig.irq.history[-1] is True
    assert rig.inp(IIR) == 0x02
