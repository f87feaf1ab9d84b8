"""Accesses that nobody owns: what they answer, and how often they came."""

from __future__ import annotations

from pykvm.machine.result import Stop, StopReason
from pykvm.typed import Literal

Policy = Literal["ones", "ignore", "log", "stop"]
POLICIES = ("ones", "ignore", "log", "stop")
_REMEMBERED = 4096  # distinct addresses; a hostile guest could name 2**52


class Unclaimed:
    """Answers unclaimed accesses by a policy, and counts them by (bus, address)."""

    def __init__(self, policy: Policy) -> None:
        self.policy: Policy = policy
        self.counts: dict[tuple[str, int], int] = {}

    def access(self, kind: str, address: int, size: int, value: int | None) -> int:
        """One access on bus `kind`; `value` is None for a read. Raises `Stop` by policy."""
        key = (kind, address)
        if key in self.counts or len(self.counts) < _REMEMBERED:
            self.counts[key] = self.counts.get(key, 0) + 1
        policy = self.policy
        if policy == "ignore":
            return 0
        if policy != "ones":
            what = "read" if value is None else f"write of {value:#x}"
            text = f"unclaimed {kind} {what} ({size} bytes) at {address:#x}"
            if policy == "stop":
                raise Stop(StopReason.UNCLAIMED, detail=text)
            import logging

            logging.getLogger("pykvm.machine").warning("%s", text)
        return (1 << 8 * size) - 1
