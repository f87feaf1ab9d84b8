"""AFL++ from Debian drives targets of ours, unmodified; and what came of it is looked at."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import fuzz_targets
import pytest
from cli_command import pykvm
from debian_tools import need

from pykvm.fuzz import Outcome, Ring3
from pykvm.fuzz.afl.campaign import Campaign, crash_files
from pykvm.fuzz.afl.server import ForkServer
from pykvm.fuzz.triage import minimise, triage

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.shmat.restype = ctypes.c_void_p

SHALLOW = """
#include "pykvm_fuzz.h"
int LLVMFuzzerTestOneInput(const uint8_t *d, size_t n)
{
    if (n > 1 && d[0] == 'h' && d[1] == 'a')
        for (;;) ;
    if (n > 2 && d[0] == 'c')
        return d[n];
    if (n > 7 && d[0] == 'w' && *(const uint32_t *)(d + 1) == 0x12345678)
        abort();
    return 0;
}
"""


@pytest.fixture(scope="module")
def shallow() -> pathlib.Path:
    return fuzz_targets.program("shallow", SHALLOW)


@pytest.fixture
def afl(monkeypatch: pytest.MonkeyPatch) -> None:
    need("afl-fuzz", package="afl++")
    for name, value in (
        ("AFL_SKIP_BIN_CHECK", "1"), ("AFL_ALLOW_TMP", "1"), ("AFL_NO_AFFINITY", "1"),
        ("AFL_MAP_SIZE", "65536"), ("PYTHONPATH", os.pathsep.join(filter(None, sys.path))),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)


def tool(name: str, *arguments: object, target: pathlib.Path, stdin: bytes = b"") -> str:
    command = [name, "-t", "20000", *map(str, arguments), "--"]
    command += [sys.executable, "-m", "pykvm", "fuzz", "serve"]
    done = subprocess.run([*command, str(target)], input=stdin, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")


def tuples(path: pathlib.Path) -> set[int]:
    return {int(line.split(":")[0]) for line in path.read_text().splitlines()}


# -- the protocol, without AFL++ -------------------------------------------------------------------


class Fuzzer:
    """The other side of a fork server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, shared: bool) -> None:
        self.segments = [LIBC.shmget(0, 1 << 16, 0o600), LIBC.shmget(0, 1 << 20, 0o600)]
        self.maps = []
        for number, size in zip(self.segments, (1 << 16, 1 << 20), strict=True):
            address = LIBC.shmat(number, None, 0)
            self.maps.append(memoryview((ctypes.c_char * size).from_address(address)).cast("B"))
        monkeypatch.setenv("__AFL_SHM_ID", str(self.segments[0]))
        if shared:
            monkeypatch.setenv("__AFL_SHM_FUZZ_ID", str(self.segments[1]))
        else:
            monkeypatch.delenv("__AFL_SHM_FUZZ_ID", raising=False)
        self.control, self.told = os.pipe()
        self.heard, self.status = os.pipe()
        self.data = b""

    def word(self) -> int:
        return int(struct.unpack("<I", os.read(self.heard, 4))[0])

    def say(self, word: int) -> None:
        os.write(self.told, struct.pack("<I", word))

    def run(self, data: bytes, *, kill: bool = False) -> int:
        self.data = data
        struct.pack_into("<I", self.maps[1], 0, len(data))
        self.maps[1][4 : 4 + len(data)] = data
        self.maps[0][:] = bytes(1 << 16)
        self.say(0)
        pid = self.word()
        if kill:
            time.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
        return self.word()

    def close(self) -> None:
        for fd in (self.control, self.heard, self.status):
            os.close(fd)
        for view, number in zip(self.maps, self.segments, strict=True):
            view.release()
            LIBC.shmctl(number, 0, None)


@pytest.mark.parametrize("shared", [False, True])
def test_the_protocol(shared: bool, shallow: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzzer = Fuzzer(monkeypatch, shared)
    found: list[object] = []

    def play() -> None:
        try:
            hello = fuzzer.word()
            assert hello & 0x8000_0001 == 0x8000_0001
            assert (hello >> 1 & 0x7FFFFF) + 1 == 1 << 16
            assert bool(hello & 0x0100_0000) == shared
            if shared:
                fuzzer.say(0x8000_0001 | 0x1000_0000 | 0x0100_0000)
                length = fuzzer.word()
                assert b"\x04\x78\x56\x34\x12" in os.read(fuzzer.heard, length)
            for data in (b"", b"cat", b"hat", b"w\x78\x56\x34\x12...", b"x"):
                status = fuzzer.run(data, kill=data == b"hat")
                found.append((data, status, any(fuzzer.maps[0])))
        except BaseException as error:
            found.append(error)
        finally:
            os.close(fuzzer.told)

    thread = threading.Thread(target=play)
    with Ring3(shallow, timeout=30) as target:
        server = ForkServer(
            target, lambda: fuzzer.data, words=[b"\x78\x56\x34\x12"],
            control=fuzzer.control, status=fuzzer.status,
        )  # fmt: skip
        thread.start()
        server.run()
        thread.join()
        server.close()
        assert target.difference() is None
    fuzzer.close()
    assert found == [
        (b"", 0, True), (b"cat", signal.SIGSEGV, True), (b"hat", signal.SIGKILL, True),
        (b"w\x78\x56\x34\x12...", signal.SIGABRT, True), (b"x", 0, True),
    ]  # fmt: skip
    assert server.counter.numbers.runs == 5


def test_nobody_to_serve(shallow: pathlib.Path) -> None:
    done = pykvm("fuzz", "serve", str(shallow))
    assert done.returncode == 125
    assert "this is not run by AFL++" in done.stderr


# -- AFL++ itself ----------------------------------------------------------------------------------


def wait_for(campaign: Campaign, crashes: int, hangs: int) -> None:
    """Until it has found so many."""
    while True:
        status = campaign.poll()
        assert status.alive
        if status.crashes >= crashes and status.hangs >= hangs:
            return
        time.sleep(0.3)


@pytest.fixture
def seeds(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "seeds"
    folder.mkdir()
    for name, data in (("one", b"hello"), ("two", b"cold"), ("three", b"w" * 9)):
        (folder / name).write_bytes(data.replace(b"he", b"hx").replace(b"co", b"x"))
    return folder


def reached(target: Ring3, inputs: list[bytes]) -> set[int]:
    """Edges of all of them."""
    found: set[int] = set()
    for data in inputs:
        target.execute(data)
        found |= set(target.coverage.edges())
    return found


@pytest.mark.usefixtures("afl")
def test_a_campaign_finds_goes_on_and_loses_nothing(
    shallow: pathlib.Path, seeds: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "out"
    with Campaign(shallow, output, seeds=seeds, jobs=2, timeout_ms=300) as campaign:
        campaign.start()
        wait_for(campaign, 3, 1)
        os.killpg(campaign._workers["worker1"].pid, signal.SIGKILL)
        campaign._workers["worker1"].wait()
        wait_for(campaign, 3, 1)  # it is there again
        for worker in campaign._workers.values():  # and now all at once
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        before = [p.read_bytes() for p in output.glob("*/queue/id*")]
        crashes = [p.read_bytes() for p in crash_files(output)]
        campaign._workers.clear()
    with Campaign(shallow, output, seeds=seeds, jobs=2, timeout_ms=300) as campaign:
        campaign.start()
        while not campaign.poll().executions:
            time.sleep(0.3)
    after = [p.read_bytes() for p in output.glob("*/queue/id*")]
    kept = [p.read_bytes() for p in crash_files(output)]
    assert set(crashes) <= set(kept)
    with Ring3(shallow) as target:
        # AFL++ makes inputs shorter in place, but what they reach is still reached.
        assert len(after) >= len(before)
        assert reached(target, before) <= reached(target, after)
        groups, harmless = triage(target, crash_files(output))
        assert harmless == []
        kinds = {group.crash.kind for group in groups}
        assert kinds <= {"#PF", "failed"}
        for data in kept:
            assert {target.execute(data).outcome for _ in range(100)} == {Outcome.CRASH}
        hangs = [p.read_bytes() for p in output.glob("*/hangs*/id*")]
        assert hangs
        assert all(data[:2] == b"ha" for data in hangs)


@pytest.mark.usefixtures("afl")
def test_the_tools_of_afl(
    shallow: pathlib.Path, seeds: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    tool("afl-showmap", "-o", tmp_path / "map", target=shallow, stdin=b"hello")
    with Ring3(shallow) as target:
        target.execute(b"hello")
        assert tuples(tmp_path / "map") == set(target.coverage.edges())
        everything = reached(target, [path.read_bytes() for path in seeds.iterdir()])
    tool("afl-showmap", "-C", "-i", seeds, "-o", tmp_path / "all", target=shallow)
    assert tuples(tmp_path / "all") == everything
    crash = tmp_path / "crash"
    crash.write_bytes(b"c" + b"abc" * 30)
    tool("afl-tmin", "-i", crash, "-o", tmp_path / "small", target=shallow)
    assert (tmp_path / "small").read_bytes() == b"c00"
    tool("afl-cmin", "-i", seeds, "-o", tmp_path / "cmin", target=shallow)
    kept = list((tmp_path / "cmin").iterdir())
    assert 1 <= len(kept) <= 3


# -- looking at it ---------------------------------------------------------------------------------


@pytest.fixture
def crashes(tmp_path: pathlib.Path) -> list[str]:
    folder = tmp_path / "out" / "main" / "crashes"
    folder.mkdir(parents=True)
    for index, data in enumerate([b"cat", b"w\x78\x56\x34\x12 or more", b"cccccccccccc", b"fine"]):
        (folder / f"id:{index}").write_bytes(data)
    return [str(path) for path in sorted(folder.iterdir())]


def test_triage(shallow: pathlib.Path, crashes: list[str], tmp_path: pathlib.Path) -> None:
    done = pykvm("fuzz", "triage", str(shallow), str(tmp_path / "out"), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["harmless"] == [crashes[3]]
    first, second = report["bugs"]
    assert first["kind"] == "#PF"
    assert first["inputs"] == [crashes[0], crashes[2]]
    assert first["where"].startswith("LLVMFuzzerTestOneInput+")
    assert first["listing"][-1].startswith(f"-> {first['rip']:#x}  movzx")
    assert second["message"] == "abort()"
    assert second["instruction"].startswith("call")
    told = pykvm("fuzz", "triage", str(shallow), str(tmp_path / "out")).stdout
    assert "1. #PF reading" in told
    assert f"pykvm fuzz replay {shallow} {crashes[0]}" in told
    assert "does not crash" in told


def test_replay(shallow: pathlib.Path, crashes: list[str], tmp_path: pathlib.Path) -> None:
    done = pykvm("fuzz", "replay", str(shallow), crashes[1], "--times", "3")
    assert done.returncode == 126
    assert done.stdout.count("failed: abort() at") == 3
    assert pykvm("fuzz", "replay", str(shallow), crashes[3]).returncode == 0
    done = pykvm("fuzz", "replay", str(shallow), *crashes, "--json")
    assert [row["outcome"] for row in json.loads(done.stdout)] == ["crash"] * 3 + ["ok"]
    missing = pykvm("fuzz", "replay", str(shallow), str(tmp_path / "none"))
    assert (missing.returncode, "No such file" in missing.stderr) == (125, True)


def test_smaller_inputs(shallow: pathlib.Path, crashes: list[str], tmp_path: pathlib.Path) -> None:
    with Ring3(shallow, timeout=0.2) as target:
        assert minimise(target, b"c" + b"abc" * 30) == b"c\0\0"
        assert minimise(target, b"haaaa") == b"ha"
        assert minimise(target, b"w\x78\x56\x34\x12 or more") == b"w\x78\x56\x34\x12\0\0\0"
        assert minimise(target, b"fine") == b"fine"
    small = tmp_path / "small"
    done = pykvm("fuzz", "min", str(shallow), crashes[2], "-o", str(small))
    assert done.stdout.startswith("12 -> 3 bytes: #PF reading")
    assert small.read_bytes() == b"c\0\0"
    done = pykvm("fuzz", "min", str(shallow), crashes[3], "-o", str(small))
    assert (done.returncode, "neither crashes nor hangs" in done.stderr) == (125, True)


@pytest.mark.usefixtures("afl")
def test_the_command(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "shallow.c"
    source.write_text(SHALLOW)
    done = pykvm("fuzz", str(source), "-o", str(tmp_path / "out"), "--time", "3", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["executions"] > 100
    assert report["edges"] > 0
    assert report["pages"] > 0
    assert next(json.loads(line)["alive"] for line in done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("afl")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nobody_is_left_when_the_command_is_ended(
    shallow: pathlib.Path, tmp_path: pathlib.Path, number: int
) -> None:
    command = [sys.executable, "-m", "pykvm", "fuzz", str(shallow), "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "out" / "main" / "fuzzer_stats").exists():
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait() == (128 + number if number == signal.SIGTERM else -number)
    mark = str(tmp_path / "out").encode()
    while any(mark in line for line in command_lines()):
        time.sleep(0.1)


def command_lines() -> Iterator[bytes]:
    """Of all processes."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_bytes()


def test_the_command_without_a_target() -> None:
    assert pykvm("fuzz", "none.elf").returncode == 125
    assert pykvm("fuzz", "--help").returncode == 0
