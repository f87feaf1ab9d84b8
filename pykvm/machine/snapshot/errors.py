"""`SnapshotError`: a snapshot that cannot be taken, put back or read, and why."""

from __future__ import annotations

from pykvm.machine.result import MachineError


class SnapshotError(MachineError):
    """One sentence: what cannot be done with the snapshot, because of what, and the remedy."""
