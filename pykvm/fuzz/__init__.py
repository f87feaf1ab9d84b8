"""Fuzzing: run code in a VM, put the VM back, thousands of times a second.

`Ring3` calls a function of an ELF program in ring 3, without a kernel; docs/fuzzing.md.
"""

from __future__ import annotations

from pykvm.fuzz.coverage import Coverage, Seen
from pykvm.fuzz.errors import FuzzError
from pykvm.fuzz.program import Program
from pykvm.fuzz.result import Crash, Outcome, Result
from pykvm.fuzz.ring3 import Ring3

__all__ = ["Coverage", "Crash", "FuzzError", "Outcome", "Program", "Result", "Ring3", "Seen"]
