"""Reports of whole runs: every exit recorded compactly, written as a page, a trace or a table.

```python
machine = Machine(trace=Recorder.RING)
machine.load("hello64")
with Recorder(machine) as recorder:
    result = machine.run()
    recorder.close()
    write_html(recorder.recording, "run.html", title="hello64", result=result)
```
`write_perfetto` makes a file for ui.perfetto.dev, `write_csv` a table. A recording lies in a
temporary file: a million exits need no more memory than a thousand.
"""

from __future__ import annotations

from pykvm.lab.report.html import write_html
from pykvm.lab.report.perfetto import write_perfetto
from pykvm.lab.report.recorder import Recorder
from pykvm.lab.report.recording import Recording, Row, Site
from pykvm.lab.report.table import write_csv

__all__ = [
    "Recorder",
    "Recording",
    "Row",
    "Site",
    "write_csv",
    "write_html",
    "write_perfetto",
]
