"""The 16550A against a second one, written plainly from the data sheet, in all reachable states."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pykvm.devices.base import ManualClock, RecordingIrqLine
from pykvm.devices.uart16550 import Uart16550


@dataclass
class Char:
    code: int
    parity: bool = False
    framing: bool = False
    broken: bool = False

    @property
    def bad(self) -> bool:
        return self.parity or self.framing or self.broken


@dataclass
class Model:
    """A 16550A in booleans and lists: slow, obvious, and sharing nothing with the device."""

    clock: ManualClock
    output: list[int] = field(default_factory=list)
    # IER
    want_data: bool = False
    want_empty: bool = False
    want_line: bool = False
    want_modem: bool = False
    # FCR, LCR, MCR, SCR, divisor
    fifo: bool = False
    level: int = 1
    lcr: int = 0
    dtr: bool = False
    rts: bool = False
    out1: bool = False
    out2: bool = False
    loop: bool = False
    auto: bool = False
    scratch: int = 0
    dll: int = 12
    dlm: int = 0
    # receiver
    queue: list[Char] = field(default_factory=list)
    rbr: int = 0
    overrun: bool = False
    parity: bool = False
    framing: bool = False
    broken: bool = False
    quiet_since: int = 0
    wait: int = 0
    struck: bool = False
    # transmitter
    held: list[int] = field(default_factory=list)
    empty_pending: bool = False
    # modem inputs on the wire, as the guest saw them last, and their changes
    wire: dict[str, bool] = field(
        default_factory=lambda: {"cts": True, "dsr": True, "ri": False, "dcd": True}
    )
    changed: set[str] = field(default_factory=set)
    ever_rts: bool = False
    stopped: bool = False

    def inputs(self) -> dict[str, bool]:
        if self.loop:
            return {"cts": self.rts, "dsr": self.dtr, "ri": self.out1, "dcd": self.out2}
        return dict(self.wire)

    def note_changes(self, before: dict[str, bool]) -> None:
        after = self.inputs()
        for name in ("dsr", "dcd"):
            if before[name] != after[name]:
                self.changed.add(name)
        if before["cts"] != after["cts"] and not self.auto:
            self.changed.add("cts")
        if before["ri"] and not after["ri"]:
            self.changed.add("ri")

    def four_characters(self) -> int:
        bits = 1 + 5 + (self.lcr & 3) + (1 if self.lcr & 8 else 0) + (2 if self.lcr & 4 else 1)
        divisor = max(self.dlm << 8 | self.dll, 1)
        return 4 * bits * divisor * 16 * 10**9 // 1_843_200

    def look_at_time(self) -> None:
        if self.fifo and self.queue and self.clock.now_ns() >= self.quiet_since + self.wait:
            self.struck = True

    def restart_timeout(self) -> None:
        self.struck = False
        self.quiet_since = self.clock.now_ns()
        self.wait = self.four_characters()

    def reveal(self) -> None:
        if self.queue:
            first = self.queue[0]
            self.parity |= first.parity
            self.framing |= first.framing
            self.broken |= first.broken
            first.parity = first.framing = first.broken = False

    def arrive(self, char: Char) -> None:
        self.look_at_time()
        depth = 16 if self.fifo else 1
        if len(self.queue) == depth:
            self.overrun = True
            if self.fifo:
                return
            self.queue.clear()
        if not self.struck:
            self.restart_timeout()
        self.queue.append(char)
        if len(self.queue) == 1:
            self.reveal()
        self.auto_rts()

    def auto_rts(self) -> None:
        if not (self.auto and self.rts) or not self.queue:
            self.stopped = False
        elif len(self.queue) >= (self.level if self.fifo else 1):
            self.stopped = True

    def room(self) -> int:
        if self.loop or (self.ever_rts and not self.rts):
            return 0
        if not self.fifo:
            return 1 - len(self.queue)
        if self.auto and self.rts:
            return 0 if self.stopped else self.level - len(self.queue)
        return 16 - len(self.queue)

    def held_back(self) -> bool:
        return self.auto and not self.wire["cts"]

    def identity(self) -> int:
        self.look_at_time()
        if self.want_line and (self.overrun or self.parity or self.framing or self.broken):
            return 6
        if self.want_data and len(self.queue) >= (self.level if self.fifo else 1):
            return 4
        if self.want_data and self.struck and self.queue:
            return 12
        if self.want_empty and self.empty_pending:
            return 2
        if self.want_modem and self.changed:
            return 0
        return 1

    def line(self) -> bool:
        return self.identity() != 1 and self.out2

    def dlab(self) -> bool:
        return bool(self.lcr & 0x80)

    # what the guest does

    def sent(self) -> None:
        self.empty_pending = self.want_empty

    def write(self, offset: int, value: int) -> None:
        if offset == 0 and self.dlab():
            self.dll = value
        elif offset == 1 and self.dlab():
            self.dlm = value
        elif offset == 0:
            self.transmit(value)
        elif offset == 1:
            if bool(value & 2) != self.want_empty:
                self.empty_pending = bool(value & 2) and not self.held
            self.want_data, self.want_empty = bool(value & 1), bool(value & 2)
            self.want_line, self.want_modem = bool(value & 4), bool(value & 8)
        elif offset == 2:
            self.fifo_control(value)
        elif offset == 3:
            self.lcr = value
        elif offset == 4:
            before = self.inputs()
            self.dtr, self.rts = bool(value & 1), bool(value & 2)
            self.out1, self.out2 = bool(value & 4), bool(value & 8)
            self.loop, self.auto = bool(value & 16), bool(value & 32)
            self.ever_rts |= self.rts and not self.loop
            self.note_changes(before)
            self.auto_rts()
            self.let_go()
        elif offset == 7:
            self.scratch = value

    def transmit(self, value: int) -> None:
        if self.loop:
            self.arrive(Char(value))
            self.sent()
        elif self.held_back():
            self.empty_pending = False
            if len(self.held) < (16 if self.fifo else 1):
                self.held.append(value)
            else:
                self.held[-1] = value
        else:
            self.output.append(value)
            self.sent()

    def let_go(self) -> None:
        if self.held and not self.held_back():
            for value in self.held:
                if self.loop:
                    self.arrive(Char(value))
                else:
                    self.output.append(value)
            self.held.clear()
            self.sent()

    def fifo_control(self, value: int) -> None:
        on = bool(value & 1)
        clear_rx = on != self.fifo or (on and value & 2)
        clear_tx = on != self.fifo or (on and value & 4)
        self.fifo = on
        self.level = {0: 1, 1: 4, 2: 8, 3: 14}[value >> 6] if on else 1
        if clear_rx:
            self.queue.clear()
            self.struck = False
            self.parity = self.framing = self.broken = False
        if clear_tx and self.held:
            self.held.clear()
            self.sent()
        self.auto_rts()

    def read(self, offset: int) -> int:
        if offset == 0 and self.dlab():
            return self.dll
        if offset == 1 and self.dlab():
            return self.dlm
        if offset == 0:
            if self.queue:
                self.rbr = self.queue.pop(0).code
                self.reveal()
                self.restart_timeout()
                self.auto_rts()
            return self.rbr
        if offset == 1:
            return self.want_data + 2 * self.want_empty + 4 * self.want_line + 8 * self.want_modem
        if offset == 2:
            found = self.identity()
            if found == 2:
                self.empty_pending = False
            return found + (0xC0 if self.fifo else 0)
        if offset == 3:
            return self.lcr
        if offset == 4:
            bits = [self.dtr, self.rts, self.out1, self.out2, self.loop, self.auto]
            return sum(1 << place for place, bit in enumerate(bits) if bit)
        if offset == 5:
            return self.line_status()
        if offset == 6:
            inputs = self.inputs()
            order = ("cts", "dsr", "ri", "dcd")
            value = sum(1 << place for place, name in enumerate(order) if name in self.changed)
            value += sum(16 << place for place, name in enumerate(order) if inputs[name])
            self.changed.clear()
            return value
        return self.scratch

    def line_status(self) -> int:
        empty = not self.held
        shown = self.parity or self.framing or self.broken
        in_fifo = self.fifo and (shown or any(char.bad for char in self.queue))
        bits = [
            bool(self.queue),
            self.overrun,
            self.parity,
            self.framing,
            self.broken,
            empty,
            empty,
            in_fifo,
        ]
        self.overrun = self.parity = self.framing = self.broken = False
        return sum(1 << place for place, bit in enumerate(bits) if bit)


class UartAgainstModel(RuleBasedStateMachine):
    """Every action on both; every read, the output and the interrupt line agree."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(1000)
        self.irq = RecordingIrqLine()
        self.output = bytearray()
        self.uart = Uart16550(self.irq, self.output.extend, self.clock)
        self.model = Model(self.clock)
        self.offers = 0

    @initialize(
        fcr=st.sampled_from([0, 0x01, 0x41, 0x81, 0xC1]),
        ier=st.integers(0, 15),
        mcr=st.sampled_from([0, 0x08, 0x0B, 0x0B, 0x2B, 0x1B]),
    )
    def driver_starts(self, fcr: int, ier: int, mcr: int) -> None:
        """What most drivers begin with, so that interesting states are near."""
        for offset, value in ((3, 0x83), (0, 1), (1, 0), (3, 3), (2, fcr), (1, ier), (4, mcr)):
            self.uart.write(offset, 1, value)
            self.model.write(offset, value)

    @rule(offset=st.integers(0, 7), value=st.integers(0, 255))
    def write(self, offset: int, value: int) -> None:
        self.uart.write(offset, 1, value)
        self.model.write(offset, value)

    @rule(value=st.integers(0, 15))
    def enable_interrupts(self, value: int) -> None:
        self.write(3, 3)
        self.write(1, value)

    @rule(value=st.sampled_from([0x08, 0x09, 0x0B, 0x0C, 0x0F, 0x1B, 0x1F, 0x28, 0x2B, 0x2B, 0x39]))
    def set_modem_outputs(self, value: int) -> None:
        """With OUT2, so that interrupts show."""
        self.write(4, value)

    @rule(trigger=st.sampled_from([0x00, 0x40, 0x80, 0xC0]), clear=st.sampled_from([0, 0, 2, 4, 6]))
    def set_fifos(self, trigger: int, clear: int) -> None:
        self.write(2, trigger | clear | 1)

    @rule(values=st.binary(min_size=1, max_size=20))
    def send(self, values: bytes) -> None:
        for value in values:
            self.write(0, value)

    @rule(offset=st.integers(0, 7))
    def read(self, offset: int) -> None:
        assert self.uart.read(offset, 1) == self.model.read(offset)

    @rule(offset=st.sampled_from([0, 2, 5]), times=st.integers(1, 17))
    def read_often(self, offset: int, times: int) -> None:
        for _ in range(times):
            self.read(offset)

    @rule(data=st.binary(max_size=20))
    def type(self, data: bytes) -> None:
        room = max(0, self.model.room())
        assert self.uart.receive(data) == min(room, len(data))
        for code in data[:room]:
            self.model.arrive(Char(code))

    @rule(code=st.integers(0, 255), parity=st.booleans(), framing=st.booleans())
    def noise(self, code: int, parity: bool, framing: bool) -> None:
        self.uart.inject(code, parity_error=parity, framing_error=framing)
        if not self.model.loop:
            self.model.arrive(Char(code, parity, framing))

    @rule()
    def break_condition(self) -> None:
        self.uart.receive_break()
        if not self.model.loop:
            self.model.arrive(Char(0, broken=True))

    @rule(name=st.sampled_from(["cts", "cts", "dsr", "ri", "ri", "dcd"]))
    def modem(self, name: str) -> None:
        level = not self.model.wire[name]
        before = self.model.inputs()
        self.model.wire[name] = level
        self.model.note_changes(before)
        self.uart.set_modem_lines(**{name: level})
        self.model.let_go()

    @rule(share=st.integers(0, 9))
    def time_passes(self, share: int) -> None:
        """Shares of the time-out: 4 is exactly all of it."""
        self.clock.advance(self.model.four_characters() * share // 4)

    @precondition(lambda self: self.model.queue)
    @rule()
    def just_before_the_timeout(self) -> None:
        left = self.model.quiet_since + self.model.wait - self.clock.now_ns()
        if left > 1:
            self.clock.advance(left - 1)

    @rule()
    def read_all(self) -> None:
        for offset in (2, 6, 5, 4, 3, 0, 5, 2):
            self.read(offset)

    @rule()
    def move_house(self) -> None:
        """Save, and go on with a fresh device and another clock."""
        saved = self.uart.save()
        self.uart.close()
        self.irq = RecordingIrqLine()
        self.uart = Uart16550(self.irq, self.output.extend, self.clock)
        self.uart.load(saved)

    @rule()
    def power_button(self) -> None:
        self.uart.reset()
        self.model = Model(self.clock, self.model.output, wire=self.model.wire)

    def teardown(self) -> None:
        self.read_all()
        self.clock.advance(self.model.four_characters())
        self.agree()
        for _ in range(17):
            self.read(0)
            self.read_all()
        self.uart.close()

    @invariant()
    def agree(self) -> None:
        assert self.irq.level == self.model.line()
        assert list(self.output) == self.model.output
        assert self.uart.rts == (self.model.rts and not self.model.loop and not self.model.stopped)


TestUartAgainstModel = UartAgainstModel.TestCase
TestUartAgainstModel.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
