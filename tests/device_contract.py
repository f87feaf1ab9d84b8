"""What the tests of save and load need to know of each kind of device.

Every `tests/device_cases_*.py` has a dictionary `CASES` from device class to `Case`;
`tests/property/test_dev_state.py` takes them all, and expects one for every device there is.
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pykvm.devices import Device, ManualClock, RecordingIrqLine

#: ("read"/"write"/"wait" or the name of an event, register number, value)
Step = tuple[str, int, int]


@dataclass
class Bench:
    """A device with all that is outside of it, recorded."""

    clock: ManualClock
    irq: RecordingIrqLine = field(default_factory=RecordingIrqLine)
    output: list[object] = field(default_factory=list)


@dataclass
class Case:
    """How to make one kind of device, and what can happen to it besides reads and writes."""

    make: Callable[[Bench], Device]
    registers: int
    events: dict[str, Callable[[Any, int], object]] = field(default_factory=dict)
    #: Reads that show inner state of the object which the guest does not see.
    look: Callable[[Any], object] = lambda device: None
    #: Width of a register in bytes; `registers` of them.
    width: int = 1
    #: What brings the device quickly to where its state is rich.
    starts: list[list[Step]] = field(default_factory=lambda: [[]])


def more_cases() -> dict[type[Device], Case]:
    """The cases of every `device_cases_*.py` beside this file."""
    found: dict[type[Device], Case] = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("device_cases_*.py")):
        found.update(importlib.import_module(path.stem).CASES)
    return found
