"""The machine room: `Machine` puts VM, vCPUs, memory, buses and devices together and runs them."""

from __future__ import annotations

from pykvm.machine.machine import Machine
from pykvm.machine.result import MachineError, RunResult, Status, StopReason
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine.hooks import Access, Hook

__all__ = ["Access", "Hook", "Machine", "MachineError", "RunResult", "Status", "StopReason"]


def __getattr__(name: str) -> Any:
    if name in ("Access", "Hook"):
        from pykvm.machine import hooks

        return getattr(hooks, name)
    raise AttributeError(f"module 'pykvm.machine' has no attribute {name!r}")
