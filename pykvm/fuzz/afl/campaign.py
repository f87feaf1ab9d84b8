"""A campaign: `afl-fuzz` on one or more cores, on one output directory, with a target of ours.

Mutation, scheduling, corpus and crashes are AFL++'s; its output directory is as it always is, so
that its other tools work on it. What was begun goes on where it was.
"""

from __future__ import annotations

import glob
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from pykvm.children import die_with_parent
from pykvm.fuzz.afl import numbers
from pykvm.fuzz.errors import FuzzError
from pykvm.typed import Self

_MOST_RESTARTS = 5
_SETTINGS = {
    "AFL_SKIP_BIN_CHECK": "1",  # the program that it starts is Python
    "AFL_NO_UI": "1",
    "AFL_AUTORESUME": "1",
    "AFL_SKIP_CPUFREQ": "1",
    "AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES": "1",  # no core is dumped here
    "AFL_FORKSRV_INIT_TMOUT": "60000",
    "AFL_MAP_SIZE": "65536",
}


@dataclass(frozen=True)
class Status:
    """A campaign's numbers, of all its workers together.

    `executions` since this start, `per_second` now; `corpus`, `crashes` and `hangs` are files
    (workers copy each other's corpus: it is the largest); `edges` of the coverage map and
    `stability` in percent, of the worst worker, as AFL++ says them once a minute; `pages` that a
    run wrote and `reset_us` that putting them back took, on average; `alive`: workers that run.
    """

    executions: int = 0
    per_second: float = 0.0
    corpus: int = 0
    crashes: int = 0
    hangs: int = 0
    edges: int = 0
    stability: float = 100.0
    pages: float = 0.0
    reset_us: float = 0.0
    alive: int = 0


class Campaign:
    """Workers of `afl-fuzz`, the first as main (`-M`), the others as secondaries (`-S`).

    - `target`: the ELF file. `output`: AFL++'s output directory, made or gone on with.
    - `seeds`: a directory of inputs; unless given one harmless input.
    - `jobs`: workers. `seconds`: when they end by themselves.
    - `dictionary`: a file of AFL++'s form. `timeout_ms`: for one run; else AFL++ measures.
    - `extra`: more arguments for afl-fuzz.

    Raises `FuzzError` where AFL++ is missing or a worker does not start.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        output: str | os.PathLike[str],
        *,
        seeds: str | os.PathLike[str] | None = None,
        jobs: int = 1,
        seconds: int | None = None,
        dictionary: str | os.PathLike[str] | None = None,
        timeout_ms: int | None = None,
        extra: Sequence[str] = (),
    ) -> None:
        program = shutil.which("afl-fuzz")
        if program is None:
            raise FuzzError("there is no afl-fuzz; install it with: apt-get install afl++")
        self._program = program
        self.output = pathlib.Path(output)
        self.target = pathlib.Path(target)
        self.jobs = jobs
        self._arguments: list[str] = []
        if seconds is not None:
            self._arguments += ["-V", str(seconds)]
        if dictionary is not None:
            self._arguments += ["-x", os.fspath(dictionary)]
        if timeout_ms is not None:
            self._arguments += ["-t", str(timeout_ms)]
        self._arguments += extra
        self._seeds = self._find_seeds(seeds)
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._restarts = 0
        self._ended: list[numbers.Numbers] = []  # of workers that were killed
        self._before: dict[str, numbers.Numbers] = {}
        self._speeds: dict[str, float] = {}

    def _find_seeds(self, seeds: str | os.PathLike[str] | None) -> pathlib.Path:
        self.output.mkdir(parents=True, exist_ok=True)
        if seeds is not None:
            path = pathlib.Path(seeds)
            if not path.is_dir() or not any(path.iterdir()):
                raise FuzzError(f"{path} is no directory with inputs in it; put one there")
            return path
        path = self.output / "seeds"
        path.mkdir(exist_ok=True)
        if not any(path.iterdir()):
            (path / "seed").write_bytes(b"seed")
        return path

    @property
    def names(self) -> list[str]:
        """Of the workers, which are the names of their directories."""
        return ["main", *(f"worker{number}" for number in range(1, self.jobs))]

    def start(self) -> None:
        """Starts the workers."""
        for name in self.names:
            self._launch(name)

    def _launch(self, name: str) -> None:
        role = ["-M" if name == "main" else "-S", name]
        command = [
            self._program, "-i", str(self._seeds), "-o", str(self.output), *role,
            *self._arguments, "--", sys.executable, "-m", "pykvm", "fuzz", "serve",
            str(self.target),
        ]  # fmt: skip
        counted = self.output / f"{name}.numbers"
        counted.unlink(missing_ok=True)
        # Both places of a source tree that is not installed.
        path = os.pathsep.join(filter(None, sys.path))
        environment = {**_SETTINGS, **os.environ, "PYTHONPATH": path}
        environment[numbers.VARIABLE] = str(counted.resolve())
        with open(self.output / f"{name}.log", "ab") as log:
            self._workers[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True, preexec_fn=die_with_parent(signal.SIGTERM),
            )  # fmt: skip

    def poll(self) -> Status:
        """The numbers now. Raises `FuzzError` where a worker failed."""
        alive = 0
        for name, worker in self._workers.items():
            code = worker.poll()
            alive += code is None
            if code is not None and code not in (0, -signal.SIGINT, -signal.SIGTERM):
                if code > 0 or self._restarts >= _MOST_RESTARTS:
                    raise FuzzError(f"afl-fuzz ({name}) failed: {self._said(name)}")
                self._restarts += 1  # somebody killed it: it goes on where it was
                self._ended.append(self._counted(name))
                self._launch(name)
                alive += 1
        counted = self._ended + [self._speedy(name) for name in self._workers]
        runs = sum(n.runs for n in counted)
        stats = [self._read(name) for name in self.names]
        return Status(
            executions=runs,
            per_second=sum(self._speeds.values()) if alive else 0.0,
            corpus=max(len(self._files(name, "queue")) for name in self.names),
            crashes=len(self.crashes()),
            hangs=sum(len(self._files(name, "hangs*")) for name in self.names),
            edges=max(_whole(s, "edges_found") for s in stats),
            stability=min((_real(s, "stability") for s in stats if s), default=100.0),
            pages=sum(n.pages for n in counted) / runs if runs else 0.0,
            reset_us=sum(n.reset_ns for n in counted) / runs / 1000 if runs else 0.0,
            alive=alive,
        )

    def _counted(self, name: str) -> numbers.Numbers:
        return numbers.read(self.output / f"{name}.numbers")

    def _speedy(self, name: str) -> numbers.Numbers:
        """A worker's numbers; and its speed between the last two that it wrote."""
        now, before = self._counted(name), self._before.get(name, numbers.Numbers())
        if now.seconds < before.seconds:
            before = numbers.Numbers()  # it was started again
        if now.seconds > before.seconds:
            self._speeds[name] = (now.runs - before.runs) / (now.seconds - before.seconds)
        self._before[name] = now
        return now

    def _files(self, name: str, kind: str) -> list[pathlib.Path]:
        return _found(self.output / name, f"{kind}/id*")

    def _read(self, name: str) -> dict[str, str]:
        """AFL++'s own numbers, which it writes once a minute and at the end."""
        try:
            text = (self.output / name / "fuzzer_stats").read_text()
        except OSError:
            return {}
        pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
        return {key.strip(): value.strip() for key, value in pairs}

    def _said(self, name: str) -> str:
        """The last words of a worker, without colours."""
        import re

        text = (self.output / f"{name}.log").read_text(errors="replace")
        lines = re.sub(
            r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Za-z0-9])|[\x0e\x0f]", "", text
        ).splitlines()
        wrong = [line for line in lines if "PROGRAM ABORT" in line or "[-]" in line]
        return " ".join((wrong or lines or ["it said nothing"])[-1].split())

    def stop(self) -> None:
        """Asks the workers to end, and waits; nothing that they found is lost."""
        for worker in self._workers.values():
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT)
        end = time.monotonic() + 20
        for worker in self._workers.values():
            try:
                worker.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()

    def crashes(self) -> list[pathlib.Path]:
        """The inputs that crashed, of all workers."""
        return crash_files(self.output)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def crash_files(output: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The inputs below an output directory that crashed, oldest names first."""
    return sorted(_found(output, "*/crashes*/id*"))


def _found(folder: str | os.PathLike[str], pattern: str) -> list[pathlib.Path]:
    # Not pathlib's: afl-fuzz renames and removes directories meanwhile, which glob's passes over.
    return [pathlib.Path(folder, name) for name in glob.glob(pattern, root_dir=folder)]


def _whole(stats: dict[str, str], key: str) -> int:
    text = stats.get(key, "0")
    return int(text) if text.isdigit() else 0


def _real(stats: dict[str, str], key: str) -> float:
    try:
        return float(stats.get(key, "0").rstrip("%"))
    except ValueError:
        return 0.0
