"""What can be wrong with the medium of a drive."""

from __future__ import annotations

from pykvm.errors import PykvmError


class MediumError(PykvmError):
    """A medium that cannot be used, or is not there; a place for a drive that is not."""
