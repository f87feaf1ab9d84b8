"""Save and load as one contract for every device, tested for each that there is.

A device in a random state is saved and loaded into a fresh one; from there on both must behave
alike: the same reads, the same output, the same interrupts. The last test here breaks devices on
purpose and expects this file to notice.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
from device_contract import Bench, Case, Step, differ, more_cases, perform, steps_for
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

import pykvm.devices
from pykvm.devices import DebugCon, DebugExit, Device, ManualClock, PostCode
from pykvm.devices.guestproto import GuestProtocol
from pykvm.devices.uart16550 import Uart16550
from pykvm.devices.uart_state import UartState
from pykvm.memory import GuestMemory


def type_in(uart: Uart16550, value: int) -> int:
    return uart.receive(bytes([value]) * (value % 18))


def protocol(bench: Bench) -> GuestProtocol:
    memory = GuestMemory.anonymous([(0, 4096)])
    memory.write(0, b"one\0two\0three\0" * 20)
    return GuestProtocol(
        memory,
        on_sync=lambda sync: bench.output.append(repr(sync)) or sync.stage * 3,
        on_assert=lambda failed: bench.output.append((str(failed), failed.case)),
        on_done=bench.output.append,
    )


#: What brings a UART quickly to where its state is rich.
UART_STARTS: list[list[Step]] = [
    [],
    [("write", 3, 3), ("write", 2, 0xC1), ("write", 1, 0x0F), ("write", 4, 0x0B), ("type", 0, 5)],
    [("write", 2, 0x81), ("write", 1, 0x01), ("write", 4, 0x2A), ("type", 0, 8), ("read", 0, 0)],
    [("write", 2, 0x01), ("write", 4, 0x28), ("cts", 0, 0), ("write", 0, 1), ("write", 0, 2)],
    [("write", 2, 0x01), ("noise", 0, 4), ("noise", 0, 5), ("write", 1, 0x04), ("write", 4, 8)],
    [("write", 4, 0x02), ("write", 4, 0x00), ("write", 7, 0x77)],
    [("type", 0, 1), ("read", 0, 0), ("write", 3, 0x80), ("write", 0, 7), ("write", 3, 0x1B)],
]


CASES: dict[type[Device], Case] = {
    DebugExit: Case(lambda bench: DebugExit(bench.output.append), 4),
    DebugCon: Case(lambda bench: DebugCon(bench.output.append), 1),
    PostCode: Case(
        lambda bench: PostCode(bench.clock, history=5),
        1,
        {},
        lambda post: (post.codes, post.last, post.count),
    ),
    Uart16550: Case(
        lambda bench: Uart16550(bench.irq, bench.output.append, bench.clock),
        8,
        {
            "type": type_in,
            "break": lambda uart, value: uart.receive_break(),
            "noise": lambda uart, value: uart.inject(value, parity_error=bool(value & 1)),
            "cts": lambda uart, value: uart.set_modem_lines(cts=bool(value & 1)),
            "ring": lambda uart, value: uart.set_modem_lines(ri=bool(value & 1)),
        },
        lambda uart: (uart.baud, uart.rts, uart.line_format),
        starts=UART_STARTS,
    ),
    GuestProtocol: Case(protocol, 8, {}, lambda device: device.done, width=4),
    **more_cases(),
}


def device_classes() -> set[type[Device]]:
    """Every concrete device in the package, found by looking."""
    found: set[type[Device]] = set()
    for module in pkgutil.walk_packages(pykvm.devices.__path__, "pykvm.devices."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Device):
                found.add(value)
    return {cls for cls in found if not inspect.isabstract(cls)}


def test_every_device_is_covered() -> None:
    ours = {name for name in device_classes() if name.__module__.startswith("pykvm.devices.")}
    assert ours == set(CASES), "a new device needs a case in tests/device_cases_*.py"


@pytest.mark.parametrize("device", sorted(CASES, key=lambda cls: cls.__name__))
def test_a_copy_behaves_as_the_original(device: type[Device]) -> None:
    case = CASES[device]
    steps = steps_for(case, case.starts)

    @settings(max_examples=150, deadline=None)
    @given(before=steps, after=steps_for(case, [[]]))
    def check(before: list[Step], after: list[Step]) -> None:
        assert differ(case, before, after) is None

    check()


@pytest.mark.parametrize("device", sorted(CASES, key=lambda cls: cls.__name__))
def test_reset_is_power_on(device: type[Device]) -> None:
    case = CASES[device]
    steps = steps_for(case, case.starts)

    @settings(max_examples=50, deadline=None)
    @given(steps=steps)
    def check(steps: list[Step]) -> None:
        bench = Bench(ManualClock())
        used = case.make(bench)
        perform(case, bench, used, [s for s in steps if s[0] not in ("cts", "ring")])
        used.reset()
        assert not bench.irq.level
        assert used.save() == case.make(Bench(bench.clock)).save()

    check()


def saved_junk() -> st.SearchStrategy[object]:
    leaf = st.one_of(st.none(), st.booleans(), st.integers(-9, 1 << 70), st.text(max_size=3))
    return st.one_of(leaf, st.lists(leaf, max_size=20))


@pytest.mark.parametrize("device", [PostCode, Uart16550, GuestProtocol])
def test_a_state_file_may_say_anything(device: type[Device]) -> None:
    """Any mixture of good and bad fields is taken whole or refused whole; nothing else happens."""
    case = CASES[device]
    names = sorted(case.make(Bench(ManualClock())).save())

    @settings(max_examples=200, deadline=None)
    @given(changes=st.dictionaries(st.sampled_from([*names, "alien"]), saved_junk(), max_size=3))
    def check(changes: dict[str, object]) -> None:
        bench = Bench(ManualClock())
        target = case.make(bench)
        before = target.save()
        try:
            target.load({**before, **changes})
        except pykvm.devices.DeviceStateError:
            assert target.save() == before
        perform(case, bench, target, [("read", i, 0) for i in range(case.registers)] * 2)
        perform(case, bench, target, [("write", i, 0) for i in range(case.registers)])

    check()


@pytest.mark.parametrize(
    "forgotten",
    sorted(UartState.__slots__),
)
def test_this_file_notices_a_forgotten_field(
    forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each field of the UART's state in turn is not restored: the copy must be seen to differ.

    By what it does, that is, without comparing the saved states.
    """
    complete = UartState.from_saved.__func__  # type: ignore[attr-defined]

    def forgetful(cls: Any, device: str, saved: dict[str, object], now_ns: int) -> UartState:
        state: UartState = complete(cls, device, saved, now_ns)
        setattr(state, forgotten, getattr(UartState(), forgotten))
        return state

    monkeypatch.setattr(UartState, "from_saved", classmethod(forgetful))
    case = CASES[Uart16550]
    steps = steps_for(case, UART_STARTS)
    try:
        find(
            st.tuples(steps, steps_for(case, [[]])),
            lambda pair: differ(case, *pair, compare_states=False) is not None,
            settings=settings(max_examples=2000, deadline=None, phases=["generate"]),  # type: ignore[list-item]
        )
    except NoSuchExample:
        pytest.fail(f"nothing here depends on {forgotten} being restored")
