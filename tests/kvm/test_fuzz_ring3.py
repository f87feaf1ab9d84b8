"""Ring-3 targets: what a run does and how it ends, and that nothing of it is left."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator

import fuzz_targets
import pytest

from pykvm.fuzz import FuzzError, Outcome, Ring3, Seen

ENDS = """
#include "pykvm_fuzz.h"
static int once, runs;
static __attribute__((noinline)) void deep(void) { volatile char room[1 << 19]; room[0] = 1; }
int LLVMFuzzerInitialize(int *c, char ***v) { (void)c, (void)v; once = 7; return 0; }
int LLVMFuzzerTestOneInput(const uint8_t *d, size_t n)
{
    pykvm_assert(once == 7);
    pykvm_assert(!runs++);
    double x = 1;
    __asm__ volatile("" : "+x"(x));
    if (!n)
        return 0;
    switch (d[0]) {
    case 'r': return d[n];
    case 'w': *(volatile int *)0x123 = 1; break;
    case 'x': ((void (*)(void))0x7e2000000000)(); break;
    case 'u': __asm__ volatile("ud2"); break;
    case 'd': return 5 / (int)(n - 1);
    case 'b': __asm__ volatile("int3"); break;
    case 'g': __asm__ volatile("hlt"); break;
    case 'k': __asm__ volatile("mov %cr0, %rax"); break;
    case 'o': __asm__ volatile("outb %al, $0x80"); break;
    case 's': deep(); break;
    case 'h': for (;;) ;
    case 'a': abort();
    case 'f': pykvm_assert(n == 77); break;
    case 'F': free(malloc(8)); { void *p = malloc(8); free(p); free(p); } break;
    case 'm': pykvm_assert(!malloc(1ull << 40) && malloc(100) && calloc(3, 7)); break;
    case 'c': if (n >= 5 && *(const uint32_t *)(d + 1) == 0xfeedbeef) abort(); break;
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def ends() -> Iterator[Ring3]:
    with Ring3(fuzz_targets.program("ends", ENDS), timeout=0.5) as target:
        yield target


CRASHES = [
    (b"r", "#PF", "reading"),
    (b"w", "#PF", "writing 0x123"),
    (b"x", "#PF", "fetching 0x7e2000000000"),
    (b"u", "#UD", "ud2"),
    (b"d", "#DE", "idiv"),
    (b"b", "#BP", ""),
    (b"g", "#GP", "hlt"),
    (b"k", "#GP", "mov rax, cr0"),
    (b"s", "#PF", "writing"),
    (b"a", "failed", "abort()"),
    (b"f", "failed", "n == 77"),
    (b"F", "failed", "freed twice"),
    (b"c\xef\xbe\xed\xfe", "failed", "abort()"),
]


@pytest.mark.parametrize(("data", "kind", "text"), CRASHES, ids=lambda v: str(v)[:12])
def test_crashes(ends: Ring3, data: bytes, kind: str, text: str) -> None:
    result = ends.execute(data)
    assert result.outcome is Outcome.CRASH
    assert result.crash is not None
    assert result.crash.kind == kind
    assert text in str(result.crash)
    assert ends.difference() is None
    assert ends.execute(b"").outcome is Outcome.OK


def test_ports_are_no_way_out(ends: Ring3) -> None:
    result = ends.execute(b"o")
    assert result.outcome is Outcome.CRASH
    assert ends.execute(b"").outcome is Outcome.OK


def test_a_loop_is_a_hang(ends: Ring3) -> None:
    assert ends.execute(b"h").outcome is Outcome.HANG
    assert ends.difference() is None
    assert ends.execute(b"").outcome is Outcome.OK


def test_where_a_crash_is(ends: Ring3) -> None:
    crash = ends.execute(b"w").crash
    assert crash is not None
    assert crash.where.startswith("LLVMFuzzerTestOneInput+")
    assert crash.address == 0x123
    assert crash.registers["rip"] == crash.rip
    assert crash.instruction.startswith("mov dword ptr [")


def test_each_run_begins_the_same(ends: Ring3) -> None:
    rng = random.Random(5)
    kinds = [data for data, _, _ in CRASHES] + [b"", b"m", b"zz"]
    first = {}
    for _ in range(200):
        data = rng.choice(kinds)
        result = ends.execute(data)
        seen = (result.outcome, str(result.crash), ends.coverage.buckets())
        assert first.setdefault(data, seen) == seen, data


def test_comparisons_give_words(ends: Ring3) -> None:
    ends.execute(b"c1234")
    assert b"\xef\xbe\xed\xfe" in ends.comparisons


def test_inputs_of_every_size(ends: Ring3) -> None:
    assert ends.execute(bytes(ends.room)).outcome is Outcome.OK
    with pytest.raises(FuzzError, match="does not fit"):
        ends.execute(bytes(ends.room + 1))


def test_the_parsers_bugs() -> None:
    with Ring3(fuzz_targets.parser()) as target:
        seen = Seen()
        for data in fuzz_targets.HARMLESS:
            assert target.execute(data).outcome is Outcome.OK
            seen.add(target.coverage)
        for function, data in fuzz_targets.BUGS.items():
            crash = target.execute(data).crash
            assert crash is not None, function
            assert crash.where.startswith(function + "+"), crash
            seen.add(target.coverage)
            assert not seen.add(target.coverage)


def test_many_runs_leave_nothing() -> None:
    with Ring3(fuzz_targets.parser()) as target:
        inputs = [*fuzz_targets.HARMLESS, *fuzz_targets.BUGS.values()]

        def state() -> tuple[int, int]:
            with open("/proc/self/statm") as file:
                return len(os.listdir("/proc/self/fd")), int(file.read().split()[1])

        for data in inputs * 50:
            target.execute(data)
        assert target.difference() is None  # touches all of memory
        files, pages = state()
        for data in inputs * 1000:
            target.execute(data)
        assert target.difference() is None
        after = state()
        assert after[0] == files
        assert after[1] - pages < 256


def test_signals_are_seen_during_a_run() -> None:
    with Ring3(fuzz_targets.program("ends", ENDS), timeout=30) as target:
        seen: list[int] = []
        old = signal.signal(signal.SIGALRM, lambda n, _: seen.append(n))
        target.interrupted = lambda: bool(seen)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            assert target.execute(b"h").outcome is Outcome.HANG
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        assert seen
        assert target.execute(b"").outcome is Outcome.OK


def test_a_target_that_cannot_begin() -> None:
    source = '#include "pykvm_fuzz.h"\nint LLVMFuzzerInitialize(int *c, char ***v) { abort(); }\n'
    source += "int LLVMFuzzerTestOneInput(const uint8_t *d, size_t n) { return 0; }\n"
    file = fuzz_targets.program("no_start", source)
    with pytest.raises(FuzzError, match=r"LLVMFuzzerInitialize\(\) does not return: failed: abort"):
        Ring3(file)
    with pytest.raises(FuzzError, match="no symbol 'nothing'"):
        Ring3(file, "nothing")
    with Ring3(file, initialize="") as target:
        assert target.execute(b"x").outcome is Outcome.OK
