"""Token buckets and statistics, with time given as a number."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm.datapath.limits import RateLimit
from pykvm.datapath.statistics import IoStatistics

SECOND = 1_000_000_000
START = 1 << 50  # long after the real clock: the buckets are full


def test_no_limit_never_waits() -> None:
    limit = RateLimit()
    assert not limit.limited
    assert [limit.take(1 << 40, START) for _ in range(100)] == [0] * 100
    assert limit.held == 0


def test_the_burst_goes_at_once_then_the_rate_holds() -> None:
    limit = RateLimit(ops_per_s=1000, burst_ops=10)
    assert [limit.take(512, START) for _ in range(10)] == [0] * 10
    wait = limit.take(512, START)
    assert 0 < wait <= SECOND // 1000 + 1
    assert limit.take(512, START + wait - 2) > 0
    assert limit.take(512, START + wait) == 0
    assert limit.held == 2


def test_a_request_larger_than_the_burst_goes_and_is_paid_for() -> None:
    limit = RateLimit(bytes_per_s=1 << 20, burst_bytes=1 << 10)
    assert limit.take(1 << 20, START) == 0
    wait = limit.take(1, START)
    assert SECOND * 0.99 < wait <= SECOND
    assert limit.take(1, START + wait) == 0


def test_both_buckets_must_agree_and_a_refusal_takes_nothing() -> None:
    limit = RateLimit(ops_per_s=10, bytes_per_s=1 << 20, burst_ops=1, burst_bytes=1 << 20)
    assert limit.take(0, START) == 0
    for _ in range(50):
        assert limit.take(1 << 19, START) > 0
    assert limit.take(1 << 19, START + SECOND // 10) == 0


def test_a_charge_is_never_refused_but_delays_the_next() -> None:
    limit = RateLimit(ops_per_s=10, burst_ops=1)
    for _ in range(5):
        limit.charge(0, START)
    assert SECOND * 0.39 < limit.take(0, START) <= SECOND * 0.41


def test_new_rates_at_run_time() -> None:
    limit = RateLimit(bytes_per_s=1, burst_bytes=1)
    limit.charge(1 << 40)
    assert limit.take(1) > 3600 * SECOND
    limit.set(bytes_per_s=1 << 30)
    assert limit.burst_bytes == (1 << 30) // 10
    assert limit.take(1) < SECOND, "a debt at the old rate is not carried on"
    limit.set()
    assert limit.take(1 << 40) == 0
    with pytest.raises(ValueError, match="-1"):
        limit.set(-1)


@given(
    rate=st.integers(1, 1 << 40), burst=st.integers(0, 1 << 40),
    steps=st.lists(st.tuples(st.integers(0, SECOND), st.integers(0, 1 << 30)), max_size=50),
)  # fmt: skip
def test_the_average_keeps_to_the_rate(rate: int, burst: int, steps: list[tuple[int, int]]) -> None:
    limit = RateLimit(bytes_per_s=rate, burst_bytes=burst)
    now, moved, largest = START, 0, 0
    for gap, length in steps:
        now += gap
        wait = limit.take(length, now)
        if wait:
            now += wait
            assert limit.take(length, now) == 0, "the time told is enough"
        moved += length
        largest = max(largest, length)
    most = limit.burst_bytes + largest + rate * (now - START) / SECOND
    assert moved <= most * 1.000001 + len(steps)


def test_statistics_by_kind() -> None:
    numbers = IoStatistics(["read", "write"])
    numbers["read"].add(512, 1000)
    numbers["read"].add(512, 1023)
    numbers["read"].add(0, 1024, failed=True)
    numbers["write"].add(4096, 1 << 60)
    numbers["write"].add(4096)
    assert numbers["read"].latency == {512: 2, 1024: 1}
    assert numbers["write"].latency == {1: 1, 1 << 39: 1}
    assert (numbers.requests, numbers.bytes, numbers.errors) == (5, 9216, 1)
    assert numbers["read"].percentile(0.5) == 1023
    assert numbers["read"].percentile(1) == 2047
    assert numbers.as_dict()["read"] == {
        "requests": 3, "bytes": 1024, "errors": 1, "total_ns": 3047, "latency": {512: 2, 1024: 1},
    }  # fmt: skip
    numbers.reset()
    assert numbers.requests == 0
    assert numbers["read"].percentile(0.5) == 0


def test_threads_lose_no_count() -> None:
    numbers = IoStatistics(["all"])
    limit = RateLimit(ops_per_s=1, burst_ops=1000)
    passed = []

    def work() -> None:
        for _ in range(2000):
            numbers["all"].add(1, 5)
            if not limit.take(0, START):
                passed.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers["all"].requests == numbers["all"].bytes == 8000
    assert len(passed) == 1000
