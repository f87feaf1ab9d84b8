"""GuestMemory against a model: a dict of the bytes that exist."""

from __future__ import annotations

import pathlib
import tempfile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pykvm.memory import GuestMemory, MemoryAccessError, MemoryRegion, RegionError

PAGE = 4096
PAGES = 12  # the playground; regions lie in it, accesses go a little beyond it
LIMIT = 1 << 64

# Addresses that matter are near page borders, and near both ends of the address space.
near = st.builds(lambda page, off: page * PAGE + off, st.integers(0, PAGES), st.integers(-9, 9))
addresses = st.one_of(near, st.integers(-16, 16), st.integers(LIMIT - 16, LIMIT + 16))
lengths = st.one_of(st.integers(-2, 16), st.integers(0, 3 * PAGE))
# Few different bytes, many zeros: so that searches find something, in holes too.
blobs = st.one_of(
    st.lists(st.sampled_from([0, 0, 1, 2]), max_size=12).map(bytes),
    st.integers(0, 3 * PAGE).map(bytes),
    st.binary(max_size=40),
)


class MemoryModel(RuleBasedStateMachine):
    """Every operation on both; the same bytes, or an error where the model has a hole."""

    @initialize(base=st.sampled_from([0, 7 * PAGE, LIMIT - PAGES * PAGE]))
    def start(self, base: int) -> None:
        self.base = base
        self.memory = GuestMemory()
        self.owned: list[MemoryRegion] = []
        self.model: dict[int, int] = {}

    def teardown(self) -> None:
        for region in getattr(self, "owned", ()):
            region.close()

    def at(self, address: int) -> int:
        """Relative to the playground, except for the top of the address space."""
        return address if address > LIMIT // 2 else self.base + address

    def inside(self, gpa: int, length: int) -> bool:
        if length < 0 or gpa < 0 or gpa + length > LIMIT:
            return False
        return all(at in self.model for at in range(gpa, gpa + length))

    def expect(self, gpa: int, length: int) -> bytes:
        return bytes(self.model[at] for at in range(gpa, gpa + length))

    @rule(page=st.integers(0, PAGES - 1), count=st.integers(1, 4))
    def add(self, page: int, count: int) -> None:
        count = min(count, PAGES - page)
        gpa = self.base + page * PAGE
        region = MemoryRegion(gpa, count * PAGE)
        wanted = range(gpa, gpa + count * PAGE)
        if any(at in self.model for at in wanted):
            with pytest.raises(RegionError):
                self.memory.add(region)
            region.close()
        else:
            self.memory.add(region)
            self.owned.append(region)
            self.model.update(dict.fromkeys(wanted, 0))

    @precondition(lambda self: self.owned)
    @rule(index=st.integers(0, 50))
    def remove(self, index: int) -> None:
        region = self.owned.pop(index % len(self.owned))
        self.memory.remove(region)
        for at in range(region.gpa, region.end):
            del self.model[at]
        region.close()

    @rule(address=addresses, length=lengths)
    def read(self, address: int, length: int) -> None:
        gpa = self.at(address)
        inside = self.inside(gpa, length)
        assert self.memory.contains(gpa, length) == inside
        if inside:
            assert self.memory.read(gpa, length) == self.expect(gpa, length)
        else:
            with pytest.raises(MemoryAccessError):
                self.memory.read(gpa, length)

    @rule(address=addresses, data=blobs)
    def write(self, address: int, data: bytes) -> None:
        gpa = self.at(address)
        if self.inside(gpa, len(data)):
            self.memory.write(gpa, data)
            self.model.update(zip(range(gpa, gpa + len(data)), data, strict=True))
        else:
            with pytest.raises(MemoryAccessError):
                self.memory.write(gpa, data)

    @rule(address=addresses, bits=st.sampled_from([8, 16, 32, 64]), value=st.integers(0, LIMIT - 1))
    def numbers(self, address: int, bits: int, value: int) -> None:
        gpa, size = self.at(address), bits // 8
        value &= (1 << bits) - 1
        if self.inside(gpa, size):
            old = int.from_bytes(self.expect(gpa, size), "little")
            assert getattr(self.memory, f"read_u{bits}")(gpa) == old
            getattr(self.memory, f"write_u{bits}")(gpa, value)
            self.model.update(
                zip(range(gpa, gpa + size), value.to_bytes(size, "little"), strict=True)
            )
        else:
            with pytest.raises(MemoryAccessError):
                getattr(self.memory, f"read_u{bits}")(gpa)
            with pytest.raises(MemoryAccessError):
                getattr(self.memory, f"write_u{bits}")(gpa, value)

    @rule(address=addresses, length=st.integers(0, 20 * PAGE), byte=st.sampled_from([0, 0, 7]))
    def fill(self, address: int, length: int, byte: int) -> None:
        gpa = self.at(address)
        if self.inside(gpa, length):
            self.memory.fill(gpa, length, byte)
            self.model.update(dict.fromkeys(range(gpa, gpa + length), byte))
        else:
            with pytest.raises(MemoryAccessError):
                self.memory.fill(gpa, length, byte)

    @rule(address=addresses, data=blobs)
    def through_a_view(self, address: int, data: bytes) -> None:
        gpa = self.at(address)
        homes = [r for r in self.owned if r.contains(gpa, len(data))]
        if data and homes:
            view = self.memory.view(gpa, len(data))
            assert bytes(view) == self.expect(gpa, len(data))
            view[:] = data
            self.model.update(zip(range(gpa, gpa + len(data)), data, strict=True))
        elif data:
            with pytest.raises(MemoryAccessError):
                self.memory.view(gpa, len(data))

    @rule(pattern=blobs.filter(bool), start=near, end=st.one_of(st.none(), near))
    def find(self, pattern: bytes, start: int, end: int | None) -> None:
        low = max(0, self.base + start)
        high = None if end is None else self.base + end
        assert self.memory.find(pattern, low, high) == self.model_find(pattern, low, high)

    def model_find(self, pattern: bytes, low: int, high: int | None) -> int | None:
        run: list[int] = []
        first = 0
        for at in [*sorted(self.model), -1]:
            if run and at == first + len(run):
                run.append(at)
                continue
            if run:
                begin, end = max(first, low), first + len(run)
                end = end if high is None else min(end, high)
                hit = self.expect(begin, max(0, end - begin)).find(pattern)
                if begin < end and hit >= 0:
                    return begin + hit
            first, run = at, [at]
        return None

    @rule()
    def through_a_file(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "memory")
            top = self.base + PAGES * PAGE
            self.memory.export(path, self.base, top)
            data = path.read_bytes()
            assert data == bytes(self.model.get(at, 0) for at in range(self.base, top))
            pieces = [(region.gpa - self.base, region.size) for region in self.owned]
            with GuestMemory.anonymous(pieces) as copy:
                path_end = max((gpa + size for gpa, size in pieces), default=0)
                with path.open("r+b") as file:
                    file.truncate(path_end)
                copy.import_file(path)
                for gpa, size in pieces:
                    assert copy.read(gpa, size) == self.expect(self.base + gpa, size)

    @invariant()
    def sizes_agree(self) -> None:
        if hasattr(self, "model"):
            assert self.memory.size == len(self.model)
            assert self.memory.end == max(self.model, default=-1) + 1


TestMemoryModel = MemoryModel.TestCase
TestMemoryModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
