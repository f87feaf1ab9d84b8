"""Text that a kernel reads: command lines and the strings of modules."""

from __future__ import annotations

from pykvm.boot.errors import ImageError, human_size
from pykvm.typed import Any

MAX_STRING = 1 << 16
"""Longest command line, in bytes."""


def check_string(what: str, text: Any) -> bytes:
    """`text` as the zero-terminated string a kernel reads; `ImageError` if it cannot be one."""
    if not isinstance(text, str):
        raise ImageError(f"the {what} is {type(text).__name__}, not text: give a str")
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ImageError(
            f"the {what} has a lone surrogate at {error.start}, which is no text: remove it"
        ) from None
    if b"\0" in raw:
        raise ImageError(f"the {what} has a NUL character at {raw.index(0)}: remove it")
    if len(raw) > MAX_STRING:
        raise ImageError(
            f"the {what} of {human_size(len(raw))} is longer than {human_size(MAX_STRING)}: "
            "shorten it"
        )
    return raw + b"\0"
