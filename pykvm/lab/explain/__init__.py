"""Explaining: what an exit means, in plain words, with the places in the manuals.

```python
exit = machine.vcpus[0].run()
print(explain(exit, machine).text())
```
`explain_silence(machine)` does the same for a guest that says nothing.
"""

from __future__ import annotations

from pykvm.lab.explain.core import explain, explain_record
from pykvm.lab.explain.explanation import Explanation
from pykvm.lab.explain.quiet import SilenceExplanation, explain_silence

__all__ = ["Explanation", "SilenceExplanation", "explain", "explain_record", "explain_silence"]
