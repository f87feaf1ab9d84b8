"""What only the native queue has: its map of guest memory, the interface for engines."""

from __future__ import annotations

import gc
import os
import weakref

import pytest
from virtio_rings import DriverQueue

from pykvm._native import ffi, lib
from pykvm.datapath.map import MemoryMap
from pykvm.datapath.queue import NativeQueue
from pykvm.devices.virtio.queue import QueueError
from pykvm.memory import GuestMemory, MemoryRegion

DATA = 0x8000


def made(memory: GuestMemory, size: int = 8) -> tuple[DriverQueue, NativeQueue]:
    driver = DriverQueue(memory, 0x1000, size)
    queue = NativeQueue(0, 1024)
    queue.memory = memory
    queue.size, queue.indirect = size, True
    queue.desc, queue.driver, queue.device = driver.desc, driver.driver, driver.device
    queue.ready = True
    return driver, queue


def test_one_map_for_all_queues_until_the_regions_change() -> None:
    memory = GuestMemory.anonymous([(0, 0x10000), (0x20000, 0x1000)])
    _, first = made(memory)
    _, second = made(memory)
    assert first.map is second.map is MemoryMap.of(memory)
    assert first.map is not None
    assert first.map.c.count == 2
    assert not first.outdated()
    memory.add(MemoryRegion(0x30000, 0x1000))
    assert first.outdated()
    assert MemoryMap.of(memory).c.count == 3
    assert first.pop() is None, "it looks, and takes the new regions over"
    assert not first.outdated()
    assert second.outdated()


def test_buffers_in_memory_that_was_added_later() -> None:
    memory = GuestMemory.anonymous([(0, 0x10000)])
    driver, queue = made(memory)
    driver.add([(0x30000, 16, True)])
    with pytest.raises(QueueError, match="not all memory"):
        queue.pop()
    memory.add(MemoryRegion(0x30000, 0x1000))
    chain = queue.pop()
    assert chain is not None
    chain.writable[0][:2] = b"ok"
    assert memory.read(0x30000, 2) == b"ok"


def test_closed_memory_is_an_error_and_views_stay_valid() -> None:
    memory = GuestMemory.anonymous([(0, 0x10000)])
    driver, queue = made(memory)
    driver.add([(DATA, 16, True)])
    driver.add([(DATA, 16, True)])
    chain = queue.pop()
    assert chain is not None
    memory.close()
    chain.writable[0][:] = b"x" * 16
    with pytest.raises(QueueError, match="no regions"):
        queue.pop()
    with pytest.raises(QueueError, match="no regions"):
        queue.push(chain, 16)
    with pytest.raises(QueueError, match="no regions"):
        queue.want_kicks(True)


def test_a_reset_or_closed_queue_keeps_no_memory() -> None:
    memory = GuestMemory.anonymous([(0, 0x10000)])
    for end in (NativeQueue.reset, NativeQueue.close):
        _, queue = made(memory)
        known = weakref.ref(MemoryMap.of(memory))
        assert known() is not None
        end(queue)
        gc.collect()
        assert known() is None
        assert queue.c.map == ffi.NULL
        assert queue.pop() is None


def test_fields_that_change_while_the_queue_is_in_use() -> None:
    memory = GuestMemory.anonymous([(0, 0x10000)])
    driver, queue = made(memory)
    driver.add([(DATA, 16, True)])
    queue.size = 0
    for attempt in (queue.pop, lambda: queue.want_kicks(True)):
        with pytest.raises(QueueError, match="a ring of 0 entries"):
            attempt()
    queue.size, queue.desc = 8, 0xFFFF8
    with pytest.raises(QueueError, match="not all memory"):
        queue.pop()
    queue.desc = driver.desc
    assert queue.pop() is not None


def test_batches_of_more_than_fits_into_the_arrays() -> None:
    memory = GuestMemory.anonymous([(0, 1 << 20)])
    driver, queue = made(memory, 256)
    for n in range(256):
        count = 1000 if n < 3 else 1 + n % 5
        table = 0x40000 + 0x4000 * min(n, 3) + 128 * n
        driver.add([(DATA + i, 1, False) for i in range(count)], indirect=table)
    chains = queue.pop_batch(1024)
    assert [len(chain.readable) for chain in chains[:5]] == [1000, 1000, 1000, 4, 5]
    assert len(chains) == 256
    queue.push_batch([(chain, n) for n, chain in enumerate(chains)])
    assert [written for _, written in driver.used()] == list(range(256))


def test_a_bad_chain_behind_good_ones() -> None:
    memory = GuestMemory.anonymous([(0, 0x10000)])
    driver, queue = made(memory)
    good = driver.add([(DATA, 1, False)])
    driver.add([(1 << 40, 1, False)])
    assert [chain.head for chain in queue.pop_batch()] == [good]
    with pytest.raises(QueueError, match="0x10000000000"):
        queue.pop_batch()


def test_more_in_flight_than_the_ring_has() -> None:
    memory = GuestMemory.anonymous([(0, 0x10000)])
    driver, queue = made(memory)
    for _ in range(8):
        driver.add([(DATA, 1, False)])
    assert len(queue.pop_batch()) == 8
    driver.make_available(0)  # it was not given back
    with pytest.raises(QueueError, match="9 entries are available in a ring of 8"):
        queue.pop()


def test_the_interface_for_engines() -> None:
    memory = GuestMemory.anonymous([(0, 0x10000), (0x10000, 0x1000)])
    driver, queue = made(memory)
    head = driver.add([(DATA, 16, False), (0x10000 - 4, 8, True)])
    chain = ffi.new("struct pykvm_chain *")
    iov = ffi.new("struct iovec[]", lib.PYKVM_VQ_BUFFERS)
    chain.iov = iov
    assert lib.pykvm_vq_pop(queue.c, chain) == 1
    assert (chain.id, chain.readable, chain.writable, chain.writable_bytes) == (head, 1, 2, 8)
    low, high = memory.regions
    assert int(ffi.cast("uintptr_t", iov[1].iov_base)) == low.host_address + low.size - 4
    assert int(ffi.cast("uintptr_t", iov[2].iov_base)) == high.host_address
    assert lib.pykvm_vq_pop(queue.c, chain) == 0
    assert lib.pykvm_vq_push(queue.c, chain, 8) == 0
    assert driver.used() == [(head, 8)]
    driver.add([(DATA, 0, False)])
    assert lib.pykvm_vq_pop(queue.c, chain) == -1
    assert str(queue.error()) == "queue 0: a buffer of no bytes at 0x8000"


def test_rings_that_c_refuses() -> None:
    memory = GuestMemory.anonymous([(0, 0x10000)])
    for field, value in (("size", 3), ("size", 0), ("desc", 0x1008), ("device", 0x20000)):
        _, queue = made(memory)
        setattr(queue.c, field, value)
        assert lib.pykvm_vq_start(queue.c) == -1
        assert queue.c.error
    _, queue = made(memory)
    assert lib.pykvm_vq_start(queue.c) == 0


def test_signals() -> None:
    isr = ffi.new("uint32_t *", 2)
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        signal = ffi.new("struct pykvm_vq_signal *", (isr, 1, fd))
        lib.pykvm_vq_signal(signal)
        lib.pykvm_vq_signal(signal)
        assert isr[0] == 3
        assert os.eventfd_read(fd) == 2
        os.eventfd_write(fd, (1 << 64) - 2)
        lib.pykvm_vq_signal(signal)  # full: it is signalled already
        signal.fd, signal.isr = -1, ffi.NULL
        lib.pykvm_vq_signal(signal)
    finally:
        os.close(fd)
