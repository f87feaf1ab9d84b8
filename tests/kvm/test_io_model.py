"""What the guest moves through ports and MMIO is what the device moves, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import asm64
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykvm import Machine, StopReason

PORT, PORTS = 0x300, 0x40
MMIO, MMIO_LENGTH = 0xD000_0000, 0x3000
CODE, RESULTS, SOURCE, TARGET = 0x10_0000, 0x20_0000, 0x30_0000, 0x40_0000
ROOM = 0x1_0000


def byte_at(address: int, turn: int) -> int:
    """What the test device's byte at `address` reads as, the `turn`th time it is asked."""
    return (address * 37 + turn * 101 + 11) & 0xFF


@dataclass
class Model:
    """The device: every byte it gets is logged; every byte it gives is a function of its turn."""

    max_access: int = 8
    name: str = "model"
    base: int = 0
    written: list[tuple[int, int]] = field(default_factory=list)
    turns: dict[int, int] = field(default_factory=dict)

    def read(self, offset: int, size: int) -> int:
        value = 0
        for i in range(size):
            at = self.base + offset + i
            turn = self.turns.get(at, 0)
            self.turns[at] = turn + 1
            value |= byte_at(at, turn) << 8 * i
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        assert value >> 8 * size == 0
        for i in range(size):
            self.written.append((self.base + offset + i, value >> 8 * i & 0xFF))


class Expected:
    """The same, computed from the program instead of from the exits."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int]] = []
        self.turns: dict[int, int] = {}
        self.results: list[int] = []
        self.inputs: list[bytes] = []

    def give(self, address: int, size: int) -> bytes:
        out = bytearray()
        for at in range(address, address + size):
            turn = self.turns.get(at, 0)
            self.turns[at] = turn + 1
            out.append(byte_at(at, turn))
        return bytes(out)

    def take(self, address: int, data: bytes) -> None:
        self.written += [(address + i, b) for i, b in enumerate(data)]


@st.composite
def operations(draw: st.DrawFn) -> list[tuple[str, int, int, int]]:
    """(kind, address, size, value or count)."""
    ops = []
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["out", "in", "outs", "ins", "store", "load"]))
        if kind in ("store", "load"):
            size = draw(st.sampled_from([1, 2, 4, 8]))
            near_border = st.integers(0xFF8, 0x1008)
            offset = draw(st.one_of(near_border, st.integers(0, MMIO_LENGTH - 8)))
            ops.append((kind, MMIO + offset, size, draw(st.integers(0, (1 << 8 * size) - 1))))
        else:
            size = draw(st.sampled_from([1, 2, 4]))
            port = PORT + draw(st.integers(0, PORTS - 4))
            if kind in ("outs", "ins"):
                ops.append((kind, port, size, draw(st.sampled_from([1, 3, 17, 100]))))
            else:
                ops.append((kind, port, size, draw(st.integers(0, (1 << 8 * size) - 1))))
    return ops


def program(ops: list[tuple[str, int, int, int]], expected: Expected) -> bytes:
    code = b""
    results, target = RESULTS, TARGET
    for kind, address, size, value in ops:
        if kind == "out":
            code += asm64.out(address, size, value)
            expected.take(address, value.to_bytes(size, "little"))
        elif kind == "in":
            code += asm64.in_(address, size, results)
            expected.results.append(int.from_bytes(expected.give(address, size), "little"))
            results += 8
        elif kind == "outs":
            code += asm64.rep_outs(address, size, value, SOURCE)
            for i in range(value):
                expected.take(address, bytes(source_byte(i * size + j) for j in range(size)))
        elif kind == "ins":
            code += asm64.rep_ins(address, size, value, target)
            expected.inputs.append(b"".join(expected.give(address, size) for _ in range(value)))
            target += value * size
        elif kind == "store":
            code += asm64.store(address, size, value)
            expected.take(address, value.to_bytes(size, "little"))
        else:
            code += asm64.load(address, size, results)
            expected.results.append(int.from_bytes(expected.give(address, size), "little"))
            results += 8
    return code + asm64.HALT


def source_byte(i: int) -> int:
    return (i * 7 + 3) & 0xFF


@pytest.fixture(scope="module")
def machine() -> Machine:
    with Machine("8M", devices=False) as m:
        yield m


def run_program(m: Machine, ops: list[tuple[str, int, int, int]], attach: Callable) -> None:
    expected = Expected()
    code = program(ops, expected)
    m.load(code, load=CODE, entry=CODE, mode="long")
    m.memory.write(SOURCE, bytes(source_byte(i) for i in range(ROOM)))
    m.memory.fill(TARGET, 2 * ROOM, 0)
    model_pio, model_mmio, undo = attach(m)
    try:
        result = m.run(timeout=20)
    finally:
        undo()
    assert result.reason is StopReason.HALTED, str(result)
    seen = sorted_by_bus(model_pio.written + model_mmio.written)
    assert seen == sorted_by_bus(expected.written)
    got = [m.memory.read_u64(RESULTS + 8 * i) for i in range(len(expected.results))]
    assert got == expected.results
    inputs = b"".join(expected.inputs)
    assert m.memory.read(TARGET, len(inputs)) == inputs
    assert m.memory.read(TARGET + len(inputs), 64) == bytes(64)


def sorted_by_bus(written: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Order within a bus matters; the two models log separately."""
    return [[w for w in written if w[0] < 0x10000], [w for w in written if w[0] >= 0x10000]]


def as_devices(max_access: int) -> Callable:
    def attach(m: Machine) -> tuple[Model, Model, Callable[[], None]]:
        pio = Model(min(max_access, 4), "pio-model", PORT)
        mmio = Model(max_access, "mmio-model", MMIO)
        a = m.add_device(pio, pio=PORT, length=PORTS)
        b = m.add_device(mmio, mmio=MMIO, length=MMIO_LENGTH)
        return pio, mmio, lambda: (a.remove(), b.remove())

    return attach


def as_handlers(m: Machine) -> tuple[Model, Model, Callable[[], None]]:
    pio, mmio = Model(4, "p", PORT), Model(8, "m", MMIO)

    def serve(model: Model) -> Callable:
        def handler(access: object) -> None:
            if access.is_write:
                model.write(access.offset, access.size, access.value)
            else:
                access.value = model.read(access.offset, access.size)

        return handler

    a = m.on_pio(PORT, size=PORTS)(serve(pio))
    b = m.on_mmio(MMIO, MMIO_LENGTH)(serve(mmio))
    return pio, mmio, lambda: (a.remove(), b.remove())


RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@RELAXED
@given(ops=operations())
def test_device_and_guest_agree(machine: Machine, ops: list[tuple[str, int, int, int]]) -> None:
    run_program(machine, ops, as_devices(8))


@RELAXED
@given(ops=operations())
def test_a_byte_wide_device_sees_the_same_bytes(
    machine: Machine, ops: list[tuple[str, int, int, int]]
) -> None:
    run_program(machine, ops, as_devices(1))


@RELAXED
@given(ops=operations())
def test_handlers_see_the_same_bytes(
    machine: Machine, ops: list[tuple[str, int, int, int]]
) -> None:
    run_program(machine, ops, as_handlers)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 3, 4096])
@pytest.mark.parametrize("direction", ["outs", "ins"])
@pytest.mark.parametrize("attach", [as_devices(4), as_handlers], ids=["device", "handler"])
def test_rep_string_io(
    machine: Machine, attach: Callable, direction: str, count: int, size: int
) -> None:
    run_program(machine, [(direction, PORT + 4, size, count)], attach)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", range(0xFF8, 0x1001))
@pytest.mark.parametrize("kind", ["store", "load"])
def test_mmio_at_a_page_border(machine: Machine, kind: str, offset: int, size: int) -> None:
    value = 0x8877665544332211 & ((1 << 8 * size) - 1)
    run_program(machine, [(kind, MMIO + offset, size, value)], as_devices(8))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_wider_than_the_range_is_split_at_its_end(machine: Machine, size: int) -> None:
    log: list[tuple[int, int, int]] = []

    @machine.on_pio(0x500, size=1)
    def low(access: object) -> None:
        log.append((access.address, access.size, access.value))

    try:
        machine.load(asm64.out(0x500, size, 0x44332211) + asm64.HALT, load=CODE, mode="long")
        machine.run(timeout=5)
    finally:
        low.remove()
    assert log == [(0x500, 1, 0x11)]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_handler_without_size_takes_any_width(machine: Machine, size: int) -> None:
    log: list[tuple[int, int]] = []

    @machine.on_pio(0x500)
    def port(access: object) -> None:
        log.append((access.size, access.value))

    try:
        machine.load(asm64.out(0x500, size, 0x44332211) + asm64.HALT, load=CODE, mode="long")
        machine.run(timeout=5)
    finally:
        port.remove()
    assert log == [(size, 0x44332211 & ((1 << 8 * size) - 1))]
