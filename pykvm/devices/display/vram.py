"""Video memory in a saved state: only what is not zero, deflated, as text."""

from __future__ import annotations

import base64
import binascii
import zlib

from pykvm.devices.pci.bar import RamBlock
from pykvm.devices.state import DeviceStateError
from pykvm.sparsefile import data_extents

_PAGE = 4096
_ZERO = bytes(_PAGE)


def pack_memory(block: RamBlock) -> list[str]:
    """The pages with contents: each run of them as "offset:base64 of the deflated bytes"."""
    packed = []
    for start, length in data_extents(block.fd, 0, block.size):
        for at in range(start, start + length, 1 << 20):
            data = bytes(block.view[at : min(at + (1 << 20), start + length)])
            first, last = 0, len(data)
            while first < last and data[first : first + _PAGE] == _ZERO[: last - first]:
                first += _PAGE
            data = data[first:].rstrip(b"\0")
            if data:
                text = base64.b64encode(zlib.compress(data, 1)).decode("ascii")
                packed.append(f"{at + first:x}:{text}")
    return packed


def unpack_memory(device: str, packed: object, size: int) -> list[tuple[int, bytes]]:
    """(offset, bytes) of each run, `size` bytes at most. Raises `DeviceStateError`."""
    if not isinstance(packed, list):
        raise DeviceStateError(f"{device}: saved state lacks the list of its video memory")
    pieces = []
    left = size
    for item in packed:
        try:
            offset_text, _, text = item.partition(":")
            offset = int(offset_text, 16)
            inflater = zlib.decompressobj()
            data = inflater.decompress(base64.b64decode(text, validate=True), left + 1)
        except (AttributeError, ValueError, binascii.Error, zlib.error):
            raise DeviceStateError(
                f"{device}: saved state has video memory that cannot be unpacked"
            ) from None
        if not 0 <= offset <= size - len(data) or len(data) > left:
            raise DeviceStateError(f"{device}: saved video memory does not fit {size:#x} bytes")
        left -= len(data)
        pieces.append((offset, data))
    return pieces
