"""Where the tests need /dev/kvm, they say so in one sentence; where it is, none may be left out."""

from __future__ import annotations

import os
import pathlib
import signal
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no failure: no test asserts a time. The same examples each time, so that what
# passed once passes again; PYKVM_RANDOM=1 looks for new ones.
settings.register_profile(
    "pykvm",
    deadline=None,
    derandomize=not os.environ.get("PYKVM_RANDOM"),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pykvm")

ROOT = pathlib.Path(__file__).resolve().parent
NEEDS_KVM = {"kvm", "boot"}


@cache
def kvm_problem() -> str:
    """Why /dev/kvm cannot be used here, or ""."""
    try:
        from pykvm.kvm import Kvm

        Kvm().close()
    except Exception as error:
        return str(error)
    return ""


def pytest_configure() -> None:
    # Background jobs inherit SIGINT and SIGQUIT ignored, those of nohup SIGHUP; the tests of Ctrl-C
    # and of a closed terminal mean the foreground.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(ROOT).parts[0] in NEEDS_KVM:
            item.add_marker(pytest.mark.kvm)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("kvm") is None or not kvm_problem():
        return
    text = f"needs /dev/kvm: {kvm_problem()}"
    if os.environ.get("PYKVM_REQUIRE_KVM") or os.path.exists("/dev/kvm"):
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if kvm_problem():
        terminalreporter.write_line(f"The tests that need /dev/kvm did not run: {kvm_problem()}")
