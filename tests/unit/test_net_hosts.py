"""Networks of the host: words for them, addresses, the hub, TAPs, streams, passt."""

from __future__ import annotations

import pathlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from debian_tools import need
from net_driver import BROADCAST, MAC_A, MAC_B, ethernet

from pykvm.devices.net import (
    Hub,
    HubClient,
    NetBackend,
    NetError,
    PortLostError,
    StreamNet,
    Tap,
    UserNet,
    parse_mac,
    parse_net,
    take_mac,
)
from pykvm.devices.net.user import parse_forward
from pykvm.devices.virtio import net_features as f

VM = b"\x02\x70\x6b\x00\x00\x01"


def until(true: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + 10
    while not true():
        assert time.monotonic() < limit, what
        time.sleep(0.002)


def receive(net: NetBackend, accept: Callable[[bytes], bool] = lambda frame: True) -> bytes:
    """The next frame that `accept` takes."""
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        frame = net.ports[0].receive()
        if frame is None:
            select.select([net.ports[0].fd], [], [], 1)
        elif accept(bytes(frame)):
            return bytes(frame)
    raise AssertionError("no such frame came")


def ends(net: NetBackend) -> None:
    """Its connection ends."""
    for _ in range(5000):
        try:
            net.ports[0].receive()
        except PortLostError:
            return
        time.sleep(0.002)
    raise AssertionError("the connection goes on")


def send(net: NetBackend, frame: bytes) -> None:
    until(lambda: net.ports[0].send([frame]), "room")


# -- words -----------------------------------------------------------------------------------------


def test_words() -> None:
    found = parse_net(
        "user,hostfwd=tcp:127.0.0.1:2222-22,hostfwd=udp::53-:53,mac=02:00:00:00:00:01,mtu=1400,"
        "pcap=x,iops=1k,bps=10M"
    )
    assert [fwd.spec for fwd in found.forwards] == ["127.0.0.1/2222:22", "53:53"]
    assert (found.kind, found.mtu, found.iops, found.bps) == ("user", 1400, 1024, 10 << 20)
    assert found.mac == b"\2\0\0\0\0\1"
    assert parse_net("tap=t0,queues=2,netns=x,offload=off")[:2] == ("tap", "t0")
    assert parse_net("hub=/x/y").target == "/x/y"


@pytest.mark.parametrize(
    "text",
    [
        "", "usr", "user=x", "tap=a,hostfwd=tcp::1-2", "hub", "hub=", "none=x", "user,mac=1:2",
        "user,mac=01:00:00:00:00:00", "user,mac=00:00:00:00:00:00", "user,queues=0", "user,mtu=x",
        "user,pcap=", "user,what=1", "user,hostfwd=tcp:1-2-3", "user,hostfwd=tcp::0-22",
        "user,hostfwd=icmp::1-2", "user,hostfwd=tcp:example.org:1-2", "hub=x,netns=y",
        "tap=x,server", "user,mtu=1,mtu=2", "tap=x,offload=maybe",
    ],
)  # fmt: skip
def test_words_that_make_no_sense(text: str) -> None:
    with pytest.raises(NetError):
        parse_net(text)


def test_addresses() -> None:
    one, two = take_mac(), take_mac()
    assert one.address != two.address
    assert not one.address[0] & 1
    again = one.address
    one.release()
    three = take_mac()
    assert three.address == again, "the lowest number that is free"
    two.release()
    three.release()
    assert parse_mac("52-54-00-Ab-cd-ef").hex() == "525400abcdef"


# -- hub -------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "hub")


def test_a_hub_learns_where_its_members_are(path: str) -> None:
    one, two, three = HubClient(path), HubClient(path), HubClient(path)
    assert one.hub is not None
    assert two.hub is three.hub is None
    until(lambda: len(one.hub.members) == 3, "all are there")  # type: ignore[union-attr]
    send(one, ethernet(b"to all", BROADCAST, MAC_A))
    assert receive(two) == receive(three) == ethernet(b"to all", BROADCAST, MAC_A)
    send(two, ethernet(b"to one", MAC_A, MAC_B))
    assert receive(one) == ethernet(b"to one", MAC_A, MAC_B)
    send(one, ethernet(b"to two", MAC_B, MAC_A))
    assert receive(two) == ethernet(b"to two", MAC_B, MAC_A)
    assert three.ports[0].receive() is None
    one.close()
    ends(two)
    two.lost()
    assert two.reconnect()
    assert two.hub is not None, "who comes first makes it anew"
    three.lost()
    assert three.reconnect()
    until(lambda: len(two.hub.members) == 2, "both are there")  # type: ignore[union-attr]
    send(three, ethernet(b"again", BROADCAST, MAC_B))
    assert receive(two) == ethernet(b"again", BROADCAST, MAC_B)
    two.close()
    three.close()


def test_members_that_misbehave_harm_nobody(path: str) -> None:
    hub = Hub(path)
    deaf = socket.socket(socket.AF_UNIX)
    deaf.connect(path)
    one, two = HubClient(path), HubClient(path)
    until(lambda: len(hub.members) == 3, "all are there")
    for data in (struct.pack(">I", 0), struct.pack(">I", 1 << 31), b"\xff" * 100):
        with socket.socket(socket.AF_UNIX) as bad:
            bad.connect(path)
            bad.sendall(data)
            bad.settimeout(10)
            assert bad.recv(10) == b"", "it is thrown out"
    send(one, b"short")
    frame = ethernet(bytes(1400), BROADCAST, MAC_A)
    for _ in range(3000):
        send(one, frame)
        assert receive(two) == frame
    counts = hub.members["member 1"]
    assert counts["dropped"] > 100
    assert hub.bad == 1
    with pytest.raises(NetError):
        Hub(path)
    deaf.close()
    one.close()
    two.close()
    hub.close()
    assert not pathlib.Path(path).exists()


def test_a_flood_of_addresses_is_bounded(path: str) -> None:
    hub = Hub(path)
    one, two = HubClient(path), HubClient(path)
    for n in range(6000):
        send(one, ethernet(b"", BROADCAST, b"\x02" + n.to_bytes(5, "big")))
        receive(two)
    assert len(hub._places) <= 4096
    for end in (one, two, hub):
        end.close()


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_streams_find_each_other_again(kind: str, tmp_path: pathlib.Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"unix:{tmp_path}/s" if kind == "unix" else f"tcp:127.0.0.1:{port}"
    with pytest.raises(NetError, match="cannot be reached"):
        StreamNet(address)
    server = StreamNet(address, server=True)
    assert not server.connected
    for text in (b"one", b"two"):
        client = StreamNet(address)
        until(server.reconnect, "the client is there")
        send(client, ethernet(text))
        assert receive(server) == ethernet(text)
        send(server, ethernet(text))
        assert receive(client) == ethernet(text)
        client.close()
        ends(server)
        server.lost()
    server.close()


# -- TAP -------------------------------------------------------------------------------------------


@pytest.fixture
def tap() -> Iterator[Tap]:
    made = Tap("pykvmtest%d", queues=2)
    yield made
    made.close()


def test_tap_queues_and_offloads(tap: Tap) -> None:
    assert tap.ifname.startswith("pykvmtest")
    assert tap.offloads & f.HOST_TSO4
    assert tap.offloads & f.GUEST_CSUM
    tap.start(12, tap.offloads)
    for pairs in (1, 2, 1):
        tap.set_queues(pairs)
    assert socket.if_nametoindex(tap.ifname)
    with pytest.raises(NetError, match="has to be a TAP"):
        Tap("lo")
    with pytest.raises(NetError, match="no name"):
        Tap("a name that is too long")
    with pytest.raises(NetError, match="namespace"):
        Tap("x", netns="/nowhere")


# -- passt -----------------------------------------------------------------------------------------


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(kind: int, source: str, target: str, body: bytes) -> bytes:
    """An IPv4 packet."""
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, kind, 0, socket.inet_aton(source),
        socket.inet_aton(target),
    )  # fmt: skip
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + body


def tcp(source: str, target: str, ports: tuple[int, int], words: tuple[int, int], flags: int,
        data: bytes = b"") -> bytes:  # fmt: skip
    body = struct.pack(">HHIIBBHHH", *ports, *words, 0x50, flags, 65000, 0, 0) + data
    pseudo = struct.pack(
        ">4s4sHH", socket.inet_aton(source), socket.inet_aton(target), 6, len(body)
    )
    return body[:16] + struct.pack(">H", checksum(pseudo + body)) + body[18:]


def test_passt_gives_an_address_and_forwards_a_port() -> None:
    need("passt", package="passt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here, gateway = "10.0.2.15", "10.0.2.2"
    net = UserNet(
        [parse_forward(f"tcp:127.0.0.1:{port}-22")], mtu=1400,
        arguments=["-4", "-a", here, "-n", "24", "-g", gateway, "-D", "10.0.2.3"],
    )  # fmt: skip
    pid = net.pid
    assert pid is not None
    options = b"\x63\x82\x53\x63\x35\1\1\x37\4\1\3\6\x1a\xff"
    bootp = struct.pack(">BBBBIHHIIII16s192x", 1, 1, 6, 0, 77, 0, 0, 0, 0, 0, 0, VM) + options
    bootp = bootp.ljust(300, b"\0")
    discover = struct.pack(">HHHH", 68, 67, 8 + len(bootp), 0) + bootp
    send(net, ethernet(ip(17, "0.0.0.0", "255.255.255.255", discover), BROADCAST, VM, 0x0800))
    offer = receive(net, lambda frame: frame[23:24] == b"\x11" and frame[36:38] == b"\0\x44")
    assert socket.inet_ntoa(offer[58:62]) == here
    assert socket.inet_aton("10.0.2.3") in offer[282:], "the DNS server"
    assert b"\x1a\x02" + struct.pack(">H", 1400) in offer[282:], "the MTU"
    gateway_mac = offer[6:12]

    connected: list[socket.socket] = []
    thread = threading.Thread(
        target=lambda: connected.append(socket.create_connection(("127.0.0.1", port), 10))
    )
    thread.start()
    syn = b""
    while not syn:  # passt may ask for our address first
        frame = receive(net)
        if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1":
            reply = b"\0\1\x08\0\6\4\0\2" + VM + frame[38:42] + frame[22:32]
            send(net, ethernet(reply, frame[6:12], VM, 0x0806))
        elif frame[12:14] == b"\x08\0" and frame[23] == 6 and frame[47] & 2:
            syn = frame
    peer = socket.inet_ntoa(syn[26:30])
    theirs, ours, sequence = struct.unpack_from(">HHI", syn, 34)
    assert ours == 22

    def answer(flags: int, mine: int, data: bytes = b"") -> None:
        packet = tcp(here, peer, (22, theirs), (mine, sequence + 1 & 0xFFFF_FFFF), flags, data)
        # Not padded to 60 bytes: guests leave that to hardware, and this passt expects none.
        send(net, gateway_mac + VM + b"\x08\0" + ip(6, here, peer, packet))

    answer(0x12, 1000)
    thread.join()
    answer(0x18, 1001, b"hello from the guest")
    assert connected[0].recv(100) == b"hello from the guest"
    connected[0].close()
    net.close()
    assert not pathlib.Path(f"/proc/{pid}").exists()


def test_passt_is_told_of_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    need("passt", package="passt")
    with pytest.raises(NetError, match="passt ended"):
        UserNet(arguments=["--nonsense"])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NetError, match="apt-get install passt"):
        UserNet()
