"""Colours, where somebody looks at them."""

from __future__ import annotations

import os

from pykvm.typed import TextIO


def use_colour(stream: TextIO) -> bool:
    """Whether `stream` shows colours: a terminal, unless NO_COLOR or TERM=dumb say otherwise."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    try:
        return stream.isatty()
    except ValueError:
        return False
