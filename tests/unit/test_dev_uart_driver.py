"""The 16550A as drivers use it: what they probe, interrupt by interrupt, with several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pykvm.devices import ManualClock, RecordingIrqLine, Uart16550
from pykvm.devices.chardev import BufferChardev

IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 1, 2, 2, 3, 4, 5, 6, 7


def linux_port_type(uart: Uart16550) -> str:
    """The questions that Linux' 8250 driver asks a port, and the conclusions it draws."""

    def inp(offset: int) -> int:
        return uart.read(offset, 1)

    def out(offset: int, value: int) -> None:
        uart.write(offset, 1, value)

    out(IER, 0)
    if inp(IER) & 0x0F:
        return "no port: IER does not clear"
    out(IER, 0x0F)
    if inp(IER) & 0x0F != 0x0F:
        return "no port: IER does not stick"
    out(IER, 0)
    lcr, mcr = inp(LCR), inp(MCR)
    out(MCR, 0x10 | 0x0A)
    if inp(MSR) & 0xF0 != 0x90:
        return "no port: loopback"
    out(MCR, mcr)
    out(LCR, 0xBF)
    out(2, 0)
    out(LCR, 0)
    out(FCR, 1)
    fifo = inp(IIR) >> 6
    if fifo == 0:
        for value in (0xA5, 0x5A):
            out(SCR, value)
            if inp(SCR) != value:
                return "8250"
        return "16450"
    if fifo != 3:
        return "16550" if fifo == 2 else "unknown"
    out(LCR, 0x80)
    if inp(2) == 0:
        return "16650 or better: EFR"
    out(LCR, 0xBF)
    if inp(2) == 0:
        return "16650V2 or 16850: EFR"
    out(LCR, 0)
    before = inp(MCR)
    out(LCR, 0xE0)
    if not (inp(2) ^ before) & 0x10:
        out(LCR, 0)
        out(MCR, before ^ 0x10)
        out(LCR, 0xE0)
        after = inp(2)
        out(LCR, 0)
        out(MCR, before)
        if (after ^ before) & 0x10:
            return "NS16550A with EXCR"
    out(LCR, 0)
    out(FCR, 0x21)
    plain = inp(IIR) >> 5
    out(FCR, 1)
    out(LCR, 0x80)
    out(FCR, 0x21)
    behind_dlab = inp(IIR) >> 5
    out(FCR, 1)
    out(LCR, lcr)
    if (plain, behind_dlab) != (6, 6):
        return f"16750: {plain} {behind_dlab}"
    out(IER, 0x40)
    if inp(IER) & 0x40:
        return "XScale: IER has a unit-enable bit"
    out(IER, 0)
    out(FCR, 0)
    out(LCR, lcr)
    return "16550A"


def test_linux_finds_a_16550a() -> None:
    uart = Uart16550(clock=ManualClock())
    assert linux_port_type(uart) == "16550A"
    assert linux_port_type(uart) == "16550A"


def test_linux_finds_no_bug_in_the_thre_interrupt() -> None:
    """The start-up tests for UARTs that lose THRE interrupts, which cost them a polling timer."""
    uart = Uart16550(clock=ManualClock())
    for _ in range(2):
        uart.write(IER, 1, 2)
        assert not uart.read(IIR, 1) & 1
        uart.write(IER, 1, 0)
    uart.write(IER, 1, 2)
    assert uart.read(LSR, 1) & 0x40
    assert not uart.read(IIR, 1) & 1
    uart.write(IER, 1, 0)
    assert uart.read(LSR, 1) != 0xFF


class Driver:
    """An interrupt-driven echo server in the manner of a real one, behind an edge-triggered PIC."""

    def __init__(self, fcr: int, *, burst: int = 16) -> None:
        self.irq = RecordingIrqLine()
        self.clock = ManualClock()
        self.backend = BufferChardev()
        self.uart = Uart16550(self.irq, clock=self.clock)
        self.uart.connect(self.backend)
        self.got = bytearray()
        self.to_send = bytearray()
        self.burst = burst
        self.longest = 0
        for offset, value in ((3, 0x83), (0, 1), (1, 0), (3, 3), (2, fcr), (4, 0x0B), (1, 0x05)):
            self.uart.write(offset, 1, value)

    def interrupt(self) -> None:
        inp = self.uart.read
        passes = 0
        while not (identity := inp(IIR, 1)) & 1:
            passes += 1
            if identity & 0x0F == 0x06:
                inp(LSR, 1)
            elif identity & 0x0F in (0x04, 0x0C):
                while inp(LSR, 1) & 1:
                    code = inp(0, 1)
                    self.got.append(code)
                    self.to_send.append(code)
                self.uart.write(IER, 1, 0x07)
            elif identity & 0x0F == 0x02:
                for code in self.to_send[: self.burst]:
                    self.uart.write(0, 1, code)
                del self.to_send[: self.burst]
                if not self.to_send:
                    self.uart.write(IER, 1, 0x05)
            else:
                inp(MSR, 1)
        self.longest = max(self.longest, passes)

    def run(self) -> None:
        """Interrupts and idle time until nothing happens any more."""
        for _ in range(100_000):
            if self.irq.take_edge():
                self.interrupt()
            elif self.clock.armed:
                self.clock.advance(1_000_000)
            else:
                return
        raise AssertionError("the line never came to rest")


@pytest.mark.parametrize("fcr", [0x00, 0x01, 0x41, 0x81, 0xC1])
@pytest.mark.parametrize("length", [1, 3, 15, 16, 17, 1000])
def test_an_interrupt_driven_driver_gets_and_sends_everything(fcr: int, length: int) -> None:
    driver = Driver(fcr, burst=16 if fcr else 1)
    data = bytes(i & 0xFF for i in range(length))
    driver.backend.feed(data)
    driver.run()
    assert driver.got == data
    assert driver.backend.data == data


def test_a_long_paste_lets_the_handler_end() -> None:
    """Input that filled up the FIFO as fast as it was read would keep the handler for ever."""
    driver = Driver(0x81)
    driver.backend.feed(bytes(20_000))
    driver.run()
    assert len(driver.got) == 20_000
    assert driver.longest < 10


def test_a_polling_guest_gets_everything() -> None:
    uart = Uart16550(clock=ManualClock())
    backend = BufferChardev()
    uart.connect(backend)
    data = bytes(range(200))
    backend.feed(data)
    got = bytearray()
    for _ in range(1000):
        if uart.read(LSR, 1) & 1:
            got.append(uart.read(0, 1))
    assert got == data


def test_break_and_carrier_reach_the_guest() -> None:
    uart = Uart16550(clock=ManualClock())
    backend = BufferChardev()
    uart.connect(backend)
    backend._emit("break")
    assert uart.read(LSR, 1) == 0x71
    backend._emit("disconnected")
    assert uart.read(MSR, 1) == 0x1A
    backend._emit("connected")
    assert uart.read(MSR, 1) == 0xBA


def in_threads(*jobs: Callable[[], object]) -> None:
    failures: list[BaseException] = []

    def guarded(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failures


def test_input_from_one_thread_and_a_guest_on_another() -> None:
    """Nothing is lost, doubled or reordered, and nobody waits for ever."""
    uart = Uart16550()  # a real clock: its timer thread takes part
    backend = BufferChardev()
    uart.connect(backend)
    for offset, value in ((3, 0x83), (0, 1), (3, 3), (2, 0xC1), (4, 0x0B), (1, 0x01)):
        uart.write(offset, 1, value)
    data = bytes(i * 7 & 0xFF for i in range(20_000))
    got = bytearray()

    def feeder() -> None:
        for start in range(0, len(data), 333):
            backend.feed(data[start : start + 333])

    def guest() -> None:
        while len(got) < len(data):
            if not uart.read(IIR, 1) & 1:
                while uart.read(LSR, 1) & 1:
                    got.append(uart.read(0, 1))

    def sender() -> None:
        for _ in range(5000):
            uart.write(0, 1, ord("x"))

    try:
        in_threads(feeder, guest, sender)
    finally:
        uart.close()
    assert got == data
    assert backend.data == b"x" * 5000
