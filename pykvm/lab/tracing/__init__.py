"""Tracing: every VM exit of a machine, explained, as it happens.

```python
machine = Machine(trace=Tracer.RING)
machine.load("hello64")
with Tracer(machine, print):
    machine.run()
```
"""

from __future__ import annotations

from pykvm.lab.tracing.summary import Summary, SummaryRow
from pykvm.lab.tracing.tracer import TracedExit, Tracer

__all__ = ["Summary", "SummaryRow", "TracedExit", "Tracer"]
