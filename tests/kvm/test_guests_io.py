"""The io guest against a model: random lists of port and MMIO accesses, in ring 0 and ring 3.

The device's bytes depend on their address and on how often that address was read, so a byte that
is read twice, left out or taken from the wrong place shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from guestlib import (
    ADD,
    BACKWARDS,
    FILL,
    IN,
    INS,
    LOAD,
    LOADS,
    OUT,
    OUTS,
    RING3,
    STORE,
    STORES,
    Operation,
    run_guest,
    values,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pykvm import Machine, images

PORT, PORTS = 0x300, 16
MMIO, PAGES = 0xD000_0000, 4
DATA = images.find("io").params["data"]
READERS, STRINGS = {IN, LOAD}, {INS, OUTS, LOADS, STORES, FILL}


@dataclass
class TestDevice:
    """Gives bytes that say where and when they were read; notes every byte it is given."""

    __test__ = False
    base: int
    name: str = "test-device"
    access_sizes: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    max_access: int = 8
    turns: dict[int, int] = field(default_factory=dict)
    written: list[tuple[int, int]] = field(default_factory=list)

    def give(self, address: int) -> int:
        turn = self.turns[address] = self.turns.get(address, 0) + 1
        return (address * 31 + turn * 57 + 5) & 0xFF

    def take(self, address: int, data: bytes) -> None:
        self.written += [(address + i, byte) for i, byte in enumerate(data)]

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(
            bytes(self.give(self.base + offset + i) for i in range(size)), "little"
        )

    def write(self, offset: int, size: int, value: int) -> None:
        self.take(self.base + offset, value.to_bytes(size, "little"))


class Model:
    """What the guest should read and the device be given, computed from the list alone."""

    def __init__(self, data: bytes) -> None:
        self.device = TestDevice(0)
        self.data = bytearray(data)
        self.values: list[int] = []

    def get(self, address: int, size: int) -> bytes:
        return bytes(self.device.give(address + i) for i in range(size))

    def perform(self, op: Operation) -> None:
        value = op.value
        step = -op.size if op.flags & BACKWARDS else op.size
        for i in range(op.count):
            address = op.address + (0 if op.code in (INS, OUTS) else i * step)
            at = op.buffer - DATA.address + i * step
            if op.code in (IN, LOAD):
                value = int.from_bytes(self.get(address, op.size), "little")
            elif op.code in (INS, LOADS):
                self.data[at : at + op.size] = self.get(address, op.size)
            elif op.code in (OUTS, STORES):
                self.device.take(address, self.data[at : at + op.size])
            else:
                add = int.from_bytes(self.get(address, op.size), "little") if op.code == ADD else 0
                low = (value + add) & (1 << 8 * op.size) - 1
                self.device.take(address, low.to_bytes(op.size, "little"))
        self.values.append(value)


def run_and_compare(program: list[Operation]) -> None:
    data = bytes((i * 7 + i // 251) & 0xFF for i in range(DATA.size))
    ports, memory = TestDevice(PORT), TestDevice(MMIO)
    memory.turns, memory.written = ports.turns, ports.written  # one history, in order

    def prepare(m: Machine) -> None:
        m.add_device(ports, pio=PORT, length=PORTS)
        m.add_device(memory, mmio=MMIO, length=PAGES * 4096)

    run = run_guest(
        "io",
        prepare=prepare,
        quiet=1,
        data=data,
        program=b"".join(op.pack() for op in program) + bytes(32),
    )
    assert run.result.exit_code == 0, run.text
    model = Model(data)
    for op in program:
        model.perform(op)
    assert values(run.areas["program"], len(program)) == model.values
    assert run.areas["data"] == model.data
    assert ports.written == model.device.written
    assert ports.turns == model.device.turns


def test_every_port_width_and_repeat_count() -> None:
    program = []
    for size in (1, 2, 4):
        program += [Operation(OUT, size, PORT + 4, value=0x8899_AABB), Operation(IN, size, PORT)]
        for count in (0, 1, 3, 4096):
            program.append(Operation(INS, size, PORT + 8, count, buffer=DATA.address + 1))
            program.append(Operation(OUTS, size, PORT + 12, count, buffer=DATA.address + 1))
    run_and_compare(program)


@pytest.mark.parametrize("ring", [0, RING3])
def test_every_mmio_width_across_every_byte_of_a_page_border(ring: int) -> None:
    program = []
    for size in (1, 2, 4, 8):
        for before in range(size + 1):
            at = MMIO + 0x1000 - before
            program.append(Operation(STORE, size, at, value=0x8877_6655_4433_2211, flags=ring))
            program.append(Operation(LOAD, size, at, flags=ring))
            program.append(Operation(ADD, size, at, value=0xFEDC_BA98_7654_3210, flags=ring))
    run_and_compare(program)


SIZES = {code: (1, 2, 4) if code <= OUTS else (1, 2, 4, 8) for code in range(IN, ADD + 1)}


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    code = draw(st.integers(IN, ADD))
    size = draw(st.sampled_from(SIZES[code]))
    count = draw(st.integers(0, 40)) if code in STRINGS else 1
    flags = draw(st.sampled_from([0, RING3])) if code > OUTS else 0
    if code in STRINGS:
        flags |= draw(st.sampled_from([0, BACKWARDS]))
    reach = max(count - 1, 0) * size if code in STRINGS else 0
    back = reach if flags & BACKWARDS else 0  # a backward string starts at its highest element
    if code <= OUTS:
        address = PORT + draw(st.integers(0, PORTS - size))
    else:  # often near the border of two pages
        near = st.sampled_from([0x1000, 0x2000, 0x3000]).flatmap(
            lambda page: st.integers(page - 16, page + 8)
        )
        address = MMIO + draw(st.one_of(near, st.integers(0x400, 0x3800)))
        address = max(address, MMIO + back)
        address = min(address, MMIO + PAGES * 4096 - size - (reach - back))
    offset = draw(st.integers(back, DATA.size - size - (reach - back)))
    return Operation(
        code,
        size,
        address,
        count,
        draw(st.integers(0, (1 << 64) - 1)),
        DATA.address + offset,
        flags,
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@example([Operation(LOADS, 8, MMIO + 0xFFD, 5, 0, DATA.address + 0xFFB)])
@example([Operation(STORES, 8, MMIO + 0x1FFF, 3, 0, DATA.address + 0xFFF, RING3)])
@given(st.lists(operations(), min_size=1, max_size=25))
def test_what_the_guest_moves_is_what_the_device_sees(program: list[Operation]) -> None:
    run_and_compare(program)


def test_an_operation_that_does_not_exist_is_refused() -> None:
    for bad in (Operation(11, 1, 0), Operation(IN, 8, 0), Operation(OUTS, 1, 0, flags=RING3)):
        run = run_guest("io", quiet=1, program=Operation(FILL, 1, MMIO).pack() + bad.pack())
        assert run.result.value == 1
        assert run.text == "operation 1 is not valid\n"
