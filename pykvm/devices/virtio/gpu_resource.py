"""What a virtio GPU draws from: resources in host memory, and the guest pages behind them."""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from bisect import bisect_right

from pykvm.devices.display.picture import Picture
from pykvm.memory import GuestMemory

#: Format → where blue, green and red are in a pixel's four bytes (5.7.6.8, in memory order).
FORMATS = {
    1: (0, 1, 2), 2: (0, 1, 2),  # B8G8R8A8, B8G8R8X8
    3: (3, 2, 1), 4: (3, 2, 1),  # A8R8G8B8, X8R8G8B8
    67: (2, 1, 0), 134: (2, 1, 0),  # R8G8B8A8, R8G8B8X8
    68: (1, 2, 3), 121: (1, 2, 3),  # X8B8G8R8, A8B8G8R8
}  # fmt: skip
MAX_SIDE = 16384
Rect = tuple[int, int, int, int]  # x, y, width, height


class Resource:
    """`width` x `height` pixels of four bytes, and where their contents come from."""

    def __init__(self, pixel_format: int, width: int, height: int) -> None:
        self.format, self.width, self.height = pixel_format, width, height
        self.stride = 4 * width
        self.data = bytearray(self.stride * height)
        self.backing: list[tuple[int, int]] = []  # guest-physical address, bytes
        self._starts: list[int] = []
        self._length = 0

    def attach(self, backing: list[tuple[int, int]]) -> None:
        """The guest's pages from now on; none detaches them."""
        self.backing = backing
        self._starts, self._length = [], 0
        for _, length in backing:
            self._starts.append(self._length)
            self._length += length

    def holds(self, rect: Rect) -> bool:
        """Whether all of a rectangle is in the resource."""
        x, y, width, height = rect
        return x + width <= self.width and y + height <= self.height

    def transfer(self, memory: GuestMemory, rect: Rect, offset: int) -> bool:
        """Copies a rectangle from the guest; its first pixel is `offset` bytes into the pages.

        False where the pages do not hold all of it. Raises `MemoryAccessError`.
        """
        x, y, width, height = rect
        if not width or not height:
            return True
        stride, length = self.stride, 4 * width
        if offset + (height - 1) * stride + length > self._length:
            return False
        at = y * stride + 4 * x
        if length == stride:
            rows = [(offset, at, stride * height)]
        else:
            rows = [(offset + n * stride, at + n * stride, length) for n in range(height)]
        for source, target, count in rows:
            self._copy(memory, source, target, count)
        return True

    def _copy(self, memory: GuestMemory, source: int, target: int, count: int) -> None:
        index = bisect_right(self._starts, source) - 1
        while count:
            address, length = self.backing[index]
            skip = source - self._starts[index]
            piece = min(count, length - skip)
            if piece > 0:
                self.data[target : target + piece] = memory.read(address + skip, piece)
                source, target, count = source + piece, target + piece, count - piece
            index += 1

    def picture(self, rect: Rect) -> Picture:
        """A rectangle of the resource, which must hold it."""
        x, y, width, height = rect
        if (x, width) == (0, self.width):
            data = bytes(self.data[y * self.stride : (y + height) * self.stride])
        else:
            starts = [(y + row) * self.stride + 4 * x for row in range(height)]
            data = b"".join([self.data[at : at + 4 * width] for at in starts])
        places = FORMATS[self.format]
        if places != (0, 1, 2):
            ordered = bytearray(len(data))
            for to, place in enumerate(places):
                ordered[to::4] = data[place::4]
            data = bytes(ordered)
        return Picture(width, height, data, 32)

    # -- state ---------------------------------------------------------------------------------

    def save(self) -> list[object]:
        """As plain values; the pixels deflated, as text."""
        pixels = base64.b64encode(zlib.compress(bytes(self.data), 1)).decode("ascii")
        flat = [word for entry in self.backing for word in entry]
        return [self.format, self.width, self.height, flat, pixels]

    @classmethod
    def from_saved(cls, saved: object, limit: int) -> Resource:
        """Of what `save` gave, with at most `limit` bytes of pixels. Raises `ValueError`."""
        if not isinstance(saved, list) or len(saved) != 5:
            raise ValueError("a resource is five values")
        numbers, flat, text = saved[:3], saved[3], saved[4]
        if any(type(n) is not int or not 0 <= n <= MAX_SIDE for n in numbers):
            raise ValueError("format, width, height")
        pixel_format, width, height = numbers
        if pixel_format not in FORMATS or not width or not height or 4 * width * height > limit:
            raise ValueError("format or size")
        if not isinstance(flat, list) or len(flat) % 2 or not isinstance(text, str):
            raise ValueError("backing or pixels")
        if any(type(n) is not int or not 0 <= n < 1 << 64 for n in flat):
            raise ValueError("backing")
        found = cls(pixel_format, width, height)
        try:
            inflater = zlib.decompressobj()
            data = inflater.decompress(base64.b64decode(text, validate=True), len(found.data) + 1)
        except (binascii.Error, zlib.error) as error:
            raise ValueError("pixels") from error
        if len(data) != len(found.data):
            raise ValueError("pixels")
        found.data[:] = data
        found.attach(list(zip(flat[0::2], flat[1::2], strict=True)))
        return found


def read_entries(raw: bytes, count: int) -> list[tuple[int, int]]:
    """`virtio_gpu_mem_entry` structures: (guest-physical address, bytes)."""
    entries = struct.iter_unpack("<QI4x", raw[: 16 * count])
    return [(address, length) for address, length in entries if length]
