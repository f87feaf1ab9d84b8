"""Back ends without a peer: the input pump, the output queue, buffers, files, and the parser."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.chardev import (
    BufferChardev,
    CallableChardev,
    Chardev,
    ChardevError,
    FileChardev,
    NullChardev,
    PtyChardev,
    SocketChardev,
    StdioChardev,
    TeeChardev,
    open_chardev,
)
from pykvm.devices.chardev.base import InputPump
from pykvm.devices.chardev.output import OutputQueue


def eventually(condition: object, seconds: float = 5.0) -> bool:
    """Whether `condition()` comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.002)
    return bool(condition())  # type: ignore[operator]


def fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# -- input -----------------------------------------------------------------------------------------


@given(
    pieces=st.lists(st.binary(max_size=40), max_size=20),
    takes=st.lists(st.integers(0, 20), min_size=1, max_size=20),
)
def test_input_keeps_its_order_whatever_is_refused(pieces: list[bytes], takes: list[int]) -> None:
    pump = InputPump()
    got = bytearray()
    turn = 0

    def receiver(data: bytes) -> int:
        nonlocal turn
        taken = min(takes[turn % len(takes)], len(data))
        turn += 1
        got.extend(data[:taken])
        return taken

    pump.feed(b"before")
    pump.set_receiver(receiver)
    for piece in pieces:
        pump.feed(piece)
    for _ in range(2000):
        if any(takes):
            pump.ready()
    everything = b"before" + b"".join(pieces)
    assert everything.startswith(got)
    if any(takes):
        assert got == everything
        assert pump.empty


def test_a_receiver_may_call_back() -> None:
    """A device that makes room while it is being fed is offered more, once, in order."""
    pump = InputPump()
    got = bytearray()

    def receiver(data: bytes) -> int:
        if len(got) % 4 == 3 and not made_room:
            made_room.append(True)
            pump.ready()
            return 0
        made_room.clear()
        got.append(data[0])
        return 1

    made_room: list[bool] = []
    pump.set_receiver(receiver)
    assert pump.feed(b"0123456789")
    assert got == b"0123456789"


# -- output ----------------------------------------------------------------------------------------


class Sink:
    """A descriptor that takes what it is told to, and the queue in front of it."""

    def __init__(self, *, limit: int = 1000) -> None:
        self.taken: list[bytes] = []
        self.room = 1 << 30
        self.failure: OSError | None = None
        self.wakes = 0
        self.waits = 0
        self.failed: list[OSError] = []
        self.on_wait = lambda: None
        self.queue = OutputQueue(
            self.send,
            limit=limit,
            wait=self.wait,
            wake=self.wake,
            failed=self.failed.append,
        )

    @property
    def data(self) -> bytes:
        return b"".join(self.taken)

    def send(self, data: bytearray) -> int:
        if self.failure is not None:
            raise self.failure
        count = min(self.room, len(data))
        if count == 0:
            raise BlockingIOError
        self.room -= count
        self.taken.append(bytes(data[:count]))
        return count

    def wait(self, seconds: float) -> None:
        assert 0 <= seconds <= 0.1
        self.waits += 1
        self.on_wait()

    def wake(self) -> None:
        self.wakes += 1


def test_the_first_byte_goes_at_once_and_the_rest_by_line() -> None:
    sink = Sink()
    for code in b"hello\nwor":
        sink.queue.write(bytes([code]))
    assert sink.taken == [b"h", b"ello\n"]
    assert sink.wakes == 1
    sink.queue.tick()
    assert sink.taken[2:] == [b"wor"]
    assert sink.queue.gathering
    sink.queue.tick()
    assert not sink.queue.gathering
    sink.queue.write(b"$")
    assert sink.taken[3:] == [b"$"]


def test_a_long_line_does_not_wait_for_its_end() -> None:
    sink = Sink(limit=100_000)
    for _ in range(5000):
        sink.queue.write(b"x")
    assert len(sink.data) > 4000
    assert len(sink.taken) == 3


def test_a_full_queue_loses_its_oldest_bytes() -> None:
    sink = Sink(limit=10)
    sink.room = 3
    for code in b"abcdefghijklmnopqrstuvwxyz":
        sink.queue.write(bytes([code]))
    assert sink.queue.blocked
    sink.queue.drain()
    assert sink.data == b"abc"
    sink.room = 100
    sink.queue.drain()
    assert sink.data == b"abcqrstuvwxyz"
    assert sink.queue.dropped == 13
    assert not sink.queue.blocked


def test_a_patient_queue_waits_and_loses_nothing() -> None:
    sink = Sink(limit=10)
    sink.queue.patient = True
    sink.room = 0

    def room() -> None:
        sink.room += 4

    sink.on_wait = room
    data = bytes(range(200))
    for code in data:
        sink.queue.write(bytes([code]))
        assert len(sink.queue) <= 10
    sink.queue.flush(1.0)
    assert sink.data == data
    assert sink.waits > 10
    assert sink.queue.dropped == 0


def test_stop_waiting_ends_the_patience() -> None:
    sink = Sink(limit=10)
    sink.queue.patient = True
    sink.room = 0
    sink.on_wait = sink.queue.stop_waiting
    sink.queue.write(b"x" * 11)
    assert (sink.waits, sink.queue.dropped) == (1, 1)
    sink.queue.flush(60.0)
    sink.queue.write(b"y" * 100)
    assert sink.waits == 1
    assert len(sink.queue) == 10


def test_flush_gives_up_on_an_end_that_takes_nothing() -> None:
    sink = Sink()
    sink.room = 2
    sink.queue.write(b"abcd")
    start = time.monotonic()
    sink.queue.flush(0.05)
    assert 0.04 < time.monotonic() - start < 2
    assert sink.data == b"ab"


@pytest.mark.parametrize("call", ["write", "newline", "tick", "drain", "flush"])
def test_a_broken_end_is_told_once_and_swallows_the_rest(call: str) -> None:
    sink = Sink()
    sink.queue.write(b"a")
    sink.queue.write(b"b")
    sink.failure = BrokenPipeError()
    if call == "newline":
        sink.queue.write(b"\n")
    elif call == "write":
        sink.queue.write(b"x" * 9000)
    elif call == "flush":
        sink.queue.flush(9.0)
    else:
        getattr(sink.queue, call)()
    assert sink.failed == [sink.failure]
    sink.queue.write(b"more\n")
    sink.queue.tick()
    sink.queue.flush(9.0)
    assert len(sink.failed) == 1
    assert sink.data == b"a"


# -- Python ----------------------------------------------------------------------------------------


def test_buffer_keeps_the_newest() -> None:
    buffer = BufferChardev(limit=100)
    for number in range(10_000):
        buffer.write(bytes([number & 0xFF]))
        assert len(buffer._data) <= 100 + 4097
    assert buffer.data == bytes(n & 0xFF for n in range(9_900, 10_000))
    assert buffer.dropped == 9_900
    buffer.clear()
    assert (buffer.data, buffer.dropped) == (b"", 0)
    buffer.write("grün\xff".encode("latin-1"))
    assert buffer.text == "gr�n�"
    with pytest.raises(ValueError, match="keeps nothing"):
        BufferChardev(limit=0)


def test_buffer_without_limit_keeps_all() -> None:
    buffer = BufferChardev(limit=None)
    buffer.write(b"x" * 100_000)
    assert (len(buffer.data), buffer.dropped) == (100_000, 0)


def test_buffer_wait_for() -> None:
    buffer = BufferChardev()
    assert not buffer.wait_for(b"login:", 0.01)
    thread = threading.Timer(0.02, lambda: [buffer.write(bytes([c])) for c in b"my login: "])
    thread.start()
    assert buffer.wait_for("login:", 5)
    thread.join()
    assert buffer.wait_for(b"login:", 0)


@pytest.mark.parametrize("make", [BufferChardev, lambda: CallableChardev(lambda data: None)])
def test_feeding_from_python(make: object) -> None:
    backend = make()  # type: ignore[operator]
    got: list[bytes] = []
    backend.feed("ä")
    backend.set_receiver(lambda data: got.append(data) or len(data))
    backend.feed(b"b")
    assert got == ["ä".encode(), b"b"]


def test_callable_gets_output() -> None:
    seen: list[bytes] = []
    CallableChardev(seen.append).write(b"x")
    assert seen == [b"x"]


def test_null() -> None:
    with NullChardev() as backend:
        backend.write(b"x")
        backend.flush()
        backend.stop_waiting()


class Moody(BufferChardev):
    """Keeps a diary; raises where it is told to."""

    def __init__(self, raises: str = "") -> None:
        super().__init__()
        self.raises = raises
        self.diary: list[str] = []

    def _note(self, what: str) -> None:
        self.diary.append(what)
        if what == self.raises:
            raise KeyboardInterrupt(what)

    def start(self) -> None:
        self._note("start")

    def flush(self) -> None:
        self._note("flush")

    def stop_waiting(self) -> None:
        self._note("stop_waiting")

    def close(self) -> None:
        self._note("close")


def test_tee() -> None:
    one, two = Moody(), Moody()
    tee = TeeChardev(one, two)
    got: list[bytes] = []
    events: list[str] = []
    tee.set_receiver(lambda data: got.append(data) or len(data))
    tee.add_event_handler(events.append)
    with tee:
        tee.write(b"out")
        tee.flush()
        tee.stop_waiting()
        one.feed(b"1")
        two.feed(b"2")
        two._emit("break")
    assert one.data == two.data == b"out"
    assert got == [b"1", b"2"]
    assert events == ["break"]
    assert one.diary == two.diary == ["start", "flush", "stop_waiting", "close"]


def test_tee_offers_the_input_of_all() -> None:
    one, two = BufferChardev(), BufferChardev()
    tee = TeeChardev(one, two)
    room = [0]
    got = bytearray()

    def receiver(data: bytes) -> int:
        taken = min(room[0], len(data))
        room[0] -= taken
        got.extend(data[:taken])
        return taken

    tee.set_receiver(receiver)
    one.feed(b"1")
    two.feed(b"2")
    room[0] = 9
    tee.receiver_ready()
    assert got == b"12"


def test_tee_leaves_nothing_open() -> None:
    one, two, three = Moody(), Moody("start"), Moody()
    with pytest.raises(KeyboardInterrupt):
        TeeChardev(one, two, three).start()
    assert (one.diary, two.diary, three.diary) == (["start", "close"], ["start"], [])
    one, two = Moody("close"), Moody()
    with pytest.raises(KeyboardInterrupt):
        TeeChardev(one, two).close()
    assert two.diary == ["close"]


# -- files -----------------------------------------------------------------------------------------


def test_file(tmp_path: Path) -> None:
    before = fds()
    path = tmp_path / "log"
    path.write_bytes(b"old old old old")
    with FileChardev(path) as backend:
        backend.write(b"a")
        assert path.read_bytes() == b"a"
        backend.write(b"b")
        assert eventually(lambda: path.read_bytes() == b"ab")  # without a newline or a flush
        backend.write(b"\xff\0last")
    assert path.read_bytes() == b"ab\xff\0last"
    with FileChardev(path, append=True) as backend:
        backend.write(b"+")
    assert path.read_bytes() == b"ab\xff\0last+"
    backend.write(b"late")
    backend.close()
    assert path.read_bytes() == b"ab\xff\0last+"
    assert fds() == before
    assert not [t for t in threading.enumerate() if t.name.startswith("pykvm")]


def test_file_errors(tmp_path: Path) -> None:
    before = fds()
    for path in (tmp_path, tmp_path / "no" / "such", "nul\0byte"):
        with pytest.raises(ChardevError, match=r"cannot be opened for writing \(.+\); give a path"):
            FileChardev(path).start()
    assert fds() == before


def test_a_full_disk_ends_the_output() -> None:
    events: list[str] = []
    with FileChardev("/dev/full") as backend:
        backend.add_event_handler(events.append)
        for _ in range(10):
            backend.write(b"x\n")
        assert isinstance(backend.error, OSError)
        assert backend.error.errno == errno.ENOSPC
    assert events == ["hangup"]


def test_a_named_pipe_nobody_reads_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        backend = FileChardev(path)
        backend.start()
        done = threading.Event()

        def guest() -> None:
            for _ in range(100):
                backend.write(b"x" * 8192)
            done.set()

        thread = threading.Thread(target=guest)
        thread.start()
        assert not done.wait(0.3)  # back pressure
        backend.stop_waiting()
        assert done.wait(5)
        thread.join()
        start = time.monotonic()
        backend.close()
        assert time.monotonic() - start < 2
        assert backend.dropped > 0
    finally:
        os.close(reader)


# -- the parser ------------------------------------------------------------------------------------


def test_parser_finds_the_right_kind() -> None:
    cases: list[tuple[str, type[Chardev], dict[str, object]]] = [
        ("stdio", StdioChardev, {"_signals": True, "_stdin": 0}),
        ("stdio,signals=off", StdioChardev, {"_signals": False}),
        ("stdio,input=off", StdioChardev, {"_stdin": -1}),
        ("null", NullChardev, {}),
        ("file:a/b", FileChardev, {"path": "a/b", "_append": False}),
        ("file:x,append", FileChardev, {"path": "x", "_append": True}),
        ("file:with,comma", FileChardev, {"path": "with,comma"}),
        ("file:with:colon", FileChardev, {"path": "with:colon"}),
        ("pty", PtyChardev, {"link": None}),
        ("pty:/tmp/l", PtyChardev, {"link": "/tmp/l"}),
        ("pty,link=l", PtyChardev, {"link": "l"}),
        ("unix:/s", SocketChardev, {"address": "/s", "_server": False, "_reconnect": None}),
        ("unix:/s,server,nowait", SocketChardev, {"_server": True, "_wait": False}),
        ("unix:/s,server=on,wait=off", SocketChardev, {"_server": True, "_wait": False}),
        ("tcp:localhost:80", SocketChardev, {"address": ("localhost", 80)}),
        ("tcp:[::1]:80,reconnect=2.5", SocketChardev, {"address": ("::1", 80), "_reconnect": 2.5}),
        ("tcp::0,server", SocketChardev, {"address": ("", 0), "_server": True, "_wait": True}),
    ]
    for spec, kind, attributes in cases:
        backend = open_chardev(spec)
        assert type(backend) is kind, spec
        for name, value in attributes.items():
            assert getattr(backend, name) == value, (spec, name)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "'' is not known; give one of stdio"),
        ("telnet:host:1", "'telnet:host:1' is not known"),
        ("stdio:x", "is not known"),
        ("stdio,colour=on", "option 'colour=on' is not known; there are: signals, input"),
        ("stdio,signals=maybe", "signals=maybe is neither on nor off"),
        ("null,x", "option 'x' is not known; there are: none"),
        ("null:", "is not known"),
        ("file", "is not known"),
        ("file:", "lacks a path"),
        ("file:,append", "lacks a path"),
        ("file:a\0b", "NUL"),
        ("unix:", "lacks a path"),
        ("tcp:", "lacks HOST:PORT"),
        ("tcp:host", "'host' is not HOST:PORT"),
        ("tcp:host:", "not HOST:PORT"),
        ("tcp:host:http", "a number up to 65535"),
        ("tcp:host:65536", "a number up to 65535"),
        ("tcp:host:99999999999999999999", "a number up to 65535"),
        ("tcp:host:-1", "a number up to 65535"),
        ("tcp:host:²", "a number up to 65535"),
        ("tcp:host:1,reconnect=soon", "reconnect=soon is not a time"),
        ("tcp:host:1,reconnect=nan", "reconnect=nan is not a time"),
        ("tcp:host:1,reconnect=0", "reconnect=0 is not a time"),
        ("tcp:host:1,server,reconnect=1", "a server does not reconnect"),
        ("pty,lonk=x", "option 'lonk=x' is not known; there are: link"),
    ],
)
def test_parser_errors(spec: str, message: str) -> None:
    with pytest.raises(ChardevError) as refused:
        open_chardev(spec)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@given(spec=st.text(max_size=30) | st.from_regex(r"(stdio|tcp|unix|file|pty)[:,=a-z0-9\[\]]*"))
def test_parser_never_crashes_and_opens_nothing(spec: str) -> None:
    try:
        backend = open_chardev(spec)
    except ChardevError:
        return
    assert isinstance(backend, Chardev)
    backend.close()
