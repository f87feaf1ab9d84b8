"""Whole-machine snapshots: `Machine.snapshot()`, `Machine.restore()`; docs/snapshots.md."""

from __future__ import annotations

from pykvm.machine.snapshot.errors import SnapshotError
from pykvm.machine.snapshot.snapshot import Restored, Snapshot

__all__ = ["Restored", "Snapshot", "SnapshotError"]
