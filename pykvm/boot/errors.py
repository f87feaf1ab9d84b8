"""The loaders' one error, and the wording helpers that its sentences share."""

from __future__ import annotations

from pykvm.errors import PykvmError


class ImageError(PykvmError):
    """An image cannot be loaded. `str()` is one sentence: the file, the thing, the value, the
    remedy."""


def printable(text: str, limit: int = 200) -> str:
    """`text` as it may appear inside a message: control characters escaped, at most `limit`
    characters.

    Names come from files and command lines: they must break neither the one sentence nor the
    terminal.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogateescape").decode("ascii")
        for c in text
    )


def span(start: int, size: int) -> str:
    """The address range of `size` bytes from `start`, as `0x1000-0x1fff`."""
    return f"{start:#x}-{start + size - 1:#x}" if size else f"{start:#x} (0 bytes)"


def human_size(size: int) -> str:
    """A byte count for a message: `512 bytes`, `64 KiB`, `1.5 MiB`."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << shift:
            value = size / (1 << shift)
            return f"{value:.0f} {unit}" if size % (1 << shift) == 0 else f"{value:.1f} {unit}"
    return f"{size} bytes"
