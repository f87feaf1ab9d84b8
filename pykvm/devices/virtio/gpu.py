"""`VirtioGpu`: a display adapter for pictures without 3D (VIRTIO 1.2, section 5.7)."""

from __future__ import annotations

import os
import struct

from pykvm.datapath.statistics import IoStatistics
from pykvm.devices.display.picture import Picture
from pykvm.devices.state import DeviceStateError, StateReader
from pykvm.devices.virtio.buffers import gather, parse_size, scatter
from pykvm.devices.virtio.device import Commit, VirtioDevice
from pykvm.devices.virtio.edid import edid
from pykvm.devices.virtio.gpu_resource import FORMATS, MAX_SIDE, Rect, Resource, read_entries
from pykvm.devices.virtio.queue import Chain, QueueError, VirtQueue
from pykvm.memory import GuestMemory, MemoryAccessError

DEVICE_ID = 16
F_EDID = 2
EVENT_DISPLAY = 1
(
    GET_DISPLAY_INFO, CREATE_2D, UNREF, SET_SCANOUT, FLUSH, TRANSFER, ATTACH, DETACH,
    GET_CAPSET_INFO, GET_CAPSET, GET_EDID,
) = range(0x100, 0x10B)  # fmt: skip
UPDATE_CURSOR, MOVE_CURSOR = 0x300, 0x301
OK, OK_DISPLAY_INFO, OK_EDID = 0x1100, 0x1101, 0x1104
UNSPEC, OUT_OF_MEMORY, BAD_SCANOUT, BAD_RESOURCE, _, BAD_PARAMETER = range(0x1200, 0x1206)
FENCE = 1

_QUEUE_SIZES = [256, 16]
_HEADER = struct.Struct("<IIQIB3x")  # type, flags, fence, context, ring
_SCANOUTS = 16  # in the answer, whatever there are
_MAX_ENTRIES = 1 << 16
_MAX_RESOURCES = 4096
_LIMIT = 256 << 20
_ONES = 0xFFFF_FFFF


class _Refused(Exception):
    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind


class Scanout:
    """One monitor: its size, and which part of which resource it shows."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.enabled = True
        self.reset()

    def reset(self) -> None:
        """Shows nothing."""
        self.resource = 0
        self.rect: Rect = (0, 0, 0, 0)
        #: Resource of the cursor (0: none), where its hot spot is in it and on the screen.
        self.cursor = 0
        self.hot = (0, 0)
        self.at = (0, 0)
        #: Pictures shown: flushes of what is on the screen.
        self.frames = 0


class VirtioGpu(VirtioDevice):
    """A display adapter with `outputs` monitors of `width` x `height` pixels.

    `screen(n).picture()` or `.save_png(path)` shows what is on one; `resize` tells the guest of
    another size. Resources take at most `limit` bytes of host memory.
    """

    def __init__(
        self, width: int = 1024, height: int = 768, *, outputs: int = 1,
        limit: int | str = _LIMIT, name: str = "virtio-gpu",
    ) -> None:  # fmt: skip
        _check_size(width, height)
        if not 1 <= outputs <= _SCANOUTS:
            raise ValueError(f"{outputs} monitors are not possible; choose 1 to {_SCANOUTS}")
        super().__init__(DEVICE_ID, _QUEUE_SIZES, F_EDID)
        self.name = name
        self.limit = parse_size(limit, "the limit of a GPU")
        self.statistics = IoStatistics(["command", "transfer", "flush", "cursor"])
        self.scanouts = [Scanout(width, height) for _ in range(outputs)]
        self.resources: dict[int, Resource] = {}
        self._used = 0  # bytes of pixels
        self._entries = 0  # of all backings
        self._events = 0
        self._memory: GuestMemory | None = None

    def attach(self, transport: object, memory: GuestMemory) -> None:
        """As the base class."""
        super().attach(transport, memory)  # type: ignore[arg-type]
        self._memory = memory

    # -- the host's side -----------------------------------------------------------------------

    def screen(self, output: int = 0) -> GpuScreen:
        """What a monitor shows."""
        return GpuScreen(self, self.scanouts[output])

    def resize(self, width: int, height: int, output: int = 0, *, enabled: bool = True) -> None:
        """A monitor has another size, or was switched off or on; the guest is told."""
        _check_size(width, height)
        with self.lock:
            scanout = self.scanouts[output]
            scanout.width, scanout.height, scanout.enabled = width, height, enabled
            self._events |= EVENT_DISPLAY
            self.config_changed()

    # -- configuration (5.7.4) -----------------------------------------------------------------

    def config(self) -> bytes:
        """events_read, events_clear, num_scanouts, num_capsets."""
        return struct.pack("<4I", self._events, 0, len(self.scanouts), 0)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The driver clears events."""
        if offset == 4:
            self._events &= ~value

    # -- commands ------------------------------------------------------------------------------

    def handle(self, queue: VirtQueue) -> None:
        """Every command that is there, in order; fences are signalled when it is done."""
        try:
            while (chain := queue.pop()) is not None:
                if chain.readable_bytes < _HEADER.size:
                    raise QueueError(f"{self.name}: a command of {chain.readable_bytes} bytes")
                queue.push(chain, self._command(chain))
        finally:
            self.finish(queue)

    def _command(self, chain: Chain) -> int:
        most = _HEADER.size + 64 + 16 * _MAX_ENTRIES
        raw = gather(chain.readable, most)
        kind, flags, fence, context, ring = _HEADER.unpack_from(raw)
        body = raw[_HEADER.size :]
        answer, more = OK, b""
        try:
            answer, more = self._obey(kind, body)
        except _Refused as refused:
            answer = refused.kind
        except struct.error:  # shorter than its structure
            answer = BAD_PARAMETER
        except MemoryAccessError:
            answer = UNSPEC
        self.statistics["command"].add(len(raw), failed=answer >= UNSPEC)
        head = _HEADER.pack(answer, flags & FENCE, fence if flags & FENCE else 0, context, ring)
        # The cursor queue has no answers (5.7.6.10); who gives no room gets none.
        return scatter(chain.writable, head + more)

    def _obey(self, kind: int, body: bytes) -> tuple[int, bytes]:
        if kind == GET_DISPLAY_INFO:
            return OK_DISPLAY_INFO, self._display_info()
        if kind == GET_EDID:
            scanout = self._scanout(struct.unpack_from("<I", body)[0])
            block = edid(scanout.width, scanout.height)
            return OK_EDID, struct.pack("<I4x", len(block)) + block.ljust(1024, b"\0")
        work = {
            CREATE_2D: self._create, UNREF: self._unref, SET_SCANOUT: self._set_scanout,
            FLUSH: self._flush, TRANSFER: self._transfer, ATTACH: self._attach,
            DETACH: self._detach, UPDATE_CURSOR: self._update_cursor,
            MOVE_CURSOR: self._move_cursor,
        }.get(kind)  # fmt: skip
        if work is None:
            raise _Refused(UNSPEC)
        work(body)
        return OK, b""

    def _display_info(self) -> bytes:
        modes = []
        left = 0
        for scanout in self.scanouts:
            modes.append(
                struct.pack("<6I", left, 0, scanout.width, scanout.height, int(scanout.enabled), 0)
            )
            left += scanout.width
        return b"".join(modes).ljust(24 * _SCANOUTS, b"\0")

    def _scanout(self, index: int) -> Scanout:
        if index >= len(self.scanouts):
            raise _Refused(BAD_SCANOUT)
        return self.scanouts[index]

    def _resource(self, index: int) -> Resource:
        found = self.resources.get(index)
        if found is None:
            raise _Refused(BAD_RESOURCE)
        return found

    def _create(self, body: bytes) -> None:
        index, pixel_format, width, height = struct.unpack_from("<4I", body)
        if not index or index in self.resources:
            raise _Refused(BAD_RESOURCE)
        if pixel_format not in FORMATS or not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise _Refused(BAD_PARAMETER)
        size = 4 * width * height
        if self._used + size > self.limit or len(self.resources) >= _MAX_RESOURCES:
            raise _Refused(OUT_OF_MEMORY)
        self.resources[index] = Resource(pixel_format, width, height)
        self._used += size

    def _unref(self, body: bytes) -> None:
        (index,) = struct.unpack_from("<I", body)
        resource = self._resource(index)
        for scanout in self.scanouts:
            if scanout.resource == index:
                scanout.resource = 0
            if scanout.cursor == index:
                scanout.cursor = 0
        self._used -= len(resource.data)
        self._entries -= len(resource.backing)
        del self.resources[index]

    def _attach(self, body: bytes) -> None:
        index, count = struct.unpack_from("<2I", body)
        resource = self._resource(index)
        if resource.backing or len(body) < 8 + 16 * count:
            raise _Refused(BAD_PARAMETER if not resource.backing else UNSPEC)
        if count > _MAX_ENTRIES or self._entries + count > 16 * _MAX_ENTRIES:
            raise _Refused(OUT_OF_MEMORY)
        entries = read_entries(body[8:], count)
        memory = self._memory
        assert memory is not None
        if not all(memory.contains(address, length) for address, length in entries):
            raise _Refused(BAD_PARAMETER)
        resource.attach(entries)
        self._entries += len(entries)

    def _detach(self, body: bytes) -> None:
        resource = self._resource(struct.unpack_from("<I", body)[0])
        self._entries -= len(resource.backing)
        resource.attach([])

    def _set_scanout(self, body: bytes) -> None:
        *rect, output, index = struct.unpack_from("<6I", body)
        scanout = self._scanout(output)
        if not index:
            scanout.resource, scanout.rect = 0, (0, 0, 0, 0)
            return
        resource = self._resource(index)
        x, y, width, height = rect
        if not width or not height or not resource.holds((x, y, width, height)):
            raise _Refused(BAD_PARAMETER)
        scanout.resource, scanout.rect = index, (x, y, width, height)

    def _transfer(self, body: bytes) -> None:
        x, y, width, height, offset, index = struct.unpack_from("<4IQI", body)
        resource = self._resource(index)
        memory = self._memory
        assert memory is not None
        rect = (x, y, width, height)
        if not resource.holds(rect) or not resource.transfer(memory, rect, offset):
            raise _Refused(BAD_PARAMETER)
        self.statistics["transfer"].add(4 * width * height)

    def _flush(self, body: bytes) -> None:
        x, y, width, height, index = struct.unpack_from("<5I", body)
        if not self._resource(index).holds((x, y, width, height)):
            raise _Refused(BAD_PARAMETER)
        for scanout in self.scanouts:
            scanout.frames += scanout.resource == index
        self.statistics["flush"].add(4 * width * height)

    def _update_cursor(self, body: bytes) -> None:
        output, _, _, _, index, hot_x, hot_y = struct.unpack_from("<7I", body)
        scanout = self._scanout(output)
        if index:
            self._resource(index)
        scanout.cursor, scanout.hot = index, (hot_x, hot_y)
        self._move_cursor(body)

    def _move_cursor(self, body: bytes) -> None:
        output, x, y = struct.unpack_from("<3I", body)
        self._scanout(output).at = (x, y)
        self.statistics["cursor"].add()

    # -- life ----------------------------------------------------------------------------------

    def device_reset(self) -> None:
        """No resources, nothing shown; the monitors stay."""
        self.resources.clear()
        self._used = self._entries = self._events = 0
        for scanout in self.scanouts:
            scanout.reset()

    def state(self) -> dict[str, object]:
        """The base class's, the resources with their pixels, what is shown."""
        return {
            **super().state(),
            "gpu_events": self._events,
            "gpu_scanouts": [
                word
                for s in self.scanouts
                for word in (
                    s.width, s.height, int(s.enabled), s.resource, *s.rect, s.cursor, *s.hot, *s.at,
                )
            ],
            "gpu_ids": list(self.resources),
            "gpu_resources": [resource.save() for resource in self.resources.values()],
        }  # fmt: skip

    def take(self, take: StateReader) -> Commit:
        """Reads them back."""
        base = super().take(take)
        events = take.integer("gpu_events", 1)
        count = 13 * len(self.scanouts)
        words = take.integers("gpu_scanouts", count, _ONES, least=count)
        ids = take.integers("gpu_ids", _MAX_RESOURCES, _ONES, low=1)
        resources = self._read_resources(take.items("gpu_resources", _MAX_RESOURCES))
        if len(resources) != len(ids) or len(set(ids)) != len(ids):
            take.refuse("gpu_ids", ids, "one number for each resource")
        found = dict(zip(ids, resources, strict=True))
        scanouts = []
        for at in range(0, count, 13):
            scanout = _scanout_from(words[at : at + 13], found)
            if scanout is None:
                take.refuse("gpu_scanouts", words[at : at + 13], "a monitor and what it shows")
            else:
                scanouts.append(scanout)

        def commit() -> None:
            base()
            self._events, self.resources = events, found
            self._used = sum(len(r.data) for r in resources)
            self._entries = sum(len(r.backing) for r in resources)
            self.scanouts[:] = scanouts

        return commit

    def _read_resources(self, saved: list[object]) -> list[Resource]:
        found: list[Resource] = []
        left = self.limit
        for item in saved:
            try:
                resource = Resource.from_saved(item, left)
            except ValueError as error:
                raise DeviceStateError(
                    f"{self.name}: saved state has a resource that cannot be: {error}"
                ) from None
            left -= len(resource.data)
            found.append(resource)
        return found


def _scanout_from(words: list[int], resources: dict[int, Resource]) -> Scanout | None:
    width, height, enabled, resource, x, y, w, h, cursor, *places = words
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE) or enabled > 1:
        return None
    if cursor and cursor not in resources:
        return None
    if resource and (
        resource not in resources or not w or not h or not resources[resource].holds((x, y, w, h))
    ):
        return None
    found = Scanout(width, height)
    found.enabled, found.resource, found.rect = bool(enabled), resource, (x, y, w, h)
    found.cursor, found.hot, found.at = cursor, (places[0], places[1]), (places[2], places[3])
    return found


def _check_size(width: int, height: int) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise ValueError(f"a monitor of {width}x{height} pixels is not possible; 1 to {MAX_SIDE}")


class GpuScreen:
    """Looks at a monitor of a `VirtioGpu`; safe to use while the guest runs."""

    def __init__(self, gpu: VirtioGpu, scanout: Scanout) -> None:
        self._gpu, self._scanout = gpu, scanout

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of what is shown; the monitor's own where nothing is."""
        scanout = self._scanout
        return scanout.rect[2:] if scanout.resource else (scanout.width, scanout.height)

    def picture(self, *, cursor: bool = True) -> Picture:
        """The pixels, with the cursor on them; black where the guest shows nothing."""
        with self._gpu.lock:
            scanout, resources = self._scanout, self._gpu.resources
            shown = resources.get(scanout.resource)
            if shown is None:
                return Picture(*self.size, bytes(4 * self.size[0] * self.size[1]), 32)
            picture = shown.picture(scanout.rect)
            pointer = resources.get(scanout.cursor) if cursor else None
            if pointer is None:
                return picture
            left, top = (at - hot for at, hot in zip(scanout.at, scanout.hot, strict=True))
            return _blended(picture, pointer, left, top)

    def save_png(self, path: str | os.PathLike[str]) -> None:
        """Writes what is shown as a PNG file. Raises `PictureError` without Pillow."""
        self.picture().save_png(path)


def _blended(picture: Picture, pointer: Resource, left: int, top: int) -> Picture:
    """The cursor over a picture, by its alpha (premultiplied, as drivers give it)."""
    colours = pointer.picture((0, 0, pointer.width, pointer.height)).data
    alpha = pointer.data[6 - sum(FORMATS[pointer.format]) :: 4]
    data = bytearray(picture.data)
    for y in range(max(0, -top), min(pointer.height, picture.height - top)):
        for x in range(max(0, -left), min(pointer.width, picture.width - left)):
            a = alpha[y * pointer.width + x]
            if a:
                to, at = 4 * ((y + top) * picture.width + x + left), 4 * (y * pointer.width + x)
                for n in range(3):
                    data[to + n] = min(255, colours[at + n] + data[to + n] * (255 - a) // 255)
    return Picture(picture.width, picture.height, bytes(data), 32)
