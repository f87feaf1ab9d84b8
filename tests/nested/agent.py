"""Runs inside the nested tier's machine: takes test files from the port, runs their tests with
pytest, and sends every report the moment it exists.

One line of JSON a message. To us: {"file": path, "tests": [node ids]} or {"stop": true}. From us:
{"ready": true} when we want work, {"start": node id}, {"report": …}, {"end": node id}.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

TEST_SECONDS = 500


class Agent:
    """The pytest plugin that replaces collection and the loop over the tests."""

    def __init__(self, port: str) -> None:
        self._port = open(port, "r+b", buffering=0)  # noqa: SIM115
        self._rest = b""

    def _send(self, **message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[self._port.write(data) or 0 :]

    def _receive(self) -> Any:
        while b"\n" not in self._rest:
            self._rest += self._port.read(65536) or b""
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def pytest_collection(self) -> bool:
        return True  # nothing before the first order

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        while True:
            self._send(ready=True)
            order = self._receive()
            if "stop" in order:
                return True
            wanted = set(order["tests"])
            items = [i for i in session.perform_collect([order["file"]]) if i.nodeid in wanted]
            for item, following in itertools.zip_longest(items, items[1:]):
                self._send(start=item.nodeid)
                for report in runtestprotocol(item, log=False, nextitem=following):
                    data = item.config.hook.pytest_report_to_serializable(
                        config=item.config, report=report
                    )
                    self._send(report=data)
                self._send(end=item.nodeid)


def main() -> int:
    # Which tests is decided outside: no markers, also not the configuration's.
    options = ["-p", "no:cacheprovider", f"--timeout={TEST_SECONDS}", "-q", "-m", ""]
    return int(pytest.main(options, plugins=[Agent(sys.argv[1])]))


if __name__ == "__main__":
    sys.exit(main())
