"""`IoThread`: descriptors, posts, timers, pauses and its end."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator

import pytest

from pykvm.datapath.loop import IoThread, LoopError


@pytest.fixture
def loop() -> Iterator[IoThread]:
    made = IoThread("test-io")
    yield made
    made.stop()


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_descriptors_call_back_on_the_thread(loop: IoThread, event: int) -> None:
    assert not loop.running
    seen: list[tuple[int, bool]] = []
    arrived = threading.Semaphore(0)

    def ready() -> None:
        seen.append((os.eventfd_read(event), loop.current))
        arrived.release()

    loop.add(event, ready)
    for _ in range(3):
        os.eventfd_write(event, 2)
        assert arrived.acquire(timeout=10)
    assert seen == [(2, True)] * 3
    loop.remove(event)
    os.eventfd_write(event, 1)
    loop.call(lambda: None)
    assert len(seen) == 3
    loop.remove(event)  # twice is harmless
    loop.add(event, ready)  # and what had come meanwhile is still there
    assert arrived.acquire(timeout=10)


def test_writable(loop: IoThread) -> None:
    read, write = os.pipe()
    called = threading.Event()
    loop.add(write, lambda: (loop.remove(write), called.set()), writable=True)
    assert called.wait(10)
    os.close(read)
    os.close(write)


def test_calls_give_back_results_and_exceptions(loop: IoThread) -> None:
    assert loop.call(lambda: threading.current_thread().name) == "test-io"
    with pytest.raises(ZeroDivisionError):
        loop.call(lambda: 1 // 0)
    assert loop.call(lambda: loop.call(lambda: 7)) == 7, "on the thread itself it runs at once"


def test_posts_keep_their_order(loop: IoThread) -> None:
    seen: list[int] = []
    for n in range(100):
        loop.post(lambda n=n: seen.append(n))  # type: ignore[misc]
    loop.call(lambda: None)
    assert seen == list(range(100))


def test_ready_descriptors_come_before_a_call(loop: IoThread, event: int) -> None:
    seen: list[str] = []
    loop.add(event, lambda: (os.eventfd_read(event), seen.append("event")))
    for _ in range(50):
        os.eventfd_write(event, 1)
        loop.call(lambda: seen.append("call"))
    assert seen == ["event", "call"] * 50


def test_timers(loop: IoThread) -> None:
    seen: list[str] = []
    done = threading.Event()
    loop.after(0.02, lambda: (seen.append("second"), done.set()))
    loop.after(0.01, lambda: seen.append("first"))
    loop.after(0.015, lambda: seen.append("cancelled")).cancel()
    assert done.wait(10)
    assert seen == ["first", "second"]


def test_a_callback_that_raises_does_not_stop_the_others(
    loop: IoThread, event: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_type))
    loop.add(event, lambda: 1 // 0)
    os.eventfd_write(event, 1)  # nobody reads it: it would be called for ever
    loop.post(lambda: [][0])
    loop.after(0, lambda: {}["x"])
    time.sleep(0.01)
    assert loop.call(lambda: "alive") == "alive"
    assert reported.count(ZeroDivisionError) == 1
    assert set(reported) <= {ZeroDivisionError, IndexError, KeyError}


def test_nothing_runs_while_paused(loop: IoThread, event: int) -> None:
    seen: list[str] = []
    inside, go = threading.Event(), threading.Event()
    loop.post(lambda: (inside.set(), go.wait(10), seen.append("slow")))
    assert inside.wait(10)
    pausing = threading.Thread(target=loop.pause)
    pausing.start()
    time.sleep(0.01)
    assert pausing.is_alive(), "pause waits for what runs"
    go.set()
    pausing.join(10)
    assert seen == ["slow"]
    loop.pause()  # it counts
    loop.add(event, lambda: (os.eventfd_read(event), seen.append("event")))
    os.eventfd_write(event, 1)
    loop.post(lambda: seen.append("post"))
    loop.after(0, lambda: seen.append("timer"))
    with pytest.raises(TimeoutError):
        loop.call(lambda: None, timeout=0.05)
    loop.resume()
    time.sleep(0.02)
    assert seen == ["slow"]
    loop.resume()
    loop.call(lambda: None)
    assert sorted(seen) == ["event", "post", "slow", "timer"]


def test_a_pause_from_a_callback_begins_behind_it(loop: IoThread) -> None:
    seen: list[str] = []
    loop.call(lambda: (loop.pause(), seen.append("rest")))
    assert seen == ["rest"]
    loop.post(lambda: seen.append("later"))
    time.sleep(0.02)
    assert seen == ["rest"]
    loop.resume()
    loop.call(lambda: None)
    assert seen == ["rest", "later"]


def test_drain_waits_for_what_runs(loop: IoThread) -> None:
    inside, go = threading.Event(), threading.Event()
    over: list[bool] = []
    loop.post(lambda: (inside.set(), go.wait(10), over.append(True)))
    assert inside.wait(10)
    threading.Timer(0.02, go.set).start()
    loop.drain()
    assert over == [True]


def test_after_stop_there_is_nothing(event: int) -> None:
    loop = IoThread()
    loop.add(event, lambda: None)
    loop.stop()
    loop.stop()
    assert not loop.running
    for use in (
        lambda: loop.add(event, lambda: None),
        lambda: loop.post(lambda: None),
        lambda: loop.call(lambda: None),
        lambda: loop.after(1, lambda: None),
    ):
        with pytest.raises(LoopError):
            use()
    loop.remove(event)


def test_stop_while_paused_and_from_a_callback() -> None:
    loop = IoThread()
    loop.pause()
    dropped: list[int] = []
    loop.post(lambda: dropped.append(1))

    def wait() -> None:
        with pytest.raises(LoopError):
            loop.call(lambda: None)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.01)
    loop.stop()
    waiting.join(10)
    assert not waiting.is_alive()
    assert dropped == []
    other = IoThread()
    other.post(other.stop)
    for _ in range(1000):
        if not other.running:
            break
        time.sleep(0.01)
    assert not other.running


def test_nothing_leaks() -> None:
    gc.collect()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for turn in range(100):
        loop = IoThread()
        if turn % 2:
            loop.call(lambda: None)
            loop.stop()
        del loop  # one that never started needs no stop
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (files, threads)


def test_many_threads_at_once(loop: IoThread) -> None:
    counter = [0]

    def add() -> None:
        counter[0] += 1

    def use(number: int) -> None:
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        for turn in range(100):
            loop.add(fd, lambda: os.eventfd_read(fd))
            os.eventfd_write(fd, 1)
            loop.post(add)
            loop.call(add)
            if turn % 10 == number:
                loop.pause()
                loop.resume()
            loop.remove(fd)
        loop.drain()
        os.close(fd)

    users = [threading.Thread(target=use, args=(n,)) for n in range(4)]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
    loop.call(lambda: None)
    assert counter == [800]
