"""The doctor: tries out what a host's /dev/kvm can do, instead of believing what it says.

```python
from pykvm.machine.doctor import examine

report = examine()
print(report.summary, report.find("mode_long").text)
```
"""

from __future__ import annotations

from pykvm.machine.doctor.examine import examine
from pykvm.machine.doctor.result import Finding, Mark, Report, Section

__all__ = ["Finding", "Mark", "Report", "Section", "examine"]
