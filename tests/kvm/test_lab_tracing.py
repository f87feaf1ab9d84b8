"""The tracer as a library: every exit, whole and explained, and a machine as before afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from pykvm import Machine
from pykvm.kvm.accounting import TraceRecord
from pykvm.lab.places import describe_place
from pykvm.lab.totals import exit_totals, totals_text
from pykvm.lab.tracing import TracedExit, Tracer
from pykvm.machine import MachineError

# mov al, 0x80; mov dx, 0x3fb; out dx, al (LCR: DLAB); mov dx, 0x3f8; out dx, al; in al, 0x10; hlt
CODE = b"\xb0\x80\xba\xfb\x03\xee\xba\xf8\x03\xee\xe4\x10\xf4"


def traced(code: bytes, **options: Any) -> tuple[Machine, list[TracedExit]]:
    seen: list[TracedExit] = []
    machine = Machine(irqchip="none", trace=Tracer.RING, **options)
    machine.load(code)
    with Tracer(machine, seen.append) as tracer:
        machine.run(timeout=10)
    assert tracer.count == len(seen)
    return machine, seen


def test_each_exit_is_explained() -> None:
    machine, seen = traced(CODE)
    with machine:
        assert [str(e) for e in seen] == [
            "#0 out 0x3fb ← 0x80 [COM1 LCR] at 0x1005: out dx, al",
            "#1 out 0x3f8 ← 0x80 [COM1 DLL] at 0x1009: out dx, al",
            "#2 in 0x10 → 0xff [unclaimed] at 0x100a: in al, 0x10",
            "#3 halted at 0x100c: hlt",
        ]
        assert all(e.record.run_ns > 0 for e in seen)
        assert all(e.record.handle_ns > 0 for e in seen[:-1])


def test_code_that_changes_itself_is_shown_as_it_was() -> None:
    # out 0x10, al; mov byte [0x1000], 0xe4 (in al, 0x10); mov byte [0x1007], 0xf4; jmp 0x1000
    code = b"\xe6\x10\xc6\x06\x00\x10\xe4\x90\xc6\x06\x07\x10\xf4\xeb\xf1"
    machine, seen = traced(code)
    with machine:
        assert [e.instruction for e in seen] == ["out 0x10, al", "in al, 0x10", "hlt"]
        assert [e.address for e in seen] == [0x1000, 0x1000, 0x1007]


def test_the_machine_is_as_before_afterwards() -> None:
    machine, _ = traced(CODE)
    with machine:
        assert machine.on_trace is None
        with Tracer(machine, print), pytest.raises(MachineError, match="traced already"):
            Tracer(machine, print)


def test_an_exception_in_the_callback_ends_the_run() -> None:
    def fail(exit_: TracedExit) -> None:
        raise ValueError(f"at {exit_.record.sequence}")

    with Machine(irqchip="none", trace=Tracer.RING) as machine:
        machine.load(CODE)
        with pytest.raises(ValueError, match="at 0"), Tracer(machine, fail):
            machine.run(timeout=10)


def test_exits_that_native_rules_finish_are_traced_too() -> None:
    seen: list[TraceRecord] = []
    with Machine(irqchip="none", trace=Tracer.RING) as machine:
        machine.load(b"\xe6\x10\xe6\x10\xf4")
        machine.vm.rules.pio(0x10, write="drop")
        with Tracer(machine, lambda e: seen.append(e.record)):
            machine.run(timeout=10)
    assert [r.native for r in seen] == [True, True, False]


def test_places_have_the_names_of_the_data_sheet() -> None:
    with Machine() as machine:
        assert describe_place(machine, "pio", 0x3F8, True) == "COM1 THR"
        assert describe_place(machine, "pio", 0x3F8, False) == "COM1 RBR"
        assert describe_place(machine, "pio", 0x3FA, False) == "COM1 IIR"
        machine.serial.write(3, 1, 0x80)
        assert describe_place(machine, "pio", 0x3F9, True) == "COM1 DLM"
        assert describe_place(machine, "pio", 0xF4, True) == "debug-exit"
        assert describe_place(machine, "pio", 0x70, True) == "unclaimed (CMOS)"
        assert describe_place(machine, "pio", 0x5000, True) == "unclaimed"
        assert describe_place(machine, "mmio", 0xD0000000, True) == "unclaimed"


def test_totals_agree_with_the_statistics() -> None:
    with Machine(irqchip="none") as machine:
        machine.load(CODE)
        result = machine.run(timeout=10)
        rows = exit_totals(machine)
        by_place = {row.place: row.count for row in rows if row.place}
        assert by_place == {"port 0x3f8 COM1": 1, "port 0x3fb COM1": 1, "port 0x10 unclaimed": 1}
        assert {row.reason: row.count for row in rows if not row.place} == result.exits
        text = totals_text(rows, result)
        assert text.splitlines()[0].startswith("halted after ")
        assert "… and 2 more places" in totals_text(rows, result, limit=3)
