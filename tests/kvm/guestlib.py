"""Running the guests of `guests/` from tests, and what they and Python have to agree on."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pykvm import Machine, RunResult, images
from pykvm.devices.chardev import BufferChardev
from pykvm.devices.guestproto import GuestProtocol, Sync


@dataclass
class GuestRun:
    """One finished run of a guest."""

    image: images.GuestImage
    result: RunResult
    protocol: GuestProtocol
    areas: dict[str, bytes]
    """Parameters and results as the guest left them."""

    @property
    def text(self) -> str:
        return self.result.serial.decode()


def run_guest(
    name: str,
    *,
    timeout: float = 10,
    on_sync: Callable[[Sync], int | None] | None = None,
    prepare: Callable[[Machine], object] | None = None,
    machine: dict[str, Any] | None = None,
    **params: int | bytes,
) -> GuestRun:
    """Load guest `name` into a machine as its manifest wants it, set `params`, and run it.

    The guest protocol's device is attached. `prepare` may add devices; `machine` overrides the
    machine's arguments.
    """
    image = images.find(name)
    serial = BufferChardev()
    options = {"cpus": image.cpus, "irqchip": image.irqchip, "serial": serial, **(machine or {})}
    with Machine(**options) as m:
        protocol = GuestProtocol(m.memory, on_sync=on_sync)
        m.add_device(protocol, pio=GuestProtocol.PORT, length=GuestProtocol.LENGTH)
        m.load(name)
        image.patch(m.memory, **params)
        if prepare is not None:
            prepare(m)
        if image.expect.input:
            serial.feed(image.expect.input)
        result = m.run(timeout=timeout)
        areas = {area: image.read(m.memory, area) for area in [*image.params, *image.results]}
    return GuestRun(image, result, protocol, areas)


def lcg_after(turns: int, seed: int) -> int:
    """What `lcg()` in guests/lib/work.h gives: `turns` affine steps are one affine step."""
    mask = (1 << 64) - 1
    step, plus = 6364136223846793005, 1442695040888963407
    factor, offset = 1, 0
    while turns:
        if turns & 1:
            factor, offset = factor * step & mask, (offset * step + plus) & mask
        step, plus = step * step & mask, (plus * step + plus) & mask
        turns >>= 1
    return (factor * seed + offset) & mask


# The io guest's operations: guests/io/io.h.
IN, OUT, INS, OUTS, LOAD, STORE, LOADS, STORES, FILL, ADD = range(1, 11)
BACKWARDS, RING3 = 1, 2
OPERATION = struct.Struct("<BBHIQQQ")


@dataclass(frozen=True)
class Operation:
    """One `struct operation`: `size` bytes an element, `count` elements."""

    code: int
    size: int
    address: int
    count: int = 1
    value: int = 0
    buffer: int = 0
    flags: int = 0

    def pack(self) -> bytes:
        return OPERATION.pack(
            self.code, self.size, self.flags, self.count, self.address, self.value, self.buffer
        )


def values(program: bytes, n: int) -> list[int]:
    """The `value` fields of the first `n` operations, as the guest left them."""
    return [OPERATION.unpack_from(program, i * OPERATION.size)[5] for i in range(n)]
