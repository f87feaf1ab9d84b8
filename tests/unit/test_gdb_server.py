"""The stub's socket: where it listens, who is served, what becomes of the guest in between."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from gdb_fakes import Client, FakeTarget

from pykvm.lab.gdb import server as server_module
from pykvm.lab.gdb.address import Address, AddressError, Listener
from pykvm.lab.gdb.server import GdbServer
from pykvm.lab.gdb.target import SIGSEGV, SIGTRAP, Stop


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        (":1234", Address("127.0.0.1", 1234), ":1234"),
        ("1234", Address("127.0.0.1", 1234), ":1234"),
        ("tcp::1234", Address("127.0.0.1", 1234), ":1234"),
        ("0.0.0.0:99", Address("0.0.0.0", 99), "0.0.0.0:99"),
        ("[::1]:99", Address("::1", 99), "[::1]:99"),
        ("unix:/tmp/x", Address("", 0, "/tmp/x"), "/tmp/x"),
    ],
)
def test_addresses(text: str, address: Address, shown: str) -> None:
    assert Address.parse(text) == address
    assert str(address) == shown


@pytest.mark.parametrize("text", ["", "host", ":", ":x", ":65536", ":-1", "unix:", "a:b:c", ":١"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(AddressError):
        Address.parse(text)


def test_an_address_in_use_is_one_sentence() -> None:
    first = Listener(Address.parse(":0"))
    with pytest.raises(AddressError, match="choose another"):
        Listener(first.address)
    first.close()


def test_a_stale_socket_is_replaced_and_one_in_use_is_not(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "gdb"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(path))
    listener = Listener(Address.parse(f"unix:{path}"))
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(AddressError):
        Listener(Address.parse(f"unix:{path}"))
    listener.close()
    assert not path.exists()
    path.write_text("no socket")
    with pytest.raises(AddressError):
        Listener(Address.parse(f"unix:{path}"))
    assert path.read_text() == "no socket"


class Serving:
    """A server in a thread, over a Unix socket."""

    def __init__(self, target: FakeTarget, path: pathlib.Path, **how: bool) -> None:
        self.target = target
        self.said: list[str] = []
        self.server = GdbServer(target, f"unix:{path}", self.said.append)
        self.result: Stop | str | None = "it has not ended"
        self.path = path
        self._thread = threading.Thread(target=self._serve, kwargs=how)
        self._thread.start()

    def _serve(self, **how: bool) -> None:
        self.result = self.server.serve(**how)

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(20)
            peer.connect(os.fspath(self.path))
            yield Client(peer)

    def finished(self) -> Stop | str | None:
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server hangs"
        self.server.close()
        return self.result


def test_attach_and_detach_many_times_while_the_guest_runs(tmp_path: pathlib.Path) -> None:
    target = FakeTarget()
    target.next_stop = None
    serving = Serving(target, tmp_path / "gdb", wait=False)
    for turn in range(5):
        with serving.client() as client:
            assert client.ask(b"?") == b"T02thread:1;core:0;"
            assert client.ask(b"Z0,1000,1") == b"OK"
            if turn % 2:
                assert client.ask(b"D") == b"OK"  # else it just vanishes
        while target.points:
            time.sleep(0.001)
    with serving.client() as client:
        target.stop = Stop(SIGTRAP)
        target.next_stop = Stop(SIGTRAP, exit_code=0)
        assert client.ask(b"vCont;c") == b"W00"
    assert serving.finished() == Stop(SIGTRAP, exit_code=0)
    assert not serving.path.exists()


def test_waiting_for_gdb(tmp_path: pathlib.Path) -> None:
    target = FakeTarget()
    target.next_stop = Stop(SIGTRAP, exit_code=7)
    serving = Serving(target, tmp_path / "gdb", wait=True)
    with serving.client() as client:
        assert client.ask(b"?") == b"T05thread:1;core:0;"
    with serving.client() as client:  # one that vanished changes nothing
        assert client.ask(b"qC") == b"QC1"
        assert target.resumed == []
        assert client.ask(b"D") == b"OK"
    assert serving.finished() == Stop(SIGTRAP, exit_code=7)
    assert len(target.resumed) == 1


def test_a_crashed_guest_waits_to_be_looked_at(tmp_path: pathlib.Path) -> None:
    target = FakeTarget()
    crash = Stop(SIGSEGV, 1, text="triple fault", crashed=True)
    target.next_stop = crash
    serving = Serving(target, tmp_path / "gdb", wait=False)
    with serving.client() as client:
        assert client.ask(b"?") == b"T0bthread:2;core:1;"
        assert client.ask(b"D") == b"OK"
    assert serving.finished() == crash
    assert serving.said == ["triple fault; it stays for gdb"]


def test_one_gdb_at_a_time(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LEAVING_S", 0.05)
    serving = Serving(FakeTarget(), tmp_path / "gdb", wait=True)
    with serving.client() as client:
        assert client.ask(b"qC") == b"QC1"
        with serving.client() as second:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                second.send(b"?")
            assert second.message() is None
        assert client.ask(b"qC") == b"QC1"
        assert client.ask(b"k") is None
    assert serving.finished() is None


def test_a_silent_peer_disturbs_nobody(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "SILENCE_S", 0.05)
    target = FakeTarget()
    target.next_stop = None
    serving = Serving(target, tmp_path / "gdb", wait=False)
    with serving.client() as silent:
        assert silent.message() is None
    with serving.client() as client:
        assert client.ask(b"k") is None
    assert serving.finished() is None
    assert len(target.resumed) == 1


@pytest.mark.parametrize("when", ["waiting", "running", "talking"])
def test_the_end_from_outside(tmp_path: pathlib.Path, when: str) -> None:
    target = FakeTarget()
    target.next_stop = None
    serving = Serving(target, tmp_path / "gdb", wait=when != "running")
    with contextlib.ExitStack() as stack:
        if when == "talking":
            client = stack.enter_context(serving.client())
            assert client.ask(b"qC") == b"QC1"
        if when == "running":
            while not target.resumed:
                time.sleep(0.001)
        serving.server.end()
        serving.finished()
