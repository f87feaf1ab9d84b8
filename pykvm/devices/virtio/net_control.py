"""The control queue of a network device (VIRTIO 1.2, 5.1.6.5)."""

from __future__ import annotations

import struct

from pykvm.devices.virtio.net_features import (
    CTRL_GUEST_OFFLOADS,
    CTRL_MAC_ADDR,
    CTRL_RX,
    CTRL_RX_EXTRA,
    CTRL_VLAN,
    GUEST_ANNOUNCE,
    MQ,
)
from pykvm.devices.virtio.net_filter import MODES
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.devices.virtio.net import VirtioNet
    from pykvm.devices.virtio.queue import Chain

OK, ERR = 0, 1
# Classes: 0 receive modes, 1 addresses, 2 VLANs, 3 announcements, 4 queue pairs, 5 offloads.
_LIMIT = 1 << 16  # bytes of a command: more than any driver's MAC table needs


def execute(device: VirtioNet, chain: Chain) -> int:
    """One command; the status for the driver. A command that makes no sense changes nothing."""
    if not 2 <= chain.readable_bytes <= _LIMIT:
        return ERR
    data = b"".join(chain.readable)
    kind, command, body = data[0], data[1], data[2:]
    done = False
    match kind:
        case 0:
            done = _receive_mode(device, command, body)
        case 1:
            done = _addresses(device, command, body)
        case 2:
            done = _vlan(device, command, body)
        case 3:
            done = command == 0 and bool(device.has & GUEST_ANNOUNCE)
            if done:
                device.announced()
        case 4:
            done = _queues(device, command, body)
        case 5:
            done = _offloads(device, command, body)
    return OK if done else ERR


def _receive_mode(device: VirtioNet, command: int, body: bytes) -> bool:
    needed = CTRL_RX if command <= 1 else CTRL_RX_EXTRA
    if command >= len(MODES) or len(body) != 1 or body[0] > 1 or not device.has & needed:
        return False
    device.filter.modes[MODES[command]] = bool(body[0])
    device.filter_changed()
    return True


def _addresses(device: VirtioNet, command: int, body: bytes) -> bool:
    if command == 1:
        if len(body) != 6 or not device.has & CTRL_MAC_ADDR:
            return False
        device.filter.mac = body
    elif command == 0 and device.has & CTRL_RX:
        tables = []
        for _ in range(2):
            if len(body) < 4:
                return False
            count = struct.unpack_from("<I", body)[0]
            end = 4 + 6 * count
            if end > len(body):
                return False
            tables.append([body[at : at + 6] for at in range(4, end, 6)])
            body = body[end:]
        if body:
            return False
        device.filter.set_table(*tables)
    else:
        return False
    device.filter_changed()
    return True


def _vlan(device: VirtioNet, command: int, body: bytes) -> bool:
    if command > 1 or len(body) != 2 or not device.has & CTRL_VLAN:
        return False
    number = int.from_bytes(body, "little")
    if not device.filter.set_vlan(number, command == 0):
        return False
    device.filter_changed()
    return True


def _queues(device: VirtioNet, command: int, body: bytes) -> bool:
    if command != 0 or len(body) != 2 or not device.has & MQ:
        return False
    pairs = int.from_bytes(body, "little")
    if not 1 <= pairs <= device.max_pairs:
        return False
    device.set_pairs(pairs)
    return True


def _offloads(device: VirtioNet, command: int, body: bytes) -> bool:
    if command != 0 or len(body) != 8 or not device.has & CTRL_GUEST_OFFLOADS:
        return False
    wanted = int.from_bytes(body, "little")
    if wanted & ~device.guest_offloads:
        return False
    device.set_guest_offloads(wanted)
    return True
