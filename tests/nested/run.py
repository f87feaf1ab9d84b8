"""Runs tests in the nested tier: `python tests/nested/run.py [pytest's options and paths]`.

pytest collects and reports here, as ever; the tests themselves run inside VMs (`machine.py`) with a
hardware KVM's semantics, one test file after another, and each report crosses over as it happens.
A VM that shows no sign of life, or whose test takes far too long, is replaced and its remaining
tests go on in a new one; a test that was running when its VM was lost three times has failed. The
same software CPU sometimes loses only its guest's timer, which looks like a hanging kernel: a boot
that failed is tried once more in a new VM, and what failed first is printed.

    --vms N        so many at once (default 2), a software CPU each
    --vm-cpus N    CPUs of each (default 1)
"""

from __future__ import annotations

import collections
import contextlib
import json
import pathlib
import selectors
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(ROOT / "guests")]

import pytest  # noqa: E402
from linux.packages import BuildError  # noqa: E402
from nested.machine import Machine  # noqa: E402

# Seconds: to the agent's first word; between two signs of life; for one test.
START_LIMIT = 240
BEAT_LIMIT = 200
TEST_LIMIT = 600
LOSSES = 3


class Group(list[str]):
    """Node ids of one test file."""

    @property
    def file(self) -> str:
        return self[0].partition("::")[0]


class Worker:
    """One VM and what it is doing."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.group = Group()
        self.current = ""
        self.reports: list[pytest.TestReport] = []
        self.rest = b""
        self.ready = False
        self.beat = self.since = time.monotonic()

    def trouble(self) -> str:
        """Why this VM must be given up, or ""."""
        now = time.monotonic()
        if not self.machine.alive:
            return "the nested machine ended"
        if not self.ready:
            late = now - self.since > START_LIMIT
            return f"the nested machine did not start in {START_LIMIT} s" if late else ""
        if now - self.beat > BEAT_LIMIT:
            return f"the nested machine hung (no sign of life for {BEAT_LIMIT} s)"
        if self.group and now - self.since > TEST_LIMIT:
            return f"not finished after {TEST_LIMIT} s"
        return ""

    def lines(self) -> list[Any]:
        """Messages that have arrived."""
        try:
            data = self.machine.agent.recv(1 << 20)
        except OSError:
            return []
        *whole, self.rest = (self.rest + data).split(b"\n")
        return [json.loads(line) for line in whole]


class Nested:
    """The pytest plugin that replaces the loop over the tests."""

    def __init__(self) -> None:
        self._items: dict[str, pytest.Item] = {}
        self._queue: collections.deque[Group] = collections.deque()
        self._workers: list[Worker] = []
        self._losses: collections.Counter[str] = collections.Counter()
        self._starts_failed = 0
        self._restarts = 0
        self._again: set[str] = set()
        self._selector = selectors.DefaultSelector()

    @staticmethod
    def pytest_addoption(parser: pytest.Parser) -> None:
        parser.addoption("--vms", type=int, default=2, help="nested machines at once")
        parser.addoption("--vm-cpus", type=int, default=1, help="CPUs of a nested machine")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("errors during collection")
        if session.config.option.collectonly:
            return True
        self._items = {item.nodeid: item for item in session.items}
        groups: dict[str, Group] = {}
        for name, item in self._items.items():
            # A boot is long: each for itself, so that the VMs share them.
            alone = item.get_closest_marker("boot") is not None
            groups.setdefault(name if alone else name.partition("::")[0], Group()).append(name)
        # The long ones first, so that all VMs end at about the same time.
        self._queue.extend(sorted(groups.values(), key=self._weight, reverse=True))
        try:
            while self._queue or self._workers:
                self._start_missing(session.config)
                self._wait(session)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
        finally:
            for worker in self._workers[:]:
                self._drop(worker)
        return True

    def _weight(self, group: Group) -> int:
        boots = self._items[group[0]].get_closest_marker("boot") is not None
        return len(group) + 1000 * boots

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._restarts:
            terminalreporter.write_line(f"nested machines replaced: {self._restarts}")
        if self._again:
            terminalreporter.write_line(f"boots tried again: {', '.join(sorted(self._again))}")

    def _start_missing(self, config: pytest.Config) -> None:
        busy = sum(1 for worker in self._workers if worker.group)
        wanted = min(config.option.vms, busy + len(self._queue))
        while len(self._workers) < wanted:
            agent = [sys.executable, str(HERE / "agent.py")]
            worker = Worker(Machine(agent, cpus=config.option.vm_cpus))
            self._workers.append(worker)
            self._selector.register(worker.machine.agent, selectors.EVENT_READ, worker)
            self._selector.register(worker.machine.beat, selectors.EVENT_READ, worker)

    def _wait(self, session: pytest.Session) -> None:
        for key, _ in self._selector.select(1.0):
            worker: Worker = key.data
            if key.fileobj is worker.machine.beat:
                if worker.machine.beat.recv(4096):
                    worker.beat = time.monotonic()
            else:
                for message in worker.lines():
                    if worker in self._workers:  # not given up in the meantime
                        self._message(session, worker, message)
        for worker in self._workers[:]:
            if reason := worker.trouble():
                self._lost(session, worker, reason)

    def _message(self, session: pytest.Session, worker: Worker, message: Any) -> None:
        worker.since = worker.beat = time.monotonic()
        if "ready" in message:
            # What was ordered and not run is unknown inside.
            for name in worker.group:
                self._failed(session, name, "not found by pytest inside the nested machine")
            worker.ready, worker.group, self._starts_failed = True, Group(), 0
            if not self._queue:
                self._drop(worker)
                return
            worker.group = self._queue.popleft()
            order = {"file": worker.group.file, "tests": list(worker.group)}
            worker.machine.agent.sendall(json.dumps(order).encode() + b"\n")
        elif "start" in message:
            worker.current = message["start"]
            item = self._items[worker.current]
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        elif "report" in message:
            report = session.config.hook.pytest_report_from_serializable(
                config=session.config, data=message["report"]
            )
            worker.reports.append(report)
        elif "end" in message:
            item = self._items[message["end"]]
            reports, worker.reports = worker.reports, []
            if any(r.failed for r in reports) and self._may_try_again(item):
                self._try_again(session, worker, reports)
                return
            for report in reports:
                item.ihook.pytest_runtest_logreport(report=report)
            item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
            worker.group.remove(item.nodeid)
            worker.current = ""

    def _may_try_again(self, item: pytest.Item) -> bool:
        return item.get_closest_marker("boot") is not None and item.nodeid not in self._again

    def _try_again(
        self, session: pytest.Session, worker: Worker, reports: list[pytest.TestReport]
    ) -> None:
        self._again.add(worker.current)
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            said = "\n".join(r.longreprtext for r in reports if r.failed)
            reporter.write_line(f"\n{worker.current} failed and is tried again:\n{said}")
        self._drop(worker)
        self._queue.appendleft(worker.group)

    def _lost(self, session: pytest.Session, worker: Worker, reason: str) -> None:
        """Puts what the VM had not finished back, unless its test has cost a VM before."""
        words = f"{reason}; the end of its console:\n{worker.machine.last_words()}"
        worker.reports.clear()
        self._drop(worker)
        self._restarts += 1
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"\n{worker.current or 'no test'}: {words}")
        if not worker.ready:
            self._starts_failed += 1
            if self._starts_failed >= 3:
                raise pytest.UsageError(words)
        guilty = worker.current
        if guilty:
            self._losses[guilty] += 1
            if self._losses[guilty] >= LOSSES:
                self._failed(session, guilty, words)
                worker.group.remove(guilty)
        if worker.group:
            self._queue.appendleft(worker.group)

    def _failed(self, session: pytest.Session, name: str, words: str) -> None:
        item = self._items[name]
        report = pytest.TestReport(
            nodeid=name,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=words,
            when="call",
        )
        item.ihook.pytest_runtest_logreport(report=report)

    def _drop(self, worker: Worker) -> None:
        self._workers.remove(worker)
        for end in (worker.machine.agent, worker.machine.beat):
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end)
        worker.machine.close()


def main() -> int:
    try:
        return int(pytest.main(sys.argv[1:], plugins=[Nested()]))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
