"""`ProbedRaw`: a disk that is raw because its bytes are no other format's, and has to stay so."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pykvm.devices.block.backend import BlockError, NativeFile, total
from pykvm.devices.block.images_detect import FOOTER, PROBED, looks_like
from pykvm.devices.block.raw import RawFile


class ProbedRaw(RawFile):
    """A `RawFile` that refuses to be made another format's, as QEMU does in this case.

    Otherwise a guest could write, say, a qcow2 header with a backing file of its choice, and would
    be given that file as its disk the next time. Whoever says format="raw" has no such limit.
    """

    def native_fd(self) -> NativeFile | None:
        """The engine makes the same check."""
        file = super().native_fd()
        return None if file is None else file._replace(guarded=True)

    def writev(self, offset: int, views: Sequence[memoryview]) -> None:
        """Looks at what goes to the first and the last sector."""
        length, last = total(views), max(0, self._bytes - FOOTER)
        if length and (offset < PROBED or offset + length > last):
            self.check(offset, length, writing=True)
            data = memoryview(b"".join(views))  # the guest may change the original meanwhile
            head, footer = bytearray(self.read(0, PROBED)), bytearray(self.read(last, FOOTER))
            for place, start in ((head, 0), (footer, last)):
                begin, end = max(offset, start), min(offset + length, start + len(place))
                if begin < end:
                    place[begin - start : end - start] = data[begin - offset : end - offset]
            kind = looks_like(bytes(head), bytes(footer) if last >= FOOTER else b"")
            if kind != "raw":
                raise BlockError(
                    f"{self.name}: the guest may not make a {kind} image of this raw disk, whose "
                    'format was found by looking at it; give format="raw" to allow that',
                    errno.EPERM,
                )
            views = [data]
        super().writev(offset, views)
