"""The runtime's own test cases, each a test here; and how a guest's failed assertion looks."""

from __future__ import annotations

import pathlib

import pytest
from guestlib import GuestRun, run_guest

from pykvm import images
from pykvm.devices.guestproto import GuestAssertion, GuestProtocolError

SOURCE = pathlib.Path(__file__).resolve().parents[2] / "guests" / "selftest" / "selftest.c"


@pytest.fixture(scope="module")
def selftest() -> GuestRun:
    return run_guest("selftest", on_sync=lambda sync: sync.stage + 1)


@pytest.mark.parametrize("case", images.find("selftest").cases)
def test_case(selftest: GuestRun, case: str) -> None:
    selftest.protocol.check_case(case)


def test_the_whole_run(selftest: GuestRun) -> None:
    selftest.protocol.check()
    assert selftest.protocol.done == 0
    assert [case.name for case in selftest.protocol.cases] == list(selftest.image.cases)
    assert [sync.stage for sync in selftest.protocol.syncs] == [100, 200]
    assert selftest.protocol.syncs[1].words == (0x55667788, 0x11223344)


def test_a_failed_assertion_names_file_line_and_values() -> None:
    run = run_guest("selftest", on_sync=lambda sync: sync.stage + 1, fail_on_demand=1)
    assert run.result.exit_code == 3
    assert "on_demand: FAILED" in run.text
    run.protocol.check_case("arithmetic")
    with pytest.raises(GuestAssertion, match="fail_on_demand != 1") as caught:
        run.protocol.check_case("on_demand")
    with pytest.raises(GuestAssertion):
        run.protocol.check()
    first, second = run.protocol.assertions
    assert caught.value is first
    assert first.case == second.case == "on_demand"
    assert first.file == "selftest/selftest.c"
    lines = SOURCE.read_text().splitlines()
    assert "GUEST_EXPECT(fail_on_demand != 1)" in lines[first.line - 1]
    assert "GUEST_ASSERT_EQ(initialised, fail_on_demand)" in lines[second.line - 1]
    assert str(second).endswith("initialised == fail_on_demand (0x12345679 vs 0x1)")


def test_a_wrong_answer_fails_the_case_that_asked() -> None:
    run = run_guest("selftest", on_sync=lambda sync: 7)
    with pytest.raises(GuestAssertion, match=r"100\) == 101 \(0x7 vs 0x65\)"):
        run.protocol.check_case("sync_is_answered")
    assert len(run.protocol.assertions) == 1


def test_a_guest_that_never_reports_is_an_error() -> None:
    run = run_guest("hello64")
    with pytest.raises(GuestProtocolError, match="without reporting"):
        run.protocol.check()
    with pytest.raises(GuestProtocolError, match="did not run case arithmetic"):
        run.protocol.check_case("arithmetic")
