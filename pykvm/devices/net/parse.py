"""`--net` in words: `user|tap=NAME|hub=PATH|stream=ADDRESS|none`, then properties."""

from __future__ import annotations

from pykvm.devices.net.backend import NetBackend, NetError, NoNetwork
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pykvm.devices.net.user import Forward

KINDS = "user, tap=NAME, hub=PATH, stream=ADDRESS or none"


class NetOptions(NamedTuple):
    """One network device: where it leads, and how it is."""

    kind: str
    target: str = ""
    forwards: tuple[Forward, ...] = ()
    mac: bytes | None = None
    queues: int = 1
    mtu: int | None = None
    pcap: str = ""
    iops: int = 0
    bps: int = 0
    netns: str | None = None
    offload: bool = True
    server: bool = False


def _number(name: str, value: str, low: int = 1) -> int:
    digits, factor = value, 1
    if value[-1:] and value[-1] in "kKmMgG":
        digits, factor = value[:-1], 1024 ** ("kmg".index(value[-1].lower()) + 1)
    if not digits.isdigit() or int(digits) * factor < low:
        raise NetError(f"{name}={value[:40]} is no number from {low} up; write it like {name}=4")
    return int(digits) * factor


def _switch(name: str, value: str) -> bool:
    if value not in ("", "on", "off"):
        raise NetError(f"{name}={value[:40]} is neither on nor off")
    return value != "off"


def parse_net(text: str) -> NetOptions:
    """One `--net`. Raises `NetError`."""
    first, *rest = text.split(",")
    kind, _, target = first.partition("=")
    needs = {"user": False, "none": False, "tap": None, "hub": True, "stream": True}
    if kind not in needs:
        raise NetError(f"{first[:80]!r} is no network; use {KINDS}")
    if needs[kind] is not None and needs[kind] != bool(target):
        what = f"{kind}={'PATH' if kind == 'hub' else 'ADDRESS'}" if needs[kind] else kind
        raise NetError(f"{first[:80]!r} is no network; write {what}")
    found: dict[str, Any] = {}
    forwards: list[Forward] = []
    for word in rest:
        name, _, value = word.partition("=")
        if name in found:
            raise NetError(f"{name} is there twice for a network; give it once")
        if name == "hostfwd":
            from pykvm.devices.net.user import parse_forward

            forwards.append(parse_forward(value))
        elif name == "mac":
            from pykvm.devices.net.mac import parse_mac

            found[name] = parse_mac(value)
        elif name in ("queues", "mtu", "iops", "bps"):
            found[name] = _number(name, value)
        elif name in ("pcap", "netns"):
            if not value:
                raise NetError(f"{name} has no value; write it like {name}=NAME")
            found[name] = value
        elif name in ("offload", "server"):
            found[name] = _switch(name, value)
        else:
            raise NetError(
                f"{word[:80]!r} is no property of a network; use mac, queues, mtu, pcap, iops, "
                "bps, hostfwd (user), netns and offload (tap), server (stream)"
            )
    for name, kinds in (("netns", ("tap",)), ("offload", ("tap",)), ("server", ("stream",))):
        if name in found and kind not in kinds:
            raise NetError(f"{name} is a property of {kinds[0]} networks, not of {kind}")
    if forwards and kind != "user":
        raise NetError(f"hostfwd is a property of user networks, not of {kind}")
    return NetOptions(kind, target, tuple(forwards), **found)


def open_net(options: NetOptions) -> NetBackend:
    """The back end that the options ask for. Raises `NetError`."""
    match options.kind:
        case "none":
            return NoNetwork()
        case "user":
            from pykvm.devices.net.user import UserNet

            return UserNet(options.forwards, mtu=options.mtu)
        case "tap":
            from pykvm.devices.net.tap import Tap

            return Tap(
                options.target, queues=options.queues, netns=options.netns,
                offload=options.offload,
            )  # fmt: skip
        case "hub":
            from pykvm.devices.net.hub import HubClient

            return HubClient(options.target)
    from pykvm.devices.net.stream import StreamNet

    return StreamNet(options.target, server=options.server)
