"""What a campaign is made of, without KVM and without AFL++."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import signal
from collections.abc import Iterator
from dataclasses import asdict

import fuzz_targets
import pytest

from pykvm.fuzz import Crash, FuzzError, Outcome, Program, Result
from pykvm.fuzz.afl import numbers
from pykvm.fuzz.afl.campaign import Campaign, crash_files
from pykvm.fuzz.afl.server import Decoy, wait_status
from pykvm.fuzz.afl.sharedmemory import SharedMemory
from pykvm.fuzz.dictionary import words
from pykvm.fuzz.targets import find_target

LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def segment() -> Iterator[int]:
    number = LIBC.shmget(0, 8192, 0o600)
    assert number >= 0
    yield number
    LIBC.shmctl(number, 0, None)


@pytest.mark.parametrize(
    ("kind", "number"),
    [("#PF", signal.SIGSEGV), ("#GP", signal.SIGSEGV), ("#UD", signal.SIGILL),
     ("#DE", signal.SIGFPE), ("failed", signal.SIGABRT), ("#AC", signal.SIGBUS)],
)  # fmt: skip
def test_results_as_a_process_would_end(kind: str, number: int) -> None:
    assert wait_status(Result(Outcome.CRASH, Crash(kind, 0x1000))) == number
    assert os.WIFSIGNALED(number)


def test_the_other_results() -> None:
    assert wait_status(Result(Outcome.OK)) == 0
    assert wait_status(Result(Outcome.HANG)) == signal.SIGKILL


def test_a_decoy_that_is_killed_says_so_and_is_replaced() -> None:
    decoy = Decoy()
    first = decoy.pid
    assert not decoy.dead()
    os.kill(first, signal.SIGKILL)
    assert decoy.dead(5)
    decoy.start()
    assert decoy.pid != first
    assert not decoy.dead()
    decoy.close()
    decoy.close()
    with pytest.raises(ProcessLookupError):
        os.kill(decoy.pid, 0)


def test_shared_memory(segment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", str(segment))
    one, two = SharedMemory("HERE", 8192), SharedMemory("HERE", 1)
    one.view[:3] = b"abc"
    assert bytes(two.view[:3]) == b"abc"
    assert len(two.view) == 8192
    one.close()
    one.close()
    two.close()
    with pytest.raises(FuzzError, match="AFL_MAP_SIZE=8193"):
        SharedMemory("HERE", 8193)


@pytest.mark.parametrize("text", ["", "x", "-1", "99999999"])
def test_shared_memory_that_is_not_there(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", text)
    with pytest.raises(FuzzError, match="HERE"):
        SharedMemory("HERE", 1)


def test_words_of_a_program() -> None:
    found = words(Program(fuzz_targets.parser()))
    assert b"!MVK" in found
    assert all(2 <= len(word) <= 8 for word in found)
    assert not [w for w in found if len(w) == 8 and int.from_bytes(w, "little") >> 40 == 0x7E]


def test_numbers_go_through_their_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "numbers"
    counter = numbers.Counter(str(path))
    counter.add(Result(Outcome.OK, pages=3, run_ns=10, reset_ns=20))
    counter.add(Result(Outcome.OK, pages=4, run_ns=10, reset_ns=20))
    counter.write()
    read = numbers.read(path)
    assert (read.runs, read.pages, read.run_ns, read.reset_ns) == (2, 7, 20, 40)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"alien": 1}'])
def test_numbers_that_are_none(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "n").write_text(text)
    assert numbers.read(tmp_path / "n") == numbers.Numbers()


def test_a_counter_whose_directory_goes_away(tmp_path: pathlib.Path) -> None:
    counter = numbers.Counter(str(tmp_path / "gone" / "n"))
    counter.write()
    counter.add(Result(Outcome.OK))
    assert counter.numbers.runs == 1


def test_targets_are_built_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "t.c"
    source.write_text(
        "#include <stdint.h>\n#include <stddef.h>\n"
        "int LLVMFuzzerTestOneInput(const uint8_t *d, size_t n) { (void)d, (void)n; return 0; }\n"
    )
    made = find_target(source)
    stamp = made.stat().st_mtime_ns
    assert find_target(str(source)) == made
    assert made.stat().st_mtime_ns == stamp
    assert find_target(made) == made
    (tmp_path / "more.h").write_text("")
    source.write_text(source.read_text() + '#include "more.h"\n')
    other = find_target(source)
    assert find_target(source) == other
    (tmp_path / "more.h").write_text("int more;\n")
    assert find_target(source) not in (made, other)


def test_targets_that_are_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FuzzError, match="no such file"):
        find_target(tmp_path / "t.elf")
    with pytest.raises(FuzzError, match="No such file"):
        find_target(tmp_path / "t.c")
    (tmp_path / "bad.c").write_text("int main(")
    with pytest.raises(FuzzError, match="the compiler failed"):
        find_target(tmp_path / "bad.c")


def fake(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An afl-fuzz of our own."""
    program = folder / "bin" / "afl-fuzz"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + script)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_a_campaign_says_what_is_missing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, "exit 0")
    (tmp_path / "empty").mkdir()
    for seeds in ("empty", "none"):
        with pytest.raises(FuzzError, match="no directory with inputs"):
            Campaign("t", tmp_path / "out", seeds=tmp_path / seeds)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FuzzError, match="apt-get install afl"):
        Campaign("t", tmp_path / "out")


def test_a_worker_that_fails_is_quoted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, "printf '\\033[1;91m\\n[-]  PROGRAM ABORT : no   good\\n'; exit 1")
    with Campaign("t", tmp_path / "out") as campaign:
        campaign.start()
        campaign._workers["main"].wait()
        with pytest.raises(FuzzError, match=r"afl-fuzz \(main\) failed: .*PROGRAM ABORT : no good"):
            campaign.poll()


def test_a_worker_that_is_killed_is_started_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, 'echo "$@" >> calls; exec sleep 100')
    monkeypatch.chdir(tmp_path)
    with Campaign("t.elf", "out", jobs=2, seconds=9, timeout_ms=7, extra=["-z"]) as campaign:
        campaign.start()
        assert campaign.poll().alive == 2
        first = campaign._workers["worker1"]
        first.kill()
        first.wait()
        assert campaign.poll().alive == 2
        assert campaign._workers["worker1"] is not first
    assert campaign.poll().alive == 0
    (tmp_path / "calls").touch()
    for line in (tmp_path / "calls").read_text().splitlines():
        assert line.startswith("-i out/seeds -o out -")
        assert line.endswith("-m pykvm fuzz serve t.elf")
        assert " -V 9 -t 7 -z -- " in line


def test_the_numbers_of_a_campaign(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, "exec sleep 100")
    out = tmp_path / "out"
    with Campaign("t", out, jobs=2) as campaign:
        campaign.start()
        for name, runs in (("main", 10), ("worker1", 30)):
            for kind, count in (("queue", runs), ("crashes", 2), ("crashes.old", 1), ("hangs", 1)):
                (out / name / kind).mkdir(parents=True)
                for index in range(count):
                    (out / name / kind / f"id:{index:06}").write_bytes(b"x")
            (out / name / "crashes" / "README.txt").touch()
            counted = numbers.Numbers(runs, 2 * runs, 1, 3000 * runs, seconds=2.0)
            (out / f"{name}.numbers").write_text(json.dumps(asdict(counted)))
            (out / name / "fuzzer_stats").write_text(
                f"edges_found       : {runs}\nstability         : {100 - runs}.5%\nnonsense\n"
            )
        status = campaign.poll()
    assert status.executions == 40
    assert status.per_second == 20
    assert (status.corpus, status.crashes, status.hangs) == (30, 6, 2)
    assert (status.edges, status.stability) == (30, 70.5)
    assert (status.pages, status.reset_us) == (2.0, 3.0)
    assert len(crash_files(out)) == 6
