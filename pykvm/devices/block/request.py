"""`BlockRequest`: one access to a disk, for back ends that work on many at a time.

Such a back end has `begin(request, done)`: it returns at once, and calls `done(error)` once, with
None or a `BlockError`, from any thread, possibly before `begin` returns. The views belong to the
request until then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pykvm.devices.block.backend import BlockError
from pykvm.typed import NamedTuple

READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES = range(5)

Done = Callable[[BlockError | None], None]


class BlockRequest(NamedTuple):
    """An access: offset and length in bytes; `views` are the buffers of READ and WRITE.

    `durable`: a write is on stable storage before it is done. `keep`: WRITE_ZEROES keeps the
    storage allocated.
    """

    kind: int
    offset: int = 0
    length: int = 0
    views: Sequence[memoryview] = ()
    durable: bool = False
    keep: bool = False
