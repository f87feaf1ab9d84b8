"""Guests with network cards: on a hub, on a TAP, behind passt, on every board."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pathlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from debian_tools import need

from pykvm import Machine
from pykvm.devices.net import Tap
from pykvm.devices.net.tap import in_namespace

BOARDS = ("microvm", "pc")


def guest(
    words: str, net: object, board: str = "microvm", *, timeout: float = 40, **options: Any
) -> dict[str, Any]:
    """virtio-bench's line."""
    with Machine(board=board, memory="32M") as m:  # type: ignore[arg-type]
        device = m.add_net(net, **options)  # type: ignore[arg-type]
        m.load("virtio-bench", cmdline=f"net {words}")
        result = m.run(timeout=timeout)
        said = dict(json.loads(result.serial))
        said["drops"] = device.drops.as_dict()
        said["frames"] = {k: device.statistics[k].requests for k in device.statistics.kinds}
    assert result.exit_code == 1, result.report or result.serial
    return said


def beside(*work: Callable[[], Any]) -> list[Any]:
    """All at the same time; their results."""
    results: list[Any] = [None] * len(work)

    def run(n: int) -> None:
        try:
            results[n] = work[n]()
        except BaseException as error:
            results[n] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize("board", BOARDS)
def test_two_machines_on_a_hub(board: str, native: bool, tmp_path: pathlib.Path) -> None:
    path = f"hub={tmp_path}/hub"
    with Machine(board="microvm", memory="32M") as server:
        card = server.add_net(path, native=native)
        words = "net op=serve ip=10.0.2.2 peer=10.0.2.15 count=1000000"
        server.load("virtio-bench", cmdline=words)
        server.start(timeout=40)
        said = guest("op=echo ip=10.0.2.15 peer=10.0.2.2 count=50 qd=2", path, board, native=native)
        server.stop()
        assert (said["requests"], said["errors"]) == (50, 0)
        assert said["frames"]["transmit"] >= 51
        assert card.statistics["transmit"].requests >= 51


class Namespace:
    """A network namespace of this test, without a name."""

    def __init__(self) -> None:
        self.path = ""
        self._stop = threading.Event()
        ready = threading.Event()

        def body() -> None:
            assert ctypes.CDLL(None).unshare(0x40000000) == 0
            self.path = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
            ready.set()
            self._stop.wait()

        self._thread = threading.Thread(target=body)
        self._thread.start()
        ready.wait()

    def run(self, work: Callable[[], Any]) -> Any:
        return in_namespace(self.path, work)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.close()


def set_address(ifname: str, address: str) -> None:
    """`ip address add ADDRESS/24 dev IFNAME`, by the old ioctls."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, ip in ((0x8916, address), (0x891C, "255.255.255.0")):
            where = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(ip))
            fcntl.ioctl(control, request, struct.pack("16s16s8x", ifname.encode(), where))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ping(address: str, count: int) -> int:
    """Pings from this namespace; how many were answered."""
    answered = 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as end:
        end.settimeout(1)
        for n in range(8 * count):
            body = struct.pack(">BBHHH", 8, 0, 0, 0x7077, n) + b"pykvm ping!!"
            body = body[:2] + struct.pack(">H", checksum(body)) + body[4:]
            try:
                end.sendto(body, (address, 0))
                while True:
                    data = end.recv(2000)
                    if data[20:21] == b"\0" and data[24:28] == struct.pack(">HH", 0x7077, n):
                        break
            except OSError:
                continue
            answered += 1
            if answered == count:
                break
    return answered


@pytest.mark.parametrize("board", BOARDS)
def test_a_tap_in_a_network_namespace(board: str, namespace: Namespace) -> None:
    tap = Tap("pykvm0", netns=namespace.path)
    namespace.run(lambda: set_address("pykvm0", "10.0.2.2"))
    said = guest("op=echo ip=10.0.2.15 peer=10.0.2.2 count=100 qd=4", tap, board)
    assert (said["requests"], said["errors"]) == (100, 0)


def test_the_host_pings_a_guest_on_a_tap(namespace: Namespace) -> None:
    tap = Tap("pykvm0", netns=namespace.path)
    namespace.run(lambda: set_address("pykvm0", "10.0.2.2"))
    said, answered = beside(
        lambda: guest("op=serve ip=10.0.2.15 peer=10.0.2.2 count=6", tap),
        lambda: namespace.run(lambda: ping("10.0.2.15", 5)),
    )
    assert answered == 5
    assert said["requests"] >= 6, "five pings and an ARP question"


def test_a_guest_reaches_its_gateway_through_passt() -> None:
    need("passt", package="passt")
    from pykvm.devices.net import UserNet

    net = UserNet(arguments=["-4", "-a", "10.0.2.15", "-n", "24", "-g", "10.0.2.2"])
    said = guest("op=stream ip=10.0.2.15 peer=10.0.2.2 count=20", net)
    assert (said["requests"], said["errors"]) == (20, 0), "its ARP question was answered"
