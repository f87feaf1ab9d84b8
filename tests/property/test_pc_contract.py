"""Every legacy PC device keeps to one contract: save, load, reset, hostile states, any traffic.

The last tests break devices on purpose and expect this file to notice.
"""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pc_cases import CASES
from pc_contract import Rig, all_reads, differ, perform, plain_load, steps_from

from pykvm.devices import Device, DeviceStateError

DEVICES = sorted(CASES, key=lambda cls: cls.__name__)
each_device = pytest.mark.parametrize("device", DEVICES, ids=lambda cls: cls.__name__)
seeds = st.integers(0, 1 << 32)


def history(device: type[Device], seed: int, length: int = 30) -> list[tuple[str, int, int, int]]:
    case, rng = CASES[device], random.Random(seed)
    return [*rng.choice(case.starts), *steps_from(case, rng, rng.randrange(length))]


@each_device
def test_a_copy_behaves_as_the_original(device: type[Device]) -> None:
    case = CASES[device]

    @settings(max_examples=60, deadline=None)
    @given(before=seeds, after=seeds)
    def check(before: int, after: int) -> None:
        found = differ(case, history(device, before), steps_from(case, random.Random(after), 20))
        assert found is None

    check()


@each_device
def test_reset_is_power_on(device: type[Device]) -> None:
    case = CASES[device]

    @settings(max_examples=40, deadline=None)
    @given(seed=seeds)
    def check(seed: int) -> None:
        rig = Rig()
        used = case.make(rig)
        steps = [step for step in history(device, seed) if step[0] not in case.outside]
        perform(case, rig, used, steps)
        used.reset()
        assert not any(line.level for line in rig.lines)
        fresh_rig = Rig(rig.clock.now_ns())
        fresh = case.make(fresh_rig)
        assert used.save() == fresh.save()
        rig.output.clear()
        if rig.memory is None:
            assert perform(case, rig, used, all_reads(case)) == perform(
                case, fresh_rig, fresh, all_reads(case)
            )

    check()


def junk() -> st.SearchStrategy[object]:
    leaf = st.one_of(
        st.none(), st.booleans(), st.integers(-9, 1 << 70), st.integers(0, 9), st.text(max_size=3)
    )
    return st.one_of(leaf, st.lists(leaf, max_size=20), st.lists(st.integers(0, 255), max_size=40))


@each_device
def test_a_state_file_may_say_anything(device: type[Device]) -> None:
    """Any mixture of good and bad fields is taken whole or refused whole; nothing else happens."""
    case = CASES[device]
    names = sorted(case.make(Rig()).save())

    @settings(max_examples=80, deadline=None)
    @given(
        seed=seeds,
        changes=st.dictionaries(st.sampled_from([*names, "alien"]), junk(), max_size=3),
        nudges=st.dictionaries(st.sampled_from([*names, "alien"]), seeds, max_size=2),
    )
    def check(seed: int, changes: dict[str, object], nudges: dict[str, int]) -> None:
        rig = Rig()
        target = case.make(rig)
        perform(case, rig, target, history(device, seed, 8))
        before = target.save()
        state = {**before, **changes}
        for name, where in nudges.items():  # lists of the right length with one odd number
            value = state.get(name)
            if isinstance(value, list) and value:
                state[name] = [*value]
                state[name][where % len(value)] = where
        try:
            target.load(state)
        except DeviceStateError:
            assert target.save() == before
        perform(case, rig, target, all_reads(case) * 2)
        perform(case, rig, target, history(device, seed ^ 1, 20))

    check()


@each_device
def test_a_state_that_lacks_a_field_is_refused(device: type[Device]) -> None:
    target = CASES[device].make(Rig())
    state = target.save()
    for name in state:
        with pytest.raises(DeviceStateError, match=name):
            target.load({key: value for key, value in state.items() if key != name})
    with pytest.raises(DeviceStateError, match="alien"):
        target.load({**state, "alien": 1})


@each_device
def test_any_traffic_is_harmless(device: type[Device]) -> None:
    """All offsets, widths and values that the bus may bring: numbers come back, nothing raises."""
    case = CASES[device]
    rng = random.Random(device.__name__)
    rig = Rig()
    target = case.make(rig)
    spread = [*case.offsets, *range(0x30), max(case.offsets) + 1]
    for _ in range(3000):
        offset = rng.choice(spread)
        size = rng.choice([n for n in (1, 2, 4, 8) if n <= target.max_access])
        if rng.random() < 0.5:
            value = target.read(offset, size)
            assert type(value) is int
            assert 0 <= value < 1 << 8 * size, (offset, size)
        else:
            target.write(offset, size, rng.getrandbits(8 * size))
        if rng.random() < 0.05:
            perform(case, rig, target, steps_from(case, rng, 2))
        del rig.output[:]
    assert len(json.dumps(target.save())) < 1 << 20, "the state has grown without bound"


@each_device
def test_a_closed_device_is_silent(device: type[Device]) -> None:
    case = CASES[device]
    rig = Rig()
    target = case.make(rig)
    perform(case, rig, target, history(device, 3))
    target.close()
    target.close()
    edges = [len(line.history) for line in rig.lines]
    rig.clock.advance(10_000_000_000)
    assert rig.clock.armed == 0
    assert edges == [len(line.history) for line in rig.lines]


FIELDS = [(device, name) for device in DEVICES for name in CASES[device].make(Rig()).save()]


@pytest.mark.parametrize(("device", "name"), FIELDS, ids=lambda x: getattr(x, "__name__", x))
def test_this_file_notices_a_forgotten_field(device: type[Device], name: str) -> None:
    """A `load` that leaves one field as it is after power-on must be caught."""
    case = CASES[device]

    def forgetful(target: Device, state: dict[str, object]) -> None:
        fresh = case.make(Rig())
        try:
            plain_load(target, {**state, name: fresh.save()[name]})
        except DeviceStateError:
            raise Caught from None  # the fields contradict each other: noticed as well

    for seed in range(1500):
        rng = random.Random(seed)
        try:
            if differ(case, history(device, seed), steps_from(case, rng, 10), forgetful):
                return
        except Caught:
            return
    pytest.fail(f"nothing here depends on {name} being restored")


class Caught(Exception):
    pass
