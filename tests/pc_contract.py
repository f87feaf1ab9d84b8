"""Save, load and reset as one contract for devices with several lines, widths and callbacks.

A device that went through random steps is saved and loaded into another one, which has a past of
its own and whose clock shows another time. From there on both must behave alike: the same reads,
the same output, the same interrupt lines. `pc_cases` has the devices.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pykvm.devices import Device, ManualClock, RecordingIrqLine
from pykvm.memory import GuestMemory

#: ("read" | "write" | "wait" | an event's name, offset, size in bytes, value)
Step = tuple[str, int, int, int]


class Rig:
    """All that is outside of a device, recorded."""

    def __init__(self, now_ns: int = 0) -> None:
        self.clock = ManualClock(now_ns)
        self.lines: list[RecordingIrqLine] = []
        self.output: list[object] = []
        self.memory: GuestMemory | None = None

    def line(self) -> RecordingIrqLine:
        line = RecordingIrqLine()
        self.lines.append(line)
        return line

    def note(self, what: str) -> Callable[..., None]:
        """A callback that records its arguments."""
        return lambda *args: self.output.append((what, *args))

    def seen(self) -> tuple[object, ...]:
        memory = self.memory
        return (
            [line.level for line in self.lines],
            list(self.output),
            None if memory is None else hash(memory.read(0, memory.size)),
        )


@dataclass
class Case:
    """How to make a device, which of its registers to try, and what else can happen to it."""

    make: Callable[[Rig], Device]
    offsets: list[int]
    sizes: tuple[int, ...] = (1,)
    events: dict[str, Callable[[Any, int], object]] = field(default_factory=dict)
    #: Steps that bring the device to where its state is rich.
    starts: list[list[Step]] = field(default_factory=lambda: [[]])
    #: Values that mean something to it.
    values: tuple[int, ...] = (0, 1, 0x55, 0x80, 0xFF)
    look: Callable[[Any], object] = lambda device: None
    #: Nanoseconds of one unit of a "wait" step.
    wait_ns: int = 100_000
    #: Events that change what is outside the device and stays through a reset.
    outside: frozenset[str] = frozenset()


def perform(case: Case, rig: Rig, device: Device, steps: list[Step]) -> list[object]:
    """Do the steps; gives everything that could be seen while doing them."""
    seen: list[object] = []
    for kind, offset, size, value in steps:
        if kind == "read":
            seen.append(device.read(offset, size))
        elif kind == "write":
            device.write(offset, size, value & (1 << 8 * size) - 1)
        elif kind == "wait":
            rig.clock.advance(value * case.wait_ns)
        else:
            seen.append(case.events[kind](device, value))
        seen.append((kind, offset, rig.seen(), case.look(device)))
    return seen


def steps_from(case: Case, rng: random.Random, count: int) -> list[Step]:
    """Random steps."""
    kinds = ["read", "write", "write", "wait", *case.events]
    steps: list[Step] = []
    for _ in range(count):
        kind = rng.choice(kinds)
        value = rng.choice(case.values) if rng.random() < 0.6 else rng.getrandbits(32)
        if kind == "wait":
            value %= 1000
        steps.append((kind, rng.choice(case.offsets), rng.choice(case.sizes), value))
    return steps


def all_reads(case: Case) -> list[Step]:
    return [("read", offset, size, 0) for size in case.sizes for offset in case.offsets]


Loader = Callable[[Device, dict[str, object]], None]


def plain_load(device: Device, state: dict[str, object]) -> None:
    device.load(state)


def differ(
    case: Case, before: list[Step], after: list[Step], load: Loader = plain_load
) -> tuple[object, object] | None:
    """The first difference between a device and its copy made from its saved state, or None."""
    original_rig, copy_rig = Rig(1_000), Rig(77_000_001)
    original, copy = case.make(original_rig), case.make(copy_rig)
    try:
        perform(case, original_rig, original, before)
        saved = json.loads(json.dumps(original.save()))
        perform(case, copy_rig, copy, steps_from(case, random.Random(5), 6))
        if original_rig.memory is not None and copy_rig.memory is not None:
            copy_rig.memory.write(0, original_rig.memory.read(0, original_rig.memory.size))
        load(copy, saved)
        original_rig.output.clear()
        copy_rig.output.clear()
        resaved = json.loads(json.dumps(copy.save()))
        if resaved != saved:
            return saved, resaved
        if original_rig.seen()[0] != copy_rig.seen()[0]:
            return original_rig.seen(), copy_rig.seen()
        for steps in (after, [("wait", 0, 0, 500)], all_reads(case) * 2):
            one = perform(case, original_rig, original, steps)
            two = perform(case, copy_rig, copy, steps)
            for left, right in zip(one, two, strict=True):
                if left != right:
                    return left, right
        return None
    finally:
        original.close()
        copy.close()
