"""The guest protocol's device, driven as a guest drives it, without a CPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.devices.base import DeviceStateError
from pykvm.devices.guestproto import (
    GuestAssertion,
    GuestProtocol,
    GuestProtocolError,
    Sync,
)
from pykvm.errors import PykvmError
from pykvm.memory import GuestMemory

ID, SYNC, FILE, LINE, TEXT, ARG, CASE, DONE = range(0, 32, 4)
HEADER = Path(__file__).resolve().parents[2] / "guests" / "lib" / "protocol.h"


@pytest.fixture
def memory() -> GuestMemory:
    memory = GuestMemory.anonymous([(0, 0x1000)])
    memory.write(0x100, b"dir/file.c\0")
    memory.write(0x200, b"a == b\0")
    memory.write(0x300, b"first case\0")
    memory.write(0x400, b"second\0")
    return memory


def fail(device: GuestProtocol, line: int = 7) -> None:
    device.write(FILE, 4, 0x100)
    device.write(LINE, 4, line)
    device.write(TEXT, 4, 0x200)


def test_registers_and_port_are_those_of_the_header() -> None:
    defined = dict(re.findall(r"PROTOCOL_(\w+) = (\w+),", HEADER.read_text()))
    assert int(defined.pop("PORT"), 16) == GuestProtocol.PORT
    assert int(defined.pop("MAGIC"), 16) == GuestProtocol.MAGIC
    assert int(defined.pop("FAILED")) == 1
    expected = {"ID": ID, "SYNC": SYNC, "FILE": FILE, "LINE": LINE, "TEXT": TEXT, "ARG": ARG}
    expected |= {"CASE": CASE, "DONE": DONE}
    assert {name: int(value, 16) for name, value in defined.items()} == expected
    assert max(expected.values()) + 4 == GuestProtocol.LENGTH


def test_identification(memory: GuestMemory) -> None:
    device = GuestProtocol(memory)
    assert device.read(ID, 4).to_bytes(4, "little") == b"pykv"
    assert [device.read(offset, 4) for offset in range(4, 32, 4)] == [0] * 7


def test_sync_is_answered_and_carries_words(memory: GuestMemory) -> None:
    seen: list[Sync] = []

    def answer(sync: Sync) -> int | None:
        seen.append(sync)
        return {1: -1, 2: None}.get(sync.stage, 0x1_2345_6789)

    device = GuestProtocol(memory, on_sync=answer)
    answers = []
    for stage in (1, 2, 3):
        device.write(ARG, 4, stage * 10)
        device.write(SYNC, 4, stage)
        answers.append(device.read(SYNC, 4))
    assert answers == [0xFFFF_FFFF, 0, 0x2345_6789]
    assert [(s.stage, s.words) for s in seen] == [(1, (10,)), (2, (20,)), (3, (30,))]
    assert device.syncs == seen


def test_a_failed_assertion(memory: GuestMemory) -> None:
    told: list[GuestAssertion] = []
    device = GuestProtocol(memory, on_assert=told.append)
    for word in (5, 0, 6, 1):
        device.write(ARG, 4, word)
    fail(device, 42)
    (failed,) = told
    assert isinstance(failed, PykvmError)
    assert isinstance(failed, AssertionError)
    assert (failed.file, failed.line, failed.expression) == ("dir/file.c", 42, "a == b")
    assert str(failed) == "dir/file.c:42: guest assertion failed: a == b (0x5 vs 0x100000006)"
    fail(device)
    assert told[1].words == ()
    with pytest.raises(GuestAssertion) as caught:
        device.check()
    assert caught.value is failed


def test_cases(memory: GuestMemory) -> None:
    device = GuestProtocol(memory)
    device.write(CASE, 4, 0x300)
    device.write(CASE, 4, 0)
    fail(device)  # between the cases
    device.write(CASE, 4, 0x400)
    fail(device)
    device.check_case("first case")
    with pytest.raises(GuestAssertion) as caught:
        device.check_case("second")
    assert caught.value.case == "second"
    assert [(c.name, c.ended, c.passed) for c in device.cases] == [
        ("first case", True, True),
        ("second", False, False),
    ]
    with pytest.raises(GuestProtocolError, match="did not run case third"):
        device.check_case("third")


def test_a_case_that_stops_in_the_middle(memory: GuestMemory) -> None:
    device = GuestProtocol(memory)
    device.write(CASE, 4, 0x300)
    with pytest.raises(GuestProtocolError, match="in the middle of case first case"):
        device.check_case("first case")
    with pytest.raises(GuestProtocolError, match="stopped in case first case without reporting"):
        device.check()


def test_done(memory: GuestMemory) -> None:
    ends: list[int] = []
    device = GuestProtocol(memory, on_done=ends.append)
    with pytest.raises(GuestProtocolError, match="without reporting that it is done"):
        device.check()
    device.write(DONE, 4, 0)
    device.check()
    device.write(DONE, 4, 3)
    with pytest.raises(GuestProtocolError, match="status 3"):
        device.check()
    assert ends == [0, 3]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (0xFFF_0000, "<no text at 0xfff0000>"),
        (0xFFFF_FFFF, "<no text at 0xffffffff>"),
        (0xFFE, "xy"),  # runs into the end of memory
        (0x500, ""),
        (0x600, "A" * 512),  # never ends
        (0x900, "\ufffd?[31m"),  # not UTF-8, then a terminal's escape sequence
    ],
)
def test_texts_from_a_hostile_guest(memory: GuestMemory, address: int, expected: str) -> None:
    memory.write(0xFFE, b"xy")
    memory.write(0x600, b"A" * 0x300)
    memory.write(0x900, b"\xff\x1b[31m\0")
    device = GuestProtocol(memory)
    device.write(TEXT, 4, address)
    assert device.assertions[0].expression == expected


def test_a_guest_in_a_loop_does_not_fill_the_hosts_memory(memory: GuestMemory) -> None:
    device = GuestProtocol(memory)
    for i in range(1500):
        device.write(ARG, 4, i)
    device.write(SYNC, 4, 0)
    assert len(device.syncs[0].words) == 16
    for _ in range(1500):
        device.write(CASE, 4, 0x300)
        device.write(SYNC, 4, 1)
        fail(device)
    assert len(device.syncs) == len(device.cases) == len(device.assertions) == 1000


def test_save_and_load_in_the_middle_of_a_case(memory: GuestMemory) -> None:
    device = GuestProtocol(memory, on_sync=lambda sync: 77)
    device.write(CASE, 4, 0x400)
    device.write(FILE, 4, 0x100)
    device.write(LINE, 4, 9)
    device.write(SYNC, 4, 1)
    device.write(ARG, 4, 1)
    state = device.save()

    other = GuestProtocol(memory)
    fail(other)
    other.load(state)
    assert other.assertions == []
    assert other.save() == state
    assert other.read(SYNC, 4) == 77
    other.write(TEXT, 4, 0x200)
    with pytest.raises(GuestAssertion, match=r"dir/file\.c:9: .* a == b$") as caught:
        other.check_case("second")
    assert caught.value.words == (1,)
    other.reset()
    assert other.save() == GuestProtocol(memory).save()


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"words": [0] * 17}, {"case": -1}, {"line": "7"}, {"extra": 0}]
)
def test_a_bad_state_is_refused_and_changes_nothing(
    memory: GuestMemory, change: dict[str, object]
) -> None:
    device = GuestProtocol(memory)
    device.write(LINE, 4, 5)
    before = device.save()
    with pytest.raises(DeviceStateError):
        device.load({**before, **change})
    assert device.save() == before


accesses = st.tuples(st.integers(0, 40), st.integers(0, (1 << 32) - 1) | st.integers(0, 0x1010))


@given(st.lists(accesses, max_size=60))
def test_any_sequence_of_writes_is_survived_and_restores(sequence: list[tuple[int, int]]) -> None:
    memory = GuestMemory.anonymous([(0, 0x1000)])
    device, copy = GuestProtocol(memory), GuestProtocol(memory)
    for offset, value in sequence:
        device.write(offset, 4, value)
        assert 0 <= device.read(offset, 4) <= 0xFFFF_FFFF
        copy.load(device.save())
        assert copy.save() == device.save()
    for case in device.cases:
        assert set(map(id, case.assertions)) <= set(map(id, device.assertions))
