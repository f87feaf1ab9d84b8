"""Feature bits and structures of the network device (VIRTIO 1.2, 5.1.3, 5.1.4, 5.1.6)."""

from __future__ import annotations

import struct

CSUM, GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU, MAC = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO = 1 << 7, 1 << 8, 1 << 9, 1 << 10
HOST_TSO4, HOST_TSO6, HOST_ECN, HOST_UFO = 1 << 11, 1 << 12, 1 << 13, 1 << 14
MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, CTRL_VLAN = 1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 19
CTRL_RX_EXTRA, GUEST_ANNOUNCE, MQ, CTRL_MAC_ADDR = 1 << 20, 1 << 21, 1 << 22, 1 << 23
GUEST_USO4, GUEST_USO6, HOST_USO, SPEED_DUPLEX = 1 << 54, 1 << 55, 1 << 56, 1 << 63

#: What the device may give to the driver, beyond whole frames with a checksum.
GUEST_SEGMENTS = GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_UFO | GUEST_USO4 | GUEST_USO6
GUEST_OFFLOADS = GUEST_CSUM | GUEST_SEGMENTS
#: What the driver may give to the device.
HOST_SEGMENTS = HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_UFO | HOST_USO
HOST_OFFLOADS = CSUM | HOST_SEGMENTS

S_LINK_UP, S_ANNOUNCE = 1, 2
HDR_NEEDS_CSUM, HDR_DATA_VALID = 1, 2
GSO_NONE = 0
#: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
HEADER = struct.Struct("<BBHHHHH")
SHORT_HEADER = 10  # of a legacy driver without MRG_RXBUF
CONFIG = struct.Struct("<6sHHHIB")
FRAME_MIN = 14  # an Ethernet header


def usable_guest_offloads(accepted: int) -> int:
    """What of the accepted GUEST_* bits has the bits that it requires (5.1.3.1)."""
    offloads = accepted & GUEST_OFFLOADS
    if not offloads & GUEST_CSUM:
        return 0
    if not offloads & (GUEST_TSO4 | GUEST_TSO6):
        offloads &= ~GUEST_ECN
    return offloads
