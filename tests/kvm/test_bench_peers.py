"""The C peers of the benchmarks: a yardstick that is wrong measures nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import images, toolchain
from benchmarks.harness.programs import per_exit, run_json

pytestmark = pytest.mark.kvm

HELLO_ANY = b"Hello from one ELF64 guest in every VMM.\n"


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    toolchain.build_all()


def peer(name: str, *arguments: str) -> dict[str, float]:
    return run_json([toolchain.built(name), *arguments])


@pytest.mark.parametrize("kind", images.MODES)
def test_the_loop_sees_every_exit_once(kind: str) -> None:
    answer = peer("exit_loop", images.MODES[kind], toolchain.loop_file(kind, 100))
    assert per_exit(answer, 100)["ns"] > 0


def test_without_the_kernel_the_first_exit_is_repeated() -> None:
    stub = {"LD_PRELOAD": toolchain.built("stub_run.so"), "STUB_EXITS": "5000"}
    loop = [toolchain.built("exit_loop"), "real", toolchain.loop_file("pio-out", 32)]
    assert run_json(loop, env=stub)["exits"] == 5000


def test_entries_steps_and_creations_are_counted() -> None:
    assert peer("immediate_exit", "50")["exits"] == 50
    assert peer("create", "3")["count"] == 3
    steps = peer("single_step", "64")
    # 62 nops and the jump: the program counters after each, then one more nop of the next turn
    assert steps["sum"] == sum(range(0x1001, 0x103F)) + 0x1000 + 0x1001


@pytest.mark.parametrize("options", [[], ["-i"]])
def test_the_plain_vmm_runs_the_guest_to_its_exit_code(tmp_path: Path, options: list[str]) -> None:
    said = tmp_path / "out"
    command = [toolchain.built("cvmm"), *options, "-m", "8", toolchain.built("hello_any.elf")]
    answer = run_json([toolchain.built("measure"), "-m", "-o", str(said), "--", *command])
    assert said.read_bytes() == HELLO_ANY
    assert answer["status"] == 1
    assert 0 < answer["first_ns"] <= answer["end_ns"]
    assert answer["private"] > 0


def test_the_plain_vmm_refuses_what_is_not_an_elf64(tmp_path: Path) -> None:
    image = tmp_path / "junk"
    image.write_bytes(b"\x7fELF" + bytes(100))
    answer = run_json([toolchain.built("measure"), "--", toolchain.built("cvmm"), str(image)])
    assert answer["status"] == 125
