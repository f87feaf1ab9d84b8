"""The native queue and the reference agree, on 100,000 rings a run.

Chains, errors word for word, memory after pushes, wishes for interrupts and kicks, saved state. The
rings are in memory with untouchable pages around each region (`guarded_memory`), so that an access
outside ends the process.
"""

from __future__ import annotations

from random import Random

from generated_rings import REGIONS, Ring, generate
from guarded_memory import guarded_memory
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pykvm._native import ffi
from pykvm.datapath.queue import NativeQueue
from pykvm.devices.virtio.queue import Chain, QueueError, ReferenceQueue, VirtQueue
from pykvm.memory import GuestMemory

RINGS = 100_000
EXAMPLES = 20
WORDS = [(n * 0x9E3779B1 & 0xFFFFFFFF).to_bytes(4, "little") for n in range(0x1000)]
FRESH = [bytes(0x4000), b"".join(WORDS), bytes(0x1000)]  # of each region; every word is another


class Side:
    """One implementation and its memory."""

    def __init__(self, queue: VirtQueue) -> None:
        self.queue = queue
        self.memory = queue.memory = guarded_memory(REGIONS)
        self.errors: set[str] = set()

    def bytes(self) -> list[bytes]:
        return [self.memory.read(gpa, size) for gpa, size in REGIONS]

    def pop(self, limit: int) -> tuple[list[Chain], str]:
        """Everything up to `limit`, and the error that ended it."""
        found: list[Chain] = []
        queue = self.queue
        try:
            if limit == 1:
                while (chain := queue.pop()) is not None:
                    found.append(chain)
            else:
                while batch := queue.pop_batch(limit):
                    found += batch
        except QueueError as error:
            return found, str(error)
        return found, ""

    def play(self, ring: Ring) -> list[object]:
        """Plays the script of a ring; all that came of it."""
        queue = self.queue
        for (gpa, _), data in zip(REGIONS, FRESH, strict=True):
            self.memory.write(gpa, data)
        ring.write(self.memory)
        queue.restore(ring.state)
        script, said = ring.script, []
        for half in (0, 1):
            if script & 1:
                said.append(attempt(queue.want_kicks, bool(script & 2)))
            chains, error = self.pop((1, 2, 64)[(script >> 2) % 3])
            said.append(error)
            said += [what(chain) for chain in chains]
            if error:
                self.errors.add(error.translate(NO_DIGITS))
            done = [(chain, 3 * n) for n, chain in enumerate(chains)]
            if script & 16:
                done.reverse()
            if script & 32:
                said.append(attempt(queue.push_batch, done))
            else:
                said += [attempt(queue.push, chain, written) for chain, written in done]
            said.append(attempt(queue.should_notify))
            if error or half:
                break
            for gpa, data in ring.later:
                self.memory.write(gpa, data)
            script >>= 6
        said.append(queue.state())
        return said


NO_DIGITS = str.maketrans("", "", "0123456789abcdef")


def attempt(call: object, *values: object) -> object:
    """What a call gives, or says."""
    try:
        return call(*values)  # type: ignore[operator]
    except QueueError as error:
        return str(error)


def what(chain: Chain) -> tuple[object, ...]:
    """A chain in values; the words in memory tell where a buffer lies."""
    return (
        chain.head, chain.count, chain.position,
        [(len(view), bytes(view[:24])) for view in chain.readable],
        [(len(view), bytes(view[:24])) for view in chain.writable],
    )  # fmt: skip


def untouched(before: list[bytes], after: list[bytes], areas: list[tuple[int, int]]) -> bool:
    """Whether all is as before, but for the areas that the device writes."""
    if before == after:
        return True
    for (gpa, size), old, new in zip(REGIONS, before, after, strict=True):
        whole = bytearray(new)
        for start, length in areas:
            low, high = max(start, gpa), min(start + length, gpa + size)
            if low < high:
                whole[low - gpa : high - gpa] = old[low - gpa : high - gpa]
        if whole != old:
            return False
    return True


def places_are_right(queue: NativeQueue, memory: GuestMemory) -> bool:
    """Whether the host addresses that engines get are those of the guest-physical ones."""
    for n in range(8):
        gpa, host = queue._gpa[n], int(ffi.cast("uintptr_t", queue._iov[n].iov_base))
        if not host:
            break
        for region in memory.regions:
            if region.gpa <= gpa < region.end and host != region.host_address + gpa - region.gpa:
                return False
    return True


class Pair:
    """Both, on the same rings."""

    def __init__(self) -> None:
        self.native = Side(NativeQueue(3, 64))
        self.reference = Side(ReferenceQueue(3, 64))
        self.rings = self.chains = self.good = 0

    def compare(self, seed: int) -> None:
        ring = generate(Random(seed))
        expected = self.reference.play(ring)
        found = self.native.play(ring)
        assert found == expected, f"ring of seed {seed}"
        after = self.native.bytes()
        assert after == self.reference.bytes(), f"memory after ring of seed {seed}"
        if self.rings % 16 == 0 and ring.areas:
            for (gpa, _), data in zip(REGIONS, FRESH, strict=True):
                self.reference.memory.write(gpa, data)
            ring.write(self.reference.memory)
            areas = ring.areas + [(gpa, len(data)) for gpa, data in ring.later]
            assert untouched(self.reference.bytes(), after, areas), f"ring of seed {seed}"
            assert places_are_right(self.native.queue, self.native.memory)  # type: ignore[arg-type]
        self.rings += 1
        self.good += not any(type(item) is str and item for item in expected)
        self.chains += sum([type(item) is tuple for item in expected])


# The sentences, without digits and letters that a number may have.
SENTENCES = (
    "entries are available in a ring", "available entry", "the chain from entry", "leads to",
    "indirect tables were not", "an indirect descriptor has a next", "an indirect table of",
    "an indirect table within", "indirect entry", "an indirect table loops", "a buffer of no bytes",
    "a request of more than", "a readable buffer after", "more descriptors than the",
    "an indirect descriptor within a list", "are not all memory", "leave the address space",
)  # fmt: skip


def test_native_and_reference_agree() -> None:
    pair = Pair()

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.integers(0, (1 << 63) - 1))
    def many(seed: int) -> None:
        for number in range(RINGS // EXAMPLES):
            pair.compare(seed + number * 0x9E3779B97F4A7C15)

    many()
    while pair.rings < RINGS:  # Hypothesis may stop early when it knows a seed
        pair.compare(pair.rings << 64)
    assert pair.good > RINGS // 4, "enough of them keep the rules"
    assert pair.chains > RINGS
    assert pair.native.errors == pair.reference.errors
    for sentence in SENTENCES:
        known = sentence.translate(NO_DIGITS)
        assert any(known in error for error in pair.reference.errors), f"never said: {sentence}"


def test_rings_that_once_differed() -> None:
    # A used ring outside memory, and a chain that is done before its turn (in order).
    Pair().compare(10066831185462385066142)
