"""The root of every error that pykvm raises on purpose. A leaf module: every room may import it."""

from __future__ import annotations


class PykvmError(Exception):
    """Base of all pykvm errors. `str()` is one sentence: the thing, the value, the remedy."""
