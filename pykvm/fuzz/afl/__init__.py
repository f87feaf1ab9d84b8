"""AFL++ drives a target of ours, unmodified: its fork server and its campaigns."""

from __future__ import annotations

from pykvm.fuzz.afl.campaign import Campaign, Status
from pykvm.fuzz.afl.server import ForkServer, serve

__all__ = ["Campaign", "ForkServer", "Status", "serve"]
