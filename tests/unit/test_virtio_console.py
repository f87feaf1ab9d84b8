"""The virtio console by a driver without a guest: ports, names, hot plugging, flow control."""

from __future__ import annotations

import struct

import pytest
from virtio_small import Driver, clock

from pykvm.devices.chardev import BufferChardev
from pykvm.devices.virtio.console import (
    CONSOLE_PORT,
    DEVICE_READY,
    F_MULTIPORT,
    PORT_ADD,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    PORT_REMOVE,
    RESIZE,
    VirtioConsole,
)

RX, TX, CONTROL_IN, CONTROL_OUT = range(4)


class Slow(BufferChardev):
    """A back end whose reader is slow."""

    full = False

    @property
    def congested(self) -> bool:
        return self.full


class Bench:
    """A console and its driver."""

    def __init__(self, ports: int = 4, *, without: int = 0, **options: object) -> None:
        self.clock = clock()
        self.backend = Slow()
        self.console = VirtioConsole(self.backend, ports=ports, clock=self.clock, **options)  # type: ignore[arg-type]
        self.driver = Driver(self.console, without=without)

    def control(self, index: int, event: int, value: int = 1) -> None:
        self.driver.ask(CONTROL_OUT, struct.pack("<IHH", index, event, value))

    def messages(self, rooms: int = 8) -> list[tuple[int, int, int, bytes]]:
        """Gives room for messages; those that came."""
        for _ in range(rooms - self.given):
            self.driver.give(CONTROL_IN, room=128)
        self.given = rooms
        found = []
        for raw in self.driver.answers(CONTROL_IN):
            self.given -= 1
            found.append((*struct.unpack_from("<IHH", raw), raw[8:]))
        return found

    given = 0


def test_a_single_port_is_a_plain_console() -> None:
    bench = Bench(ports=1, size=(80, 25))
    driver = bench.driver
    assert driver.transport.config(0, 4) == 80 | 25 << 16
    driver.ask(TX, b"hello ")
    driver.ask(TX, b"world")
    assert bench.backend.data == b"hello world"
    bench.backend.feed(b"typed")
    assert driver.answers(RX) == []  # no room yet
    driver.give(RX, room=3)
    driver.give(RX, room=64)
    assert driver.answers(RX) == [b"typ", b"ed"]
    bench.backend.feed("more")
    driver.give(RX, room=64)
    assert driver.answers(RX) == [b"more"]
    driver.interrupts()
    bench.console.resize(132, 43)
    assert driver.interrupts() & 2
    assert driver.transport.config(0, 4) == 132 | 43 << 16


def test_a_driver_without_multiport_has_port_0() -> None:
    bench = Bench(ports=4, without=F_MULTIPORT)
    bench.driver.ask(TX, b"x")
    assert bench.backend.data == b"x"
    bench.driver.give(RX, room=8)
    bench.backend.feed("y")
    assert bench.driver.answers(RX) == [b"y"]


def test_emergency_writes_before_there_is_a_driver() -> None:
    bench = Bench()
    bench.driver.transport.set_status(0)
    for byte in b"panic":
        bench.driver.board.mmio.write(0xFEB0_0108, 4, byte)
    assert bench.backend.data == b"panic"


def test_the_ports_are_told_with_their_names() -> None:
    bench = Bench(size=(100, 30))
    other = BufferChardev()
    assert bench.console.add_port("org.example.0", other) == 1
    bench.control(0, DEVICE_READY)
    assert bench.messages() == [(0, PORT_ADD, 1, b""), (1, PORT_ADD, 1, b"")]
    bench.control(0, PORT_READY)
    size = struct.pack("<HH", 100, 30)
    assert bench.messages() == [
        (0, CONSOLE_PORT, 1, b""), (0, RESIZE, 0, size), (0, PORT_OPEN, 1, b""),
    ]  # fmt: skip
    bench.control(1, PORT_READY)
    assert bench.messages() == [(1, PORT_NAME, 1, b"org.example.0"), (1, PORT_OPEN, 1, b"")]
    bench.console.resize(90, 20)
    assert bench.messages() == [(0, RESIZE, 0, struct.pack("<HH", 90, 20))]
    bench.driver.ask(5, b"to port 1")
    assert (other.data, bench.backend.data) == (b"to port 1", b"")


def ready(bench: Bench) -> None:
    bench.control(0, DEVICE_READY)
    for index in bench.console.ports:
        bench.control(index, PORT_READY)
    bench.messages(16)


def test_input_waits_until_a_program_opens_the_port() -> None:
    bench = Bench()
    other = BufferChardev()
    bench.console.add_port("a", other)
    ready(bench)
    bench.driver.give(4, room=16)
    other.feed("early")
    assert bench.driver.answers(4) == []
    bench.control(1, PORT_OPEN)
    assert bench.driver.answers(4) == [b"early"]
    bench.control(1, PORT_OPEN, 0)
    bench.driver.give(4, room=16)
    other.feed("later")
    assert bench.driver.answers(4) == []


def test_early_input_of_the_console_waits_until_it_is_open() -> None:
    bench = Bench()
    bench.backend.feed("typed before the kernel was up")
    bench.driver.give(RX, room=64)
    ready(bench)
    assert bench.driver.answers(RX) == []
    bench.control(0, PORT_OPEN)
    assert bench.driver.answers(RX) == [b"typed before the kernel was up"]


def test_ports_come_and_go_while_the_guest_runs() -> None:
    bench = Bench()
    ready(bench)
    backend = BufferChardev()
    index = bench.console.add_port("late", backend)
    assert bench.messages() == [(index, PORT_ADD, 1, b"")]
    bench.control(index, PORT_READY)
    assert (index, PORT_NAME, 1, b"late") in bench.messages()
    bench.console.remove_port("late")
    assert bench.messages() == [(index, PORT_REMOVE, 1, b"")]
    bench.driver.ask(2 * index + 3, b"lost")  # its queue still answers
    assert backend.data == b""
    assert bench.console.add_port("again") == index
    for wrong in (0, "late", 7):
        with pytest.raises(ValueError, match="no port"):
            bench.console.remove_port(wrong)
    for wrong_name in ("", "a/b", "x" * 200, "again"):
        with pytest.raises(ValueError, match=r"name|already"):
            bench.console.add_port(wrong_name)
    bench.console.add_port("b")
    bench.console.add_port("c")
    with pytest.raises(ValueError, match="room for 4"):
        bench.console.add_port("d")


def test_the_hosts_end_opens_and_closes() -> None:
    bench = Bench()
    other = BufferChardev()
    bench.console.add_port("a", other)
    ready(bench)
    other._emit("disconnected")
    other._emit("connected")
    other._emit("disconnected")
    assert bench.messages()[-1] == (1, PORT_OPEN, 0, b"")


def test_messages_for_a_guest_that_takes_none_do_not_pile_up() -> None:
    bench = Bench()
    bench.console.add_port("a", BufferChardev())
    for _ in range(500):
        bench.control(0, DEVICE_READY)
        bench.control(1, PORT_READY)
    assert len(bench.console._messages) < 10
    assert len(bench.messages(16)) < 10


def test_a_slow_reader_holds_the_guest_back() -> None:
    bench = Bench(ports=1)
    driver = bench.driver
    bench.backend.full = True
    for n in range(5):
        driver.give(TX, b"%d" % n)
    assert driver.answers(TX) == []
    assert bench.backend.data == b""
    bench.backend.full = False
    bench.clock.advance(50_000_000)
    assert len(driver.answers(TX)) == 5
    assert bench.backend.data == b"01234"


def test_input_that_came_during_a_pause_comes_afterwards() -> None:
    bench = Bench(ports=1)
    bench.driver.give(RX, room=16)
    bench.console.freeze()
    bench.backend.feed("held")
    assert bench.driver.answers(RX) == []
    bench.console.thaw()
    bench.clock.advance(50_000_000)
    assert bench.driver.answers(RX) == [b"held"]


def test_hostile_buffers() -> None:
    bench = Bench()
    bench.driver.give(CONTROL_IN, room=4)  # too small for any message
    bench.control(0, DEVICE_READY)
    assert bench.driver.broken

    bench = Bench(ports=1)
    bench.driver.give(RX, out=b"cannot be written")
    bench.backend.feed("x")
    assert bench.driver.broken

    bench = Bench()
    for raw in (b"x", bytes(7), struct.pack("<IHH", 99, PORT_READY, 1), b"\xff" * 100):
        bench.driver.ask(CONTROL_OUT, raw)
    assert not bench.driver.broken


def test_a_copy_of_the_state_knows_the_ports() -> None:
    bench = Bench()
    bench.console.add_port("a", BufferChardev())
    bench.control(0, DEVICE_READY)
    bench.control(1, PORT_READY)
    bench.control(1, PORT_OPEN)
    saved = bench.driver.outer.save()
    other = Bench()
    other.console.add_port("a", BufferChardev())
    other.driver.outer.load(saved)
    assert other.console.ports[1].guest_open
    assert other.driver.outer.save() == saved
    from pykvm.devices import DeviceStateError

    with pytest.raises(DeviceStateError, match="ports"):
        Bench().driver.outer.load(saved)
