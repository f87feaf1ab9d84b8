"""What the tests of save and load need to know of each kind of device.

Every `tests/device_cases_*.py` has a dictionary `CASES` from device class to `Case`;
`tests/property/test_dev_state.py` takes them all, and expects one for every device there is.
"""

from __future__ import annotations

import importlib
import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from pykvm.devices import Device, ManualClock, RecordingIrqLine
from pykvm.devices.uart16550 import Uart16550

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


def steps_for(case: Case, starts: list[list[Step]]) -> st.SearchStrategy[list[Step]]:
    kinds = ["read", "write", "wait", *case.events]
    value = st.one_of(st.integers(0, 255), st.sampled_from([0x01, 0x03, 0x0B, 0x80, 0xC1]))
    step = st.tuples(st.sampled_from(kinds), st.integers(0, case.registers - 1), value)
    return st.builds(
        lambda start, more: [*start, *more], st.sampled_from(starts), st.lists(step, max_size=25)
    )


def perform(case: Case, bench: Bench, device: Device, steps: list[Step]) -> list[object]:
    """Do the steps; gives everything that could be seen while doing them."""
    seen: list[object] = []
    for kind, offset, value in steps:
        if kind == "read":
            seen.append(device.read(offset * case.width, case.width))
        elif kind == "write":
            device.write(offset * case.width, case.width, value)
        elif kind == "wait":
            bench.clock.advance(value * 100_000)
        else:
            seen.append(case.events[kind](device, value))
        seen.append((bench.irq.level, list(bench.output), case.look(device)))
    return seen


def differ(
    case: Case, before: list[Step], after: list[Step], *, compare_states: bool = True
) -> tuple[object, object] | None:
    """The first difference between a device and its copy made from its saved state, or None."""
    original_bench = Bench(ManualClock(1_000))
    original = case.make(original_bench)
    perform(case, original_bench, original, before)
    saved = original.save()
    # A snapshot goes through a file into another process, whose clock shows another time.
    saved = json.loads(json.dumps(saved))
    copy_bench = Bench(ManualClock(77_000_000))
    copy = case.make(copy_bench)
    perform(case, copy_bench, copy, [("write", 0, 0x55), ("read", 0, 0), ("wait", 0, 9)])
    copy.load(saved)
    copy_bench.output.clear()
    original_bench.output.clear()
    if isinstance(copy, Uart16550) and copy_bench.irq.level != original_bench.irq.level:
        return original_bench.irq.level, copy_bench.irq.level
    resaved = json.loads(json.dumps(copy.save()))
    if compare_states and resaved != saved:
        return saved, resaved
    rounds = 18 if case.registers < 32 else 1  # enough to empty a FIFO
    ending: list[Step] = [("read", n, 0) for n in range(case.registers)] * rounds
    for steps in (after, [("wait", 0, 255)], ending):
        one = perform(case, original_bench, original, steps)
        two = perform(case, copy_bench, copy, steps)
        for left, right in zip(one, two, strict=True):
            if left != right:
                return left, right
    return None
