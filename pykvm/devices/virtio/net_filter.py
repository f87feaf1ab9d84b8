"""Which received frames the driver wants (VIRTIO 1.2, 5.1.6.5.1 to 5.1.6.5.3)."""

from __future__ import annotations

import struct

from pykvm.devices.state import StateReader
from pykvm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

#: Entries of the MAC table; a driver with more gets all frames of that kind.
TABLE_ENTRIES = 64
VLANS = 4096
_VLAN_TAG = b"\x81\x00"
_BROADCAST = b"\xff" * 6
MODES = ("promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast")


class FilterImage(NamedTuple):
    """The filter as plain values, for the native data path."""

    modes: tuple[bool, ...]
    vlans_on: bool
    mac: bytes
    unicast: tuple[bytes, ...]
    multicast: tuple[bytes, ...]
    vlans: bytes


class RxFilter:
    """Starts promiscuous, as a device must be whose driver has no CTRL_RX."""

    def __init__(self, mac: bytes) -> None:
        self.mac = mac
        self.reset()

    def reset(self) -> None:
        """As after power-on; the address stays."""
        self.modes = dict.fromkeys(MODES, False)
        self.modes["promisc"] = True
        self.vlans_on = False
        self.vlans = bytearray(VLANS // 8)
        self.unicast: tuple[bytes, ...] = ()
        self.multicast: tuple[bytes, ...] = ()
        self.too_many = [False, False]  # unicast, multicast addresses

    def set_vlan(self, number: int, wanted: bool) -> bool:
        """Adds or removes a VLAN; false if there is no such number."""
        if number >= VLANS:
            return False
        bit = 1 << (number & 7)
        if wanted:
            self.vlans[number >> 3] |= bit
        else:
            self.vlans[number >> 3] &= ~bit
        return True

    def set_table(self, unicast: list[bytes], multicast: list[bytes]) -> None:
        """MAC_TABLE_SET. A list that does not fit lets every frame of its kind through."""
        room = TABLE_ENTRIES
        self.too_many = [False, False]
        self.unicast = self.multicast = ()
        if len(unicast) <= room:
            self.unicast = tuple(unicast)
            room -= len(unicast)
        else:
            self.too_many[0] = True
        if len(multicast) <= room:
            self.multicast = tuple(multicast)
        else:
            self.too_many[1] = True

    def accepts(self, frame: bytes | bytearray | memoryview) -> bool:
        """Whether a frame (without virtio-net header, at least 14 bytes) is for the driver."""
        modes = self.modes
        if modes["promisc"]:
            return True
        target = bytes(frame[:6])
        if self.vlans_on and len(frame) >= 16 and frame[12:14] == _VLAN_TAG:
            number = (frame[14] << 8 | frame[15]) & VLANS - 1
            if not self.vlans[number >> 3] >> (number & 7) & 1:
                return False
        if target[0] & 1:
            if target == _BROADCAST:
                return not modes["nobcast"]
            if modes["nomulti"]:
                return False
            return modes["allmulti"] or self.too_many[1] or target in self.multicast
        if modes["nouni"]:
            return False
        return modes["alluni"] or self.too_many[0] or target == self.mac or target in self.unicast

    def image(self) -> FilterImage:
        """All of it, with overflowing tables as modes."""
        modes = dict(self.modes)
        modes["alluni"] |= self.too_many[0]
        modes["allmulti"] |= self.too_many[1]
        return FilterImage(
            tuple(modes.values()), self.vlans_on, self.mac, self.unicast, self.multicast,
            bytes(self.vlans),
        )  # fmt: skip

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> dict[str, object]:
        """Plain values, for `take`."""
        return {
            "net_mac": list(self.mac),
            "net_modes": [int(mode) for mode in self.modes.values()],
            "net_vlans": list(struct.unpack("<512B", self.vlans)),
            "net_vlans_on": self.vlans_on,
            "net_unicast": list(b"".join(self.unicast)),
            "net_multicast": list(b"".join(self.multicast)),
            "net_too_many": [int(flag) for flag in self.too_many],
        }

    def take(self, take: StateReader) -> Callable[[], None]:
        """Reads the fields of `state`; the result, when called, takes them over."""
        mac = bytes(take.integers("net_mac", 6, 255, least=6))
        modes = take.integers("net_modes", len(MODES), 1, least=len(MODES))
        vlans = bytearray(take.integers("net_vlans", VLANS // 8, 255, least=VLANS // 8))
        vlans_on = take.boolean("net_vlans_on")
        tables = []
        for name in ("net_unicast", "net_multicast"):
            data = bytes(take.integers(name, 6 * TABLE_ENTRIES, 255))
            if len(data) % 6:
                take.refuse(name, len(data), "a multiple of six bytes")
            tables.append(tuple(data[at : at + 6] for at in range(0, len(data), 6)))
        if len(tables[0]) + len(tables[1]) > TABLE_ENTRIES:
            take.refuse("net_multicast", len(tables[1]), f"at most {TABLE_ENTRIES} in all")
        too_many = take.integers("net_too_many", 2, 1, least=2)

        def commit() -> None:
            self.mac = mac
            self.modes = {name: bool(mode) for name, mode in zip(MODES, modes, strict=True)}
            self.vlans, self.vlans_on = vlans, vlans_on
            self.unicast, self.multicast = tables
            self.too_many = [bool(flag) for flag in too_many]

        return commit
