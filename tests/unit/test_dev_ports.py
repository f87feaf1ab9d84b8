"""Debug-exit, debugcon, POST codes, clocks and the lazy package."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

import pykvm.devices
import pykvm.devices.chardev
from pykvm.devices import (
    DebugCon,
    DebugExit,
    Device,
    DeviceStateError,
    ManualClock,
    MonotonicClock,
    PostCode,
    RecordingIrqLine,
)


@pytest.mark.parametrize(
    ("size", "value", "seen"),
    [(1, 0x1FF, 0xFF), (2, 0x12345, 0x2345), (4, 0xDEADBEEF, 0xDEADBEEF), (1, 0, 0)],
)
def test_debug_exit(size: int, value: int, seen: int) -> None:
    exits: list[int] = []
    device = DebugExit(exits.append)
    device.write(0, size, value)
    assert exits == [seen]
    assert device.read(0, size) == 0
    assert exits == [seen]


def test_debug_exit_takes_three_widths() -> None:
    device = DebugExit(lambda value: None)
    assert device.access_sizes == (1, 2, 4)
    assert device.max_access == 4


def test_debugcon() -> None:
    printed = bytearray()
    device = DebugCon(printed.extend)
    for code in b"hi\n":
        device.write(0, 1, code)
    assert printed == b"hi\n"
    assert device.read(0, 1) == 0xE9


def test_post_codes_have_times_since_power_on() -> None:
    clock = ManualClock(1_000_000)
    post = PostCode(clock)
    assert post.read(0, 1) == 0
    clock.advance(50)
    post.write(0, 1, 0x11)
    clock.advance(25)
    post.write(0, 1, 0x122)
    assert post.codes == [(50, 0x11), (75, 0x22)]
    assert (post.last, post.read(0, 1), post.count) == (0x22, 0x22, 2)
    post.reset()
    post.write(0, 1, 0x33)
    assert post.codes == [(0, 0x33)]


def test_post_history_is_bounded() -> None:
    post = PostCode(ManualClock(), history=4)
    for code in range(10):
        post.write(0, 1, code)
    assert [code for _, code in post.codes] == [6, 7, 8, 9]
    assert post.count == 10
    with pytest.raises(ValueError, match="at least 1"):
        PostCode(history=0)


def test_post_codes_go_on_in_another_process() -> None:
    """Another machine's clock starts elsewhere; the time since power-on does not."""
    here, there = ManualClock(10**9), ManualClock(7)
    post = PostCode(here)
    here.advance(100)
    post.write(0, 1, 1)
    state = post.save()
    moved = PostCode(there)
    moved.load(state)
    there.advance(5)
    moved.write(0, 1, 2)
    assert moved.codes == [(100, 1), (105, 2)]


@pytest.mark.parametrize(
    "change",
    [{"count": 0}, {"codes": [1, 2, 3]}, {"times": [-1]}, {"last": 256}, {"elapsed_ns": "x"}],
)
def test_post_refuses_a_bad_state(change: dict[str, object]) -> None:
    post = PostCode(ManualClock())
    post.write(0, 1, 5)
    with pytest.raises(DeviceStateError):
        post.load({**post.save(), **change})
    assert post.last == 5


def test_stateless_devices_refuse_a_foreign_state() -> None:
    with pytest.raises(DeviceStateError, match="unknown fields: ier"):
        DebugExit(lambda value: None).load({"ier": 1})
    with pytest.raises(DeviceStateError, match="not list"):
        DebugExit(lambda value: None).load([])  # type: ignore[arg-type]


def test_recording_line() -> None:
    line = RecordingIrqLine()
    line.pulse()
    line.set(True)
    line.set(True)
    assert line.history == [True, False, True, True]
    assert [line.take_edge() for _ in range(3)] == [True, True, False]


# -- clocks ----------------------------------------------------------------------------------------


def test_manual_timers_fire_in_order_at_their_time() -> None:
    clock = ManualClock()
    seen: list[tuple[str, int]] = []
    late = clock.timer(lambda: seen.append(("late", clock.now_ns())))
    early = clock.timer(lambda: seen.append(("early", clock.now_ns())))
    gone = clock.timer(lambda: seen.append(("gone", clock.now_ns())))
    late.arm(30)
    early.arm(20)
    gone.arm(10)
    gone.cancel()
    early.arm(10)
    clock.advance(100)
    assert seen == [("early", 10), ("late", 30)]
    assert clock.now_ns() == 100
    clock.advance(100)
    assert len(seen) == 2


def timer_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pykvm-timer"]


def test_real_timers() -> None:
    clock = MonotonicClock()
    fired = threading.Event()
    order: list[int] = []
    second = clock.timer(lambda: (order.append(2), fired.set()))
    first = clock.timer(lambda: order.append(1))
    never = clock.timer(lambda: order.append(3))
    now = clock.now_ns()
    second.arm(now + 30_000_000)
    never.arm(now + 40_000_000)
    never.cancel()
    first.arm(now + 10_000_000)
    assert fired.wait(5)
    assert order == [1, 2]
    clock.close()
    assert not timer_threads()


def test_the_timer_thread_ends_by_itself() -> None:
    clock = MonotonicClock()
    fired = threading.Event()
    timer = clock.timer(fired.set)
    assert not timer_threads()
    timer.arm(clock.now_ns())
    assert fired.wait(5)
    end = time.monotonic() + 5
    while timer_threads() and time.monotonic() < end:
        time.sleep(0.01)
    assert not timer_threads()
    fired.clear()
    timer.arm(clock.now_ns())
    assert fired.wait(5)
    clock.close()
    clock.close()


def test_a_deadline_centuries_ahead_and_a_callback_that_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(str(args.exc_value)))
    clock = MonotonicClock()
    fired = threading.Event()
    clock.timer(lambda: None).arm(1 << 80)

    def broken() -> None:
        raise RuntimeError("broken device")

    clock.timer(broken).arm(0)
    clock.timer(fired.set).arm(clock.now_ns() + 1_000_000)
    assert fired.wait(5)
    assert reported == ["broken device"]
    clock.close()


# -- the packages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [pykvm.devices, pykvm.devices.chardev])
def test_every_exported_name_is_there(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert callable(getattr(package, name))
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        package.Nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_devices_bring_nothing_heavy_along() -> None:
    """Start-up time: the UART alone must not load sockets, terminals or dataclasses."""
    code = (
        "import sys, threading, pykvm\n"
        "before = set(sys.modules)\n"
        "from pykvm.devices.uart16550 import Uart16550\n"
        "Uart16550().write(0, 1, 65)\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if not name.startswith("pykvm.")}
    assert not loaded


def test_devices_know_nothing_of_kvm_or_the_machine() -> None:
    code = (
        "import sys, pkgutil, importlib, pykvm.devices as d, pykvm.memory\n"
        "guest_memory = set(sys.modules)\n"  # a device may know it, and what it is made of
        "for m in pkgutil.walk_packages(d.__path__, 'pykvm.devices.'):\n"
        "    importlib.import_module(m.name)\n"
        "above = ('pykvm.kvm', 'pykvm.machine', 'pykvm._')\n"
        "print(*[n for n in sys.modules if n.startswith(above) and n not in guest_memory])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_device_is_abstract() -> None:
    with pytest.raises(TypeError):
        Device()  # type: ignore[abstract]
