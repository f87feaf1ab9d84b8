"""The native blk engine against the Python model: same statuses, same memory, same disk."""

from __future__ import annotations

import os
import pathlib
import random

import pytest
from blk_host import DATA, MEMORY, EngineHost, ModelHost, plan_batch

SECTORS = 256
BATCHES = 150


def prepare(tmp_path: pathlib.Path, random_: random.Random, size: int) -> list[pathlib.Path]:
    contents = random_.randbytes(size)
    paths = [tmp_path / "engine.img", tmp_path / "model.img"]
    for path in paths:
        path.write_bytes(contents)
    return paths


@pytest.mark.parametrize("hostile", [False, True], ids=["valid", "hostile"])
@pytest.mark.parametrize(
    ("cache", "uring", "packed", "in_order"),
    [
        ("writeback", True, False, False), ("writeback", False, True, False),
        ("none", True, True, True), ("none", False, False, False),
        ("unsafe", True, False, True), ("directsync", True, False, False),
        ("writethrough", False, False, False),
    ],
)  # fmt: skip
def test_the_same_as_the_model(
    tmp_path: pathlib.Path, cache: str, uring: bool, packed: bool, in_order: bool, hostile: bool
) -> None:
    random_ = random.Random(f"{cache}{uring}{packed}{hostile}")
    size = SECTORS * 512 - (100 if hostile and cache == "writeback" else 0)
    paths = prepare(tmp_path, random_, size)
    engine = EngineHost(paths[0], cache=cache, uring=uring, packed=packed, in_order=in_order)
    engine.engine.set_write_through(cache in ("directsync", "writethrough"))
    engine.start()
    model = ModelHost(paths[1], packed=packed, in_order=in_order)
    batches = BATCHES // 5 if cache in ("directsync", "writethrough") else BATCHES
    try:
        for batch in range(batches):
            plan = plan_batch(random_, SECTORS, random_.choice([1, 2, 8]), hostile)
            done = []
            for host, driver in ((engine, engine.drivers[0]), (model, model.driver)):
                for at, data in plan.memory:
                    host.memory.write(at, data)
                heads = {driver.add(buffers, table): n for n, (buffers, table) in
                         enumerate(plan.chains)}  # fmt: skip
                if host is engine:
                    engine.kick()
                    used = engine.collect(len(heads))
                else:
                    used = model.run()
                done.append({heads[head]: written for head, written in used})
            assert done[0] == done[1], f"batch {batch}: {plan.chains}"
            length = MEMORY - DATA
            ours, theirs = engine.memory.read(DATA, length), model.memory.read(DATA, length)
            assert ours == theirs, f"batch {batch}: memory differs; {engine.failures}"
            if batch % 10 == 9:
                assert paths[0].read_bytes() == paths[1].read_bytes(), f"batch {batch}: the disk"
        assert not engine.broken
        assert not model.device.broken
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert engine.engine.method == ("io_uring" if uring else "threads")
        for kind in engine.engine.statistics.kinds:
            ours_, theirs_ = engine.engine.statistics[kind], model.device.statistics[kind]
            assert (ours_.requests, ours_.bytes, ours_.errors) == (
                theirs_.requests, theirs_.bytes, theirs_.errors,
            ), kind  # fmt: skip
    finally:
        engine.close()
        model.close()


def test_memory_full_of_garbage_breaks_both_the_same(tmp_path: pathlib.Path) -> None:
    random_ = random.Random(5)
    paths = prepare(tmp_path, random_, SECTORS * 512)
    for _ in range(60):
        ring = random_.randbytes(16 * 16)
        if random_.random() < 0.7:  # likelier flags and addresses
            entries = bytearray(ring)
            for n in range(16):
                entries[16 * n + 3 : 16 * n + 8] = bytes(5)
                entries[16 * n + 10 : 16 * n + 12] = bytes(2)
                entries[16 * n + 12 : 16 * n + 14] = bytes([random_.randrange(8), 0])
                entries[16 * n + 14 : 16 * n + 16] = bytes([random_.randrange(20), 0])
            ring = bytes(entries)
        engine = EngineHost(paths[0], size=16)
        model = ModelHost(paths[1], size=16)
        junk = random_.randbytes(1 << 16)
        for host, driver in ((engine, engine.drivers[0]), (model, model.driver)):
            host.memory.write(0x200000, junk)
            host.memory.write(driver.desc, ring)
            for _ in range(4):
                driver.make_available(random_.randrange(16) if host is engine else 0)  # type: ignore[union-attr]
        # The same available entries in both.
        model.memory.write(
            model.driver.driver, engine.memory.read(engine.drivers[0].driver, 4 + 2 * 16)
        )
        engine.start()
        os.eventfd_write(engine.kicks[0], 1)
        model.device.kick(0)
        if model.device.broken:
            engine.collect(5)  # ends when it broke
            assert [str(error) for error in engine.broken] == [model.device.broken], (
                ring.hex(),
                engine.memory.read(engine.drivers[0].driver, 12).hex(),
                engine.queues[0].state(),
                model.device.queues[0].state(),
                engine.queues[0].c.error,
            )
        engine.engine.stop()
        assert bool(engine.broken) == bool(model.device.broken)
        assert engine.queues[0].next_avail == model.device.queues[0].next_avail
        assert engine.queues[0].next_used == model.device.queues[0].next_used
        engine.close()
        model.close()
