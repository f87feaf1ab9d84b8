"""Where an image's bytes come from: a file or an object in memory, with a name for messages.

A source is read once, front to back, by whoever needs it; nothing here looks inside. Only regular
files are accepted: a directory, a FIFO, a socket or a device such as `/dev/zero` is refused before
anything is read, so that a loader neither blocks nor reads without end.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable

from pykvm.boot.errors import ImageError, printable

COPY_LIMIT = 1 << 20
"""Files up to this many bytes are read into memory; larger ones are mapped, so no byte is copied
twice.

The copy makes small images independent of the file: it may be rebuilt while the guest runs."""

ImageInput = str | os.PathLike[str] | bytes | bytearray | memoryview
"""What `load_image` takes: a path, or the image's bytes themselves."""


class Source:
    """The bytes of one image or module.

    `name` is what messages call it, `data` a read-only byte view of all of it.
    """

    def __init__(
        self, name: str, data: memoryview, size_now: Callable[[], int] | None = None
    ) -> None:
        self.name = name
        self.data = data
        self._size_now = size_now

    def check_unchanged(self) -> None:
        """Raise `ImageError` if the file behind a mapping has been cut short since it was opened.

        Touching a mapped page past the end of its file would end the whole process with SIGBUS.
        """
        if self._size_now is None:
            return
        now = self._size_now()
        if now < len(self.data):
            raise ImageError(
                f"{self.name}: the file shrank from {len(self.data)} to {now} bytes while it was "
                "in use: load it again, and replace images by renaming a new file over them"
            )


def open_source(image: ImageInput, noun: str = "image", *, allow_empty: bool = False) -> Source:
    """Open `image` for reading and return its bytes; `noun` is what messages call it.

    Raises `ImageError` if it does not exist, cannot be read, is no regular file, or is empty
    (unless `allow_empty`).
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _from_buffer(image, noun, allow_empty)
    try:
        path = os.fspath(image)
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise ImageError(
            f"the {noun} is {type(image).__name__}, neither a path nor bytes: "
            "give the file's name or its contents"
        )
    return _from_file(path, noun, allow_empty)


def _from_buffer(image: bytes | bytearray | memoryview, noun: str, allow_empty: bool) -> Source:
    try:
        data = memoryview(image).cast("B").toreadonly()
    except TypeError:
        raise ImageError(
            f"the {noun}'s memoryview is not contiguous bytes: pass bytes(view) instead"
        ) from None
    if not len(data) and not allow_empty:
        raise ImageError(f"the {noun} is empty (0 bytes): give the bytes of a kernel to run")
    return Source(f"the {noun}", data)


def _from_file(path: str, noun: str, allow_empty: bool) -> Source:
    name = printable(path)
    if not path:
        raise ImageError(f"the {noun}'s file name is empty: give a path")
    try:
        # O_NONBLOCK: opening a FIFO nobody writes to would otherwise wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the name has a NUL character"
        raise ImageError(
            f"{name}: the {noun} cannot be opened ({reason}): check the path and its permissions"
        ) from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise ImageError(
                f"{name}: this is {_kind(info.st_mode)}, not a regular file: give a file's path"
            )
        if info.st_size == 0:
            if allow_empty:
                return Source(name, memoryview(b""))
            raise ImageError(f"{name}: the file is empty (0 bytes): build it again")
        if info.st_size <= COPY_LIMIT:
            return Source(name, memoryview(_read_all(fd, info.st_size)))
        # Python's mmap keeps its own duplicate of fd, which size() asks.
        mapping = mmap.mmap(fd, info.st_size, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
        return Source(name, memoryview(mapping), mapping.size)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it shrank meanwhile"
        raise ImageError(f"{name}: the {noun} cannot be read ({reason}): check the file") from None
    finally:
        os.close(fd)


def _read_all(fd: int, size: int) -> bytes:
    """Up to `size` bytes from the start of `fd` (fewer if the file shrinks meanwhile)."""
    pieces = []
    while size and (piece := os.read(fd, size)):
        pieces.append(piece)
        size -= len(piece)
    if not pieces:
        raise ValueError("empty")
    return b"".join(pieces)


def _kind(mode: int) -> str:
    """What a file of this `st_mode` is, in words."""
    if stat.S_ISDIR(mode):
        return "a directory"
    if stat.S_ISFIFO(mode):
        return "a FIFO"
    if stat.S_ISCHR(mode):
        return "a character device"
    if stat.S_ISBLK(mode):
        return "a block device"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a special file"
