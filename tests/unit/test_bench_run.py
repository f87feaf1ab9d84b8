"""Benchmark rounds, report and command line, without measuring anything."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import run
from benchmarks.harness import images, qemu, report, rounds
from benchmarks.harness.host import cpu_facts
from benchmarks.harness.model import BenchError, Case, CaseResult, Comparison, Goal, Sample, Side
from benchmarks.harness.programs import per_exit, run_json


class Counting:
    """A side that notes when it was measured."""

    def __init__(self, name: str, log: list[str], *, fail_after: int | None = None) -> None:
        self.name, self.log, self.fail_after = name, log, fail_after

    def __call__(self) -> Sample:
        if self.fail_after is not None and self.log.count(self.name) >= self.fail_after:
            raise BenchError(f"{self.name} broke")
        self.log.append(self.name)
        return {"ns": float(len(self.log))}


def case_of(*sides: Counting, comparisons: tuple[Comparison, ...] = (), **more: bool) -> Case:
    both = tuple(Side(side.name, side) for side in sides)
    return Case("case", "A case", "What was compared.", both, comparisons, **more)


def test_sides_take_turns_and_the_first_round_is_thrown_away() -> None:
    log: list[str] = []
    result = rounds.run_case(case_of(Counting("a", log), Counting("b", log)), 2)
    assert log == ["a", "b"] * 3
    assert result.samples == {"a": [{"ns": 3}, {"ns": 5}], "b": [{"ns": 4}, {"ns": 6}]}


def test_a_case_may_do_without_the_warm_up() -> None:
    log: list[str] = []
    result = rounds.run_case(case_of(Counting("a", log), warm_up=False), 1)
    assert result.samples == {"a": [{"ns": 1}]}


def test_a_side_that_breaks_does_not_stop_the_others() -> None:
    log: list[str] = []
    sides = Counting("a", log, fail_after=1), Counting("b", log)
    result = rounds.run_case(case_of(*sides), 3)
    assert result.failures == {"a": "a broke"}
    assert len(result.samples["b"]) == 3


def measured() -> CaseResult:
    goals = (Goal(">=", 0.97),)
    comparisons = (
        Comparison("rate | raw", "rate", "per_second", "ours", "peer", "ratio", goals),
        Comparison("added", "ns", "ns", "ours", "peer", "added", (Goal("<=", 1200.0),)),
        Comparison("alone", "ns", "ns", "ours", None, "value", (Goal("<=", 150e6),)),
        Comparison("absent", "ns", "ns", "ours", "missing", "ratio", goals),
    )
    case = case_of(comparisons=comparisons)
    result = CaseResult(case, failures={"missing": "missing is not installed: apt-get install it"})
    result.samples["ours"] = [{"rate": 90e3, "ns": 11_111.0}] * 3
    result.samples["peer"] = [{"rate": 100e3, "ns": 10_000.0}] * 3
    return result


def test_cells_show_medians_goal_and_verdict() -> None:
    ratio, added, alone, absent = [report.cells(row) for row in report.rows(measured())]
    assert ratio[1:] == ("90 k/s ± 0 /s", "100 k/s ± 0 /s", "peer", "0.9× ± 0", "≥ 0.97×", "no")
    assert added[4:] == ("+1.11 µs ± 0 ns", "≤ +1.2 µs", "yes")
    assert alone[1:] == ("11.1 µs ± 0 ns", "", "", "", "≤ 150 ms", "yes")
    assert "apt-get install" in absent[4]
    assert absent[6] == ""


def test_a_goal_inside_the_spread_is_said_to_be() -> None:
    result = measured()
    result.samples["ours"] = [{"rate": rate, "ns": 1.0} for rate in (90e3, 98e3, 99e3)]
    assert report.cells(report.rows(result)[0])[6] == "yes, within the spread"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (999.0, "ns", "999 ns"),
        (50_400_000.0, "ns", "50.4 ms"),
        (2.8e9, "ns", "2.8 s"),
        (-1500.0, "ns", "-1.5 µs"),
        (40 * 2**20, "bytes", "40.0 MiB"),
        (48 * 2**10, "bytes", "48 KiB"),
        (123456, "per_second", "123 k/s"),
        (5123.4, "count", "5,123"),
    ],
)
def test_amounts_are_readable(value: float, unit: str, text: str) -> None:
    assert report.amount(value, unit) == text  # type: ignore[arg-type]


def test_the_results_hold_every_sample_and_say_what_fell_short(tmp_path: Path) -> None:
    facts = {"date": "2026-11-23T10:00:00+00:00", "host": "bench", "cpu": "Some CPU"}
    data, page = report.write(tmp_path, facts, [measured()])
    assert (data.name, page.name) == ("2026-11-23-bench.json", "2026-11-23-bench.md")
    loaded = json.loads(data.read_text())
    assert loaded["facts"] == facts
    assert loaded["cases"][0]["samples"]["ours"][2] == {"rate": 90e3, "ns": 11_111.0}
    assert [row["goal_met"] for row in loaded["cases"][0]["comparisons"]] == [
        False,
        True,
        True,
        None,
    ]
    text = page.read_text()
    assert "- cpu: Some CPU" in text
    assert "rate \\| raw" in text
    short = text.split("## Goals not met in this run")[1]
    assert "rate | raw" in short
    assert "added" not in short
    assert "busy" not in text
    busy = report.markdown({**facts, "load": "3.10 2.00 1.00"}, [measured()])
    assert "**The host was busy" in busy


def test_a_table_is_printed_for_each_case(capsys: pytest.CaptureFixture[str]) -> None:
    report.print_case(measured())
    printed = capsys.readouterr().out
    assert "What was compared." in printed
    assert "0.9×" in printed


def test_an_exit_count_that_is_off_is_an_error_not_a_result() -> None:
    assert per_exit({"exits": 4, "ns": 4000}, 4) == {"ns": 1000.0, "rate": 1e6}
    with pytest.raises(BenchError, match="3 exits were counted, the guest makes 4"):
        per_exit({"exits": 3, "ns": 4000}, 4)


def test_a_side_that_dies_says_its_last_words() -> None:
    with pytest.raises(BenchError, match="went wrong"):
        run_json([sys.executable, "-c", "raise SystemExit('it went wrong')"])
    with pytest.raises(BenchError, match="printed no JSON"):
        run_json([sys.executable, "-c", "print('hello')"])
    with pytest.raises(BenchError, match="is not there"):
        run_json(["/nonexistent/program"])


def test_qemu_missing_is_said_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert "apt-get install qemu-system-x86" in qemu.missing()
    assert qemu.version() == "not installed"
    with pytest.raises(BenchError, match="qemu-system-x86_64 is not installed"):
        qemu.command("microvm", "kernel", memfd=False)


def test_qemu_gets_its_ram_as_a_memfd_where_memory_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    timed = qemu.command("microvm", "kernel", memfd=False)
    sampled = qemu.command("microvm", "kernel", memfd=True)
    assert "memfd" not in " ".join(timed)
    assert "memory-backend-memfd,id=ram,size=64M" in sampled
    assert "microvm,memory-backend=ram" in sampled


def test_loop_images_carry_their_parameters(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("pio-loop", "mmio-loop"):
        (tmp_path / f"{name}.bin").write_bytes(bytes(64))
    monkeypatch.setattr(images, "IMAGES", tmp_path)
    assert struct.unpack_from("<IHH", images.loop_image("pio-in", 77), 4) == (77, 0x10, 1)
    assert struct.unpack_from("<III", images.loop_image("mmio-write", 5), 4) == (5, 0xD0000000, 0)
    with pytest.raises(BenchError, match="no guest loop is called nonsense"):
        images.loop_image("nonsense", 1)
    with pytest.raises(BenchError, match=r"run python guests/build\.py"):
        images.guest_image("absent")


def test_cpu_facts_tell_hardware_from_software_kvm() -> None:
    text = "model name\t: Some CPU\nflags\t\t: fpu hypervisor svm\n\nmodel name\t: Other\n"
    facts = cpu_facts(text)
    assert facts == {"cpu": "Some CPU", "virtualisation": "svm", "in_a_vm": "yes"}
    assert "neither" in cpu_facts("model name: X\nflags: fpu\n")["virtualisation"]


def test_the_cases_can_be_listed_with_nothing_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images, "IMAGES", tmp_path)
    assert run.main(["--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"pio-out", "mmio-read", "immediate-exit", "create", "single-step", "hello64"} <= set(
        names
    )


def test_an_unknown_case_and_no_rounds_are_usage_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.harness.toolchain.build_all", lambda: None)
    monkeypatch.setattr("benchmarks.harness.host.facts", dict)
    assert run.main(["--case", "nonsense"]) == 125
    assert "no case is called nonsense" in capsys.readouterr().err
    for words in (["--rounds", "0"], ["--nonsense"]):
        with pytest.raises(SystemExit) as ended:
            run.main(words)
        assert ended.value.code == 125
