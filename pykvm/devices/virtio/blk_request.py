"""Requests of the block device (VIRTIO 1.2, section 5.2.6): what they ask for, and doing it.

This is the reference, and what serves disks that are not a file. native/src/blk_request.c makes the
same checks in the same order for those that are.
"""

from __future__ import annotations

import struct

from pykvm.devices.block.backend import SECTOR, BlockBackend
from pykvm.devices.block.raw import split
from pykvm.devices.block.request import (
    DISCARD,
    FLUSH,
    READ,
    WRITE,
    WRITE_ZEROES,
    BlockRequest,
)
from pykvm.devices.virtio.queue import Chain, QueueError, VirtQueue

T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
KIND_OF = {T_IN: "read", T_OUT: "write", T_FLUSH: "flush", T_DISCARD: "discard",
           T_WRITE_ZEROES: "discard"}  # fmt: skip

# What one request may ask for, so that it is a bounded piece of work: 254 segments of 128 KiB.
SIZE_MAX, SEG_MAX = 128 << 10, 254
REQUEST_LIMIT = 32 << 20
ZERO_SECTORS = 32 << 11  # written, on hosts that cannot zero a range
DISCARD_SECTORS = 1 << 21
DISCARD_SEGMENTS = 16
ID_BYTES = 20
_HEADER = struct.Struct("<IIQ")  # type, reserved, sector
_SEGMENT = struct.Struct("<QII")  # sector, sectors, flags
_UNMAP = 1


class Request:
    """One request: `parse` fills it in, `finish` writes its status.

    `status` is None while it is still to be done: `accesses` says what. Raises `QueueError` where
    there is no room for a status.
    """

    __slots__ = (
        "_answered", "_room", "_status_view", "accesses", "chain", "queue", "status", "type",
    )  # fmt: skip

    def __init__(self, chain: Chain, backend: BlockBackend, serial: bytes) -> None:
        if not chain.writable:
            raise QueueError("virtio-blk: a request without room for its status")
        self.chain = chain
        #: Where it came from; for whoever gives it back later.
        self.queue: VirtQueue | None = None
        self.type = -1
        self.accesses: list[BlockRequest] = []
        self._room = chain.writable_bytes - 1
        self._answered = 0  # bytes written before the status
        target, last = split(chain.writable, self._room)
        self._status_view = last[0]
        self.status: int | None = self._parse(backend, serial, target)

    def _parse(self, backend: BlockBackend, serial: bytes, target: list[memoryview]) -> int | None:
        chain, room = self.chain, self._room
        if chain.readable_bytes < _HEADER.size or chain.readable_bytes + room > REQUEST_LIMIT:
            return S_IOERR
        header, data = split(chain.readable, _HEADER.size)
        self.type, _, sector = _HEADER.unpack(b"".join(header))
        length = chain.readable_bytes - _HEADER.size
        match self.type:
            case 0:  # T_IN
                return self._move(backend, READ, sector, room, target)
            case 1:  # T_OUT
                if backend.read_only:
                    return S_IOERR
                return self._move(backend, WRITE, sector, length, data)
            case 4:  # T_FLUSH
                self.accesses.append(BlockRequest(FLUSH))
                return None
            case 8:  # T_GET_ID
                answer = memoryview(serial.ljust(ID_BYTES, b"\0"))[:room]
                self._answered = len(answer)
                for view in target:
                    view[: len(answer)] = answer[: len(view)]
                    answer = answer[len(view) :]
                return S_OK
            case 11 | 13:
                most = _SEGMENT.size * (DISCARD_SEGMENTS + 1)
                return self._clear(backend, b"".join(split(data, most)[0]))
        return S_UNSUPP

    def _move(
        self, backend: BlockBackend, kind: int, sector: int, length: int, views: list[memoryview]
    ) -> int | None:
        if not length or length % SECTOR or sector * SECTOR + length > backend.size:
            return S_IOERR
        self.accesses.append(BlockRequest(kind, sector * SECTOR, length, views))
        if kind == READ:
            self._answered = length
        return None

    def _clear(self, backend: BlockBackend, segments: bytes) -> int | None:
        """DISCARD and WRITE_ZEROES; all segments are looked at before one is worked on."""
        discard = self.type == T_DISCARD
        most, longest = (DISCARD_SEGMENTS, DISCARD_SECTORS) if discard else (1, ZERO_SECTORS)
        if backend.read_only:
            return S_IOERR
        if not segments or len(segments) % _SEGMENT.size or len(segments) > most * _SEGMENT.size:
            return S_IOERR
        for sector, count, flags in _SEGMENT.iter_unpack(segments):
            if flags & ~_UNMAP or (discard and flags):  # 5.2.6.2
                return S_UNSUPP
            if count > longest or (sector + count) * SECTOR > backend.size:
                return S_IOERR
            kind = DISCARD if discard else WRITE_ZEROES
            keep = not flags & _UNMAP
            self.accesses.append(
                BlockRequest(kind, sector * SECTOR, count * SECTOR, keep=keep and not discard)
            )
        return None

    @property
    def kind(self) -> str:
        """Which of the statistics it counts for."""
        return KIND_OF.get(self.type, "other")

    @property
    def limited(self) -> bool:
        """Whether rate limits are for it."""
        return self.status is None and self.type != T_FLUSH

    @property
    def moved(self) -> int:
        """Bytes that it reads or writes if all goes well, as limits and statistics count them."""
        if self.type == T_GET_ID:
            return self._answered
        return self.accesses[0].length if self.accesses and self.type in (T_IN, T_OUT) else 0

    def finish(self, status: int) -> int:
        """Writes the status; the result is the bytes written to the writable part."""
        self._status_view[0] = self.status = status
        return (self._answered if status == S_OK else 0) + 1

    def perform(self, backend: BlockBackend, write_through: bool, flushes: bool = True) -> None:
        """Does it, however long it takes. Raises `BlockError`.

        `write_through`: writes are on stable storage afterwards; `flushes`: FLUSH does something.
        """
        for access in self.accesses:
            match access.kind:
                case 0:  # READ
                    backend.readv(access.offset, access.views)
                case 1:  # WRITE
                    backend.writev(access.offset, access.views)
                case 2:  # FLUSH
                    if flushes:
                        backend.flush()
                case 3:  # DISCARD
                    backend.discard(access.offset, access.length)
                case _:
                    if access.keep:
                        backend.zero_in_place(access.offset, access.length)
                    else:
                        backend.write_zeroes(access.offset, access.length)
        if write_through and self.writes:
            backend.flush()

    @property
    def writes(self) -> bool:
        """Whether it changes the disk."""
        return self.type in (T_OUT, T_DISCARD, T_WRITE_ZEROES)
