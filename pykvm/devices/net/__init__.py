"""Networks behind a virtio network device: TAP, user mode, hub, streams, memory; packet capture.

Each name is imported when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.devices.net.backend import NetBackend, NetError, NoNetwork
    from pykvm.devices.net.hub import Hub, HubClient
    from pykvm.devices.net.mac import format_mac, parse_mac, take_mac
    from pykvm.devices.net.memory import Loopback, MemoryNet
    from pykvm.devices.net.parse import NetOptions, open_net, parse_net
    from pykvm.devices.net.pcap import PcapWriter
    from pykvm.devices.net.ports import PacketPort, Port, PortLostError, StreamPort
    from pykvm.devices.net.stream import StreamNet
    from pykvm.devices.net.tap import Tap
    from pykvm.devices.net.user import UserNet

_HOMES = {
    "Hub": "hub",
    "HubClient": "hub",
    "Loopback": "memory",
    "MemoryNet": "memory",
    "NetBackend": "backend",
    "NetError": "backend",
    "NetOptions": "parse",
    "NoNetwork": "backend",
    "PacketPort": "ports",
    "PcapWriter": "pcap",
    "Port": "ports",
    "PortLostError": "ports",
    "StreamNet": "stream",
    "StreamPort": "ports",
    "Tap": "tap",
    "UserNet": "user",
    "format_mac": "mac",
    "open_net": "parse",
    "parse_mac": "mac",
    "parse_net": "parse",
    "take_mac": "mac",
}

__all__ = [
    "Hub",
    "HubClient",
    "Loopback",
    "MemoryNet",
    "NetBackend",
    "NetError",
    "NetOptions",
    "NoNetwork",
    "PacketPort",
    "PcapWriter",
    "Port",
    "PortLostError",
    "StreamNet",
    "StreamPort",
    "Tap",
    "UserNet",
    "format_mac",
    "open_net",
    "parse_mac",
    "parse_net",
    "take_mac",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
