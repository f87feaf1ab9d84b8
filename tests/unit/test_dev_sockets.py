"""Sockets and pseudo-terminals as serial back ends: a peer at the other end of each."""

from __future__ import annotations

import os
import select
import socket
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pykvm.devices import ManualClock, Uart16550
from pykvm.devices.chardev import Chardev, ChardevError, PtyChardev, SocketChardev


def eventually(condition: Callable[[], object], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.002)
    return bool(condition())


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert not [t for t in threading.enumerate() if t.name.startswith("pykvm")]
    assert set(os.listdir("/proc/self/fd")) == before


def quiet(line: str) -> None:
    """No announcement."""


def server(address: object, **options: object) -> SocketChardev:
    return SocketChardev(address, server=True, wait=False, announce=quiet, **options)  # type: ignore[arg-type]


def connect(backend: SocketChardev) -> socket.socket:
    if isinstance(backend.address, str):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(backend.address)
    else:
        peer = socket.create_connection(("127.0.0.1", backend.address[1]))
    peer.settimeout(5)
    return peer


def read_exactly(peer: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = peer.recv(count - len(data))
        assert piece, f"closed after {bytes(data)!r}"
        data += piece
    return bytes(data)


class Guest:
    """A polling guest behind a UART: echoes what it gets."""

    def __init__(self, backend: Chardev) -> None:
        self.uart = Uart16550(clock=ManualClock())
        self.uart.connect(backend)
        self.uart.write(2, 1, 1)
        self.got = bytearray()

    def poll(self) -> None:
        if self.uart.read(5, 1) & 1:
            code = self.uart.read(0, 1)
            self.got.append(code)
            self.uart.write(0, 1, code)

    def echo_until(self, count: int) -> None:
        def step() -> bool:
            self.poll()
            return len(self.got) >= count

        end = time.monotonic() + 10
        while not step():
            assert time.monotonic() < end, f"got {len(self.got)} of {count}"


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_both_ways_through_a_server(kind: str, tmp_path: Path) -> None:
    backend = server(str(tmp_path / "s") if kind == "unix" else ("127.0.0.1", 0))
    guest = Guest(backend)
    with backend, connect(backend) as peer:
        data = bytes(i * 13 & 0xFF for i in range(5000))
        peer.sendall(data)
        guest.echo_until(len(data))
        assert guest.got == data
        assert read_exactly(peer, len(data)) == data
        guest.uart.write(0, 1, ord("!"))
        assert read_exactly(peer, 1) == b"!"
    assert not (tmp_path / "s").exists()


def test_client(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        backend = SocketChardev(path)
        guest = Guest(backend)
        with backend:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(5)
                peer.sendall(b"ping")
                guest.echo_until(4)
                assert read_exactly(peer, 4) == b"ping"
            assert eventually(lambda: not backend.connected)
            backend.write(b"into the void\n")


def test_wait_returns_with_the_first_peer(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    said: list[str] = []
    backend = SocketChardev(path, server=True, announce=said.append)
    peers: list[socket.socket] = []

    def later() -> None:
        assert eventually(lambda: said)
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(path)
        peers.append(peer)

    thread = threading.Thread(target=later)
    thread.start()
    backend.start()
    assert backend.connected
    thread.join()
    assert said == [f"pykvm: waiting for a connection on unix:{path}"]
    backend.close()
    assert peers[0].recv(1) == b""
    peers[0].close()


def test_carrier_and_the_output_before_the_first_peer(tmp_path: Path) -> None:
    backend = server(str(tmp_path / "s"))
    guest = Guest(backend)
    with backend:
        assert guest.uart.read(6, 1) & 0xF0 == 0x10  # no carrier yet
        for code in b"boot log\n":
            guest.uart.write(0, 1, code)
        with connect(backend) as peer:
            assert read_exactly(peer, 9) == b"boot log\n"
            assert eventually(lambda: guest.uart.read(6, 1) & 0xF0 == 0xB0)
        assert eventually(lambda: guest.uart.read(6, 1) & 0xF0 == 0x10)


def test_peers_come_and_go(tmp_path: Path) -> None:
    backend = server(str(tmp_path / "s"))
    events: list[str] = []
    backend.add_event_handler(events.append)
    guest = Guest(backend)
    with backend:
        for turn in range(5):
            with connect(backend) as peer:
                text = f"turn {turn}".encode()
                peer.sendall(text)
                guest.got.clear()
                guest.echo_until(len(text))
                assert read_exactly(peer, len(text)) == text
            assert eventually(lambda n=turn: events.count("disconnected") == n + 2)
    assert events == ["disconnected"] + ["connected", "disconnected"] * 5


def test_a_peer_that_is_gone_when_the_guest_prints(tmp_path: Path) -> None:
    """What it did not get goes to the next one."""
    backend = server(("127.0.0.1", 0))
    with backend:
        peer = connect(backend)
        assert eventually(lambda: backend.connected)
        # Reset rather than close, so that the next write fails.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        peer.close()
        for number in range(100):
            backend.write(b"line %d\n" % number)
            time.sleep(0.0005)
        with connect(backend) as second:
            backend.write(b"end\n")
            data = b""
            while not data.endswith(b"end\n"):
                data += read_exactly(second, 1)
            assert b"line 99\n" in data


def test_a_slow_peer_costs_no_time_and_bounded_memory(tmp_path: Path) -> None:
    backend = server(str(tmp_path / "s"))
    with backend, connect(backend) as peer:
        assert eventually(lambda: backend.connected)
        start = time.monotonic()
        for number in range(20_000):
            backend.write(b"%099d\n" % number)
        assert time.monotonic() - start < 5
        assert len(backend._output) <= backend.output_limit
        assert backend.dropped > 0
        peer.settimeout(5)
        data = b""
        while b"%099d\n" % 19_999 not in data[-200:]:
            data += peer.recv(1 << 20)


def test_flow_control_reaches_the_sender(tmp_path: Path) -> None:
    backend = server(str(tmp_path / "s"))
    guest = Guest(backend)
    with backend, connect(backend) as peer:
        peer.setblocking(False)
        sent = 0
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            try:
                sent += peer.send(b"x" * 4096)
            except BlockingIOError:
                time.sleep(0.01)
        # Only what sockets and one read hold was taken from the sender: nobody reads it here.
        assert len(backend._input) <= 4096 + 16
        guest.echo_until(10_000)
        assert sent >= 10_000


def test_client_reconnects(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    backend = SocketChardev(path, reconnect=0.02)
    for turn in range(3):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(5)
            if turn == 0:
                backend.start()
            peer, _ = listener.accept()
            with peer:
                backend.write(b"turn %d\n" % turn)
                assert read_exactly(peer, 7) == b"turn %d\n" % turn
        os.unlink(path)
        assert eventually(lambda: not backend.connected)
    assert eventually(lambda: backend.error is not None)
    backend.close()


def test_errors_are_one_sentence_and_leave_nothing(tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(busy))
        other.listen()
        file = tmp_path / "file"
        file.write_text("precious")
        refused = [
            (server(str(busy)), "cannot listen on it (Address already in use)"),
            (server(str(file)), "cannot listen on it (Address already in use)"),
            (server(str(tmp_path / "no" / "s")), "(No such file or directory)"),
            (server("x" * 200), "cannot listen on it (AF_UNIX path too long)"),
            (server(("no.such.host.invalid", 1)), "cannot listen on it"),
            (SocketChardev(str(tmp_path / "none")), "cannot connect to it (No such file"),
            (SocketChardev(("127.0.0.1", 1)), "did you mean ,server?"),
        ]
        for backend, message in refused:
            with pytest.raises(ChardevError) as error:
                backend.start()
            assert message in str(error.value)
            assert str(error.value).startswith(f"{backend.spec}: ")
            backend.close()
        assert busy.exists()
        assert file.read_text() == "precious"


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with server(path) as backend, connect(backend) as peer:
        backend.write(b"x")
        assert read_exactly(peer, 1) == b"x"


def test_a_successor_keeps_its_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    backend = server(path)
    with backend:
        os.unlink(path)
        second = server(path)
        second.start()
    assert os.path.exists(path)
    second.close()
    assert not os.path.exists(path)


def test_closing_delivers_what_a_reading_peer_has_not_got_yet(tmp_path: Path) -> None:
    backend = server(str(tmp_path / "s"))
    got = bytearray()
    with backend:
        peer = connect(backend)
        assert eventually(lambda: backend.connected)

        def slow() -> None:
            while data := peer.recv(65536):
                got.extend(data)
                time.sleep(0.005)

        thread = threading.Thread(target=slow)
        thread.start()
        backend.write(b"y" * 200_000)
    thread.join()
    peer.close()
    assert len(got) == 200_000


def test_closing_beside_a_peer_that_never_reads(tmp_path: Path) -> None:
    backend = server(str(tmp_path / "s"))
    backend.start()
    with connect(backend):
        assert eventually(lambda: backend.connected)
        backend.write(b"y" * 10_000_000)
        start = time.monotonic()
        backend.close()
        assert time.monotonic() - start < 4


# -- pseudo-terminals ------------------------------------------------------------------------------


def test_pty_both_ways(tmp_path: Path) -> None:
    said: list[str] = []
    link = tmp_path / "tty"
    backend = PtyChardev(link=link, announce=said.append)
    guest = Guest(backend)
    with backend:
        assert said == [f"pykvm: serial port is at {backend.slave} ({link})"]
        assert os.readlink(link) == backend.slave
        for _ in range(3):  # terminal programs come and go
            fd = os.open(link, os.O_RDWR | os.O_NOCTTY)
            data = bytes(range(256))
            guest.got.clear()
            os.write(fd, data)
            guest.echo_until(256)
            assert guest.got == data  # raw: nothing translated, nothing echoed by the kernel
            back = b""
            while len(back) < 256:
                assert select.select([fd], [], [], 5)[0]
                back += os.read(fd, 1024)
            assert back == data
            os.close(fd)
    assert not link.is_symlink()


def test_pty_nobody_reads(tmp_path: Path) -> None:
    backend = PtyChardev(announce=quiet)
    with backend:
        start = time.monotonic()
        for number in range(10_000):
            backend.write(b"%099d\n" % number)
        assert time.monotonic() - start < 5
        assert len(backend._output) <= backend.output_limit
        fd = os.open(backend.slave, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(fd, termios.TCSANOW)
        data = b""
        while b"%099d\n" % 9_999 not in data[-200:]:
            assert select.select([fd], [], [], 5)[0], len(data)
            data += os.read(fd, 65536)
        os.close(fd)
        backend.write(b"z" * 100_000)
    assert time.monotonic() - start < 10


def test_pty_link_is_not_taken_from_others(tmp_path: Path) -> None:
    link = tmp_path / "l"
    link.write_text("precious")
    with pytest.raises(
        ChardevError, match=r"cannot make the link .*File exists.*path that is free"
    ):
        PtyChardev(link=link, announce=quiet).start()
    assert link.read_text() == "precious"
    link.unlink()
    link.symlink_to("/dev/pts/999999")  # left by a program that was killed
    with PtyChardev(link=link, announce=quiet) as backend:
        assert os.readlink(link) == backend.slave
        link.unlink()
        link.symlink_to("elsewhere")
    assert os.readlink(link) == "elsewhere"


# -- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unix", "pty"])
def test_a_hundred_rounds_leave_nothing(kind: str, tmp_path: Path) -> None:
    for _ in range(100):
        backend: Chardev
        backend = server(str(tmp_path / "s")) if kind == "unix" else PtyChardev(announce=quiet)
        with backend:
            backend.write(b"x")
        backend.close()


def test_a_receiver_that_raises_is_reported(tmp_path: Path) -> None:
    backend = server(str(tmp_path / "s"))

    def broken(data: bytes) -> int:
        raise RuntimeError("broken device")

    backend.set_receiver(broken)
    with backend, connect(backend) as peer:
        peer.sendall(b"x")
        assert eventually(lambda: backend.error is not None)
        assert str(backend.error) == "broken device"
        backend.write(b"still here")
        assert read_exactly(peer, 10) == b"still here"
