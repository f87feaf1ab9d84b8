"""The legacy PC devices for `device_contract`: what `pc_cases` knows, accessed byte by byte."""

from __future__ import annotations

import pc_cases
from device_contract import Bench, Case
from pc_contract import Case as PcCase
from pc_contract import Rig

from pykvm.devices import Device, RecordingIrqLine

_MOST_REGISTERS = 0x12  # `pc_contract` tries the others


class _Rig(Rig):
    """A rig whose first line, clock and output are a bench's."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.clock, self.output = bench.clock, bench.output
        self._first = bench.irq

    def line(self) -> RecordingIrqLine:
        self.lines.append(RecordingIrqLine() if self.lines else self._first)
        return self.lines[-1]


def _narrow(case: PcCase) -> Case:
    return Case(
        lambda bench: case.make(_Rig(bench)),
        min(max(case.offsets) + 1, _MOST_REGISTERS),
        {name: do for name, do in case.events.items() if name not in case.outside},
        case.look,
        starts=[
            [(kind, at, value) for kind, at, size, value in start if kind not in case.outside]
            for start in case.starts
            if all(size <= 1 for _, _, size, _ in start)
        ]
        or [[]],
    )


CASES: dict[type[Device], Case] = {device: _narrow(case) for device, case in pc_cases.CASES.items()}
