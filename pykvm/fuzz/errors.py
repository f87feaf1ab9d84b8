"""Errors of `pykvm.fuzz`."""

from __future__ import annotations

from pykvm.errors import PykvmError


class FuzzError(PykvmError):
    """A target, an input or a campaign that cannot be used as it is."""
