"""`VirtioBlk`: the block device (VIRTIO 1.2, section 5.2)."""

from __future__ import annotations

import struct

from pykvm.devices.block.backend import SECTOR, BlockBackend, BlockError
from pykvm.devices.block.raw import split
from pykvm.devices.virtio.device import VirtioDevice
from pykvm.devices.virtio.queue import Chain, QueueError, VirtQueue

DEVICE_ID = 2
F_SIZE_MAX, F_SEG_MAX, F_RO, F_BLK_SIZE = 1 << 1, 1 << 2, 1 << 5, 1 << 6
F_FLUSH, F_DISCARD, F_WRITE_ZEROES = 1 << 9, 1 << 13, 1 << 14
T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2

# What one request may ask for, so that a kick is a bounded piece of work: 254 segments of 128 KiB.
_SIZE_MAX, _SEG_MAX = 128 << 10, 254
_REQUEST_LIMIT = 32 << 20
_ZERO_SECTORS = 32 << 11  # written, on hosts that cannot zero a range
_DISCARD_SECTORS = 1 << 21
_DISCARD_SEGMENTS = 16
_ID_BYTES = 20
_HEADER = struct.Struct("<IIQ")  # type, reserved, sector
_SEGMENT = struct.Struct("<QII")  # sector, sectors, flags
_CONFIG = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")


class _Refused(Exception):
    """A request that gets a status other than OK."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class VirtioBlk(VirtioDevice):
    """A disk.

    - `backend`: what it shows; closed with the device.
    - `serial`: up to 20 bytes of text that the driver can ask for.
    - `block_size`: the logical block size in bytes that the driver is told: 512 to 4096.

    Write-back where the driver accepts FLUSH; otherwise each write is on stable storage when it
    completes (5.2.6.2). A request that makes no sense gets an error status.
    """

    def __init__(
        self, backend: BlockBackend, serial: str = "", *, block_size: int = SECTOR,
        queue_size: int = 256, name: str = "virtio-blk",
    ) -> None:  # fmt: skip
        if block_size not in (512, 1024, 2048, 4096):
            raise ValueError(f"a block size of {block_size} is not 512, 1024, 2048 or 4096")
        features = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH
        features |= F_RO if backend.read_only else F_DISCARD | F_WRITE_ZEROES
        super().__init__(DEVICE_ID, [queue_size], features)
        self.name = name
        self.backend = backend
        self.serial = serial.encode("ascii", "replace")[:_ID_BYTES]
        self._block_size = block_size
        #: Requests taken, and those that failed in the backend.
        self.requests = self.errors = 0

    def config(self) -> bytes:
        """The configuration structure (5.2.4)."""
        return _CONFIG.pack(
            self.backend.size // SECTOR, _SIZE_MAX, _SEG_MAX,
            0, 0, 0,  # no geometry
            self._block_size,
            0, 0, 0, 0,  # no topology
            1, 0, 1,  # write-back, unused, queues
            _DISCARD_SECTORS, _DISCARD_SEGMENTS, self._block_size // SECTOR,
            _ZERO_SECTORS, 1, 1,
        )  # fmt: skip

    def resized(self, backend: BlockBackend | None = None) -> None:
        """The disk has another size now (or is another); the driver is told."""
        self.backend = backend or self.backend
        self.config_changed()

    def close(self) -> None:
        """Closes the disk."""
        self.backend.close()

    # -- requests ------------------------------------------------------------------------------

    def handle(self, queue: VirtQueue) -> None:
        """Every request that is there, in order."""
        try:
            while (chain := queue.pop()) is not None:
                self.requests += 1
                queue.push(chain, self._serve(chain))
        finally:
            self.finish(queue)

    def _serve(self, chain: Chain) -> int:
        """One request; the bytes written to its writable part."""
        if not chain.writable:
            raise QueueError(f"{self.name}: a request without room for its status")
        room = chain.writable_bytes - 1
        target, last = split(chain.writable, room)
        try:
            written = self._perform(chain, target, room)
            status = S_OK
        except _Refused as refused:
            written, status = 0, refused.status
        except BlockError as error:
            self.errors += 1
            self.complain(f"{self.name}: {error}")
            written, status = 0, S_IOERR
        last[0][0] = status
        return written + 1

    def _perform(self, chain: Chain, target: list[memoryview], room: int) -> int:
        if chain.readable_bytes < _HEADER.size or chain.readable_bytes + room > _REQUEST_LIMIT:
            raise _Refused(S_IOERR)
        header, data = split(chain.readable, _HEADER.size)
        kind, _, sector = _HEADER.unpack(b"".join(header))
        backend = self.backend
        if kind == T_IN:
            self._need_sectors(room)
            backend.readv(sector * SECTOR, target)
            return room
        if kind == T_OUT:
            self._need_writable()
            self._need_sectors(chain.readable_bytes - _HEADER.size)
            backend.writev(sector * SECTOR, data)
            self._settle()
        elif kind == T_FLUSH:
            backend.flush()
        elif kind == T_GET_ID:
            answer = memoryview(self.serial.ljust(_ID_BYTES, b"\0"))[:room]
            for view in target:
                view[: len(answer)] = answer[: len(view)]
                answer = answer[len(view) :]
            return min(room, _ID_BYTES)
        elif kind in (T_DISCARD, T_WRITE_ZEROES):
            self._clear(kind, b"".join(split(data, _SEGMENT.size * (_DISCARD_SEGMENTS + 1))[0]))
        else:
            raise _Refused(S_UNSUPP)
        return 0

    def _clear(self, kind: int, segments: bytes) -> None:
        """DISCARD and WRITE_ZEROES; all segments are looked at before one is worked on."""
        discard = kind == T_DISCARD
        most, longest = (_DISCARD_SEGMENTS, _DISCARD_SECTORS) if discard else (1, _ZERO_SECTORS)
        self._need_writable()
        if not segments or len(segments) % _SEGMENT.size or len(segments) > most * _SEGMENT.size:
            raise _Refused(S_IOERR)
        ranges = []
        for sector, count, flags in _SEGMENT.iter_unpack(segments):
            if flags & ~1 or (discard and flags):  # 5.2.6.2
                raise _Refused(S_UNSUPP)
            if count > longest:
                raise _Refused(S_IOERR)
            self.backend.check(sector * SECTOR, count * SECTOR, writing=True)
            ranges.append((sector * SECTOR, count * SECTOR))
        for offset, length in ranges:
            if discard:
                self.backend.discard(offset, length)
            else:
                self.backend.write_zeroes(offset, length)
        self._settle()

    def _settle(self) -> None:
        if not self.has & F_FLUSH:
            self.backend.flush()

    def _need_writable(self) -> None:
        if self.backend.read_only:
            raise _Refused(S_IOERR)

    def _need_sectors(self, length: int) -> None:
        if length == 0 or length % SECTOR:
            raise _Refused(S_IOERR)
