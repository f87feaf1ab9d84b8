"""The machine room: `Machine` puts VM, vCPUs, memory, buses and devices together and runs them."""

from __future__ import annotations

from pykvm.machine.hooks import Access, Hook
from pykvm.machine.machine import Machine
from pykvm.machine.result import MachineError, RunResult, Status, StopReason

__all__ = ["Access", "Hook", "Machine", "MachineError", "RunResult", "Status", "StopReason"]
