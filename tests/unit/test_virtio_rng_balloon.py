"""Entropy and balloon by a driver without a guest; what the host gets back is measured."""

from __future__ import annotations

import os
import pathlib
import struct

import pytest
from virtio_small import DATA, RAM, Driver, clock

from pykvm.devices.virtio.balloon import F_FREE_PAGE_HINT, F_PAGE_POISON, VirtioBalloon
from pykvm.devices.virtio.rng import RngError, VirtioRng
from pykvm.memory import GuestMemory

INFLATE, DEFLATE, STATS, HINT, REPORT = range(5)
PAGE = 4096


def blocks(memory: GuestMemory) -> int:
    """Bytes that guest memory takes on the host."""
    return sum(os.fstat(region.fd).st_blocks * 512 for region in memory.regions)


# -- entropy -------------------------------------------------------------------------------------


def test_random_bytes_of_the_host() -> None:
    driver = Driver(VirtioRng(clock=clock()))
    first, second = driver.ask(0, room=64), driver.ask(0, room=64)
    assert len(first) == len(second) == 64
    assert first != second
    assert first != b"\xcc" * 64
    assert driver.interrupts() == 1
    assert driver.device.statistics["read"].bytes == 128  # type: ignore[attr-defined]


def test_bytes_of_a_file_are_given_out_once(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(bytes(range(100)))
    device = VirtioRng(path, clock=clock())
    driver = Driver(device)
    assert driver.ask(0, room=60) == bytes(range(60))
    assert driver.ask(0, room=60) == bytes(range(60, 100))
    driver.give(0, room=60)
    assert driver.answers(0) == []
    assert device.exhausted
    assert not driver.broken


def test_a_pipe_that_has_nothing_yet(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    time = clock()
    device = VirtioRng(tmp_path / "pipe", clock=time)
    driver = Driver(device)
    driver.give(0, room=8)
    assert driver.answers(0) == []
    with open(tmp_path / "pipe", "wb", buffering=0) as pipe:
        pipe.write(b"entropy!")
        time.advance(100_000_000)
        assert driver.answers(0) == [b"entropy!"]
    device.close()


def test_sources_that_cannot_be(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path / "missing", tmp_path, "a\0b"):
        with pytest.raises(RngError, match="cannot be read"):
            VirtioRng(path)
    with pytest.raises(RngError, match="rate"):
        VirtioRng(rate=0)


def test_the_rate_is_kept() -> None:
    time = clock()
    driver = Driver(VirtioRng(rate=1000, clock=time))
    got = 0
    for _ in range(100):  # ten seconds
        time.advance(100_000_000)
        driver.forget()
        for _ in range(4):
            driver.give(0, room=500)
        got += sum(len(answer) for answer in driver.answers(0))
        driver.go()
    assert 8_000 <= got <= 11_000


def test_what_waited_for_the_rate_comes_by_itself() -> None:
    time = clock()
    driver = Driver(VirtioRng(rate=1000, clock=time))
    for _ in range(8):
        driver.give(0, room=200)
    before = len(driver.answers(0))
    assert before < 8
    time.advance(2_000_000_000)
    assert before + len(driver.answers(0)) == 8


def test_a_buffer_that_cannot_be_written_breaks_the_device() -> None:
    driver = Driver(VirtioRng(clock=clock()))
    driver.give(0, out=b"x" * 8)
    assert driver.broken


# -- the balloon ---------------------------------------------------------------------------------


def pfns(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def balloon(**options: object) -> tuple[Driver, VirtioBalloon]:
    device = VirtioBalloon(clock=clock(), **options)  # type: ignore[arg-type]
    driver = Driver(device)
    driver.memory.fill(DATA, 16 * PAGE, 1)  # what the requests use is there already
    driver.memory.fill(0xC0000, 64 * PAGE, 0x55)
    return driver, device


def test_inflation_gives_the_memory_back() -> None:
    driver, device = balloon()
    before = blocks(driver.memory)
    numbers = list(range(0xC0, 0xE0))
    driver.ask(INFLATE, pfns(*numbers[::-1], 0xC5))  # any order, a page twice
    assert blocks(driver.memory) == before - 32 * PAGE
    assert driver.memory.read(0xC0000, 32 * PAGE) == bytes(32 * PAGE)
    assert driver.memory.read_u8(0xE0000) == 0x55
    assert device.statistics["inflate"].bytes == device.discarded == 32 * PAGE
    driver.ask(DEFLATE, pfns(*numbers))
    driver.memory.write_u8(0xC0000, 1)  # the guest uses them again
    assert before - 32 * PAGE < blocks(driver.memory) <= before  # one page, or a large one


def test_target_and_actual() -> None:
    driver, device = balloon(target="64K")
    assert driver.transport.config(0, 4) == 16
    device.target = "256K"
    assert driver.interrupts() == 2
    assert driver.transport.config(0, 4) == 64
    driver.board.mmio.write(0xFEB0_0104, 4, 48)
    assert device.actual == 48 * PAGE
    driver.board.mmio.write(0xFEB0_0105, 1, 1)  # bytes are written, too
    assert device.actual == (48 + 256) * PAGE
    driver.board.mmio.write(0xFEB0_0100, 4, 7)  # not the driver's
    assert device.target == 256 << 10
    for wrong in ("2M", -1, "much"):
        with pytest.raises(ValueError, match="balloon"):
            device.target = wrong
    assert device.target == 256 << 10


def test_pages_that_are_no_memory_are_skipped() -> None:
    driver, device = balloon()
    driver.ask(INFLATE, pfns(0xFFFF_FFFF, RAM // PAGE, RAM // PAGE - 1, 0xC0))
    assert device.discarded == 1 * PAGE + PAGE
    assert not driver.broken


def test_too_many_page_numbers_break_the_device() -> None:
    memory = GuestMemory.anonymous([(0, 4 << 20)])
    device = VirtioBalloon(clock=clock())
    driver = Driver(device, memory=memory)
    queue = driver.queues[INFLATE]
    queue.add([(DATA, (1 << 20) + 4, False)])
    driver.transport.kick(INFLATE)
    assert driver.broken


def test_statistics_come_when_they_are_asked_for() -> None:
    time = clock()
    device = VirtioBalloon(period=2, clock=time)
    driver = Driver(device)
    driver.give(STATS, struct.pack("<HQHQHQ", 4, 1000, 5, 2000, 99, 3))
    assert device.guest_statistics == {"free_memory": 1000, "total_memory": 2000}
    assert driver.answers(STATS) == []  # kept until the next question
    time.advance(2_000_000_000)
    assert len(driver.answers(STATS)) == 1
    driver.give(STATS, struct.pack("<HQ", 4, 900))
    assert device.guest_statistics["free_memory"] == 900
    assert device.update_statistics()
    assert len(driver.answers(STATS)) == 1
    assert not device.update_statistics()
    device.period = 0
    assert time.armed == 0


def test_a_statistics_buffer_in_a_saved_state_is_given_back_later() -> None:
    driver, device = balloon()
    driver.give(STATS, struct.pack("<HQ", 4, 1))
    saved = driver.outer.save()
    driver.outer.reset()
    driver.outer.load(saved)
    assert device.update_statistics()
    assert len(driver.answers(STATS)) == 1


def test_hints_are_discarded_while_they_are_asked_for() -> None:
    driver, device = balloon()
    before = blocks(driver.memory)
    queue = driver.queues[HINT]

    def page(at: int) -> None:
        queue.add([(at, 4 * PAGE, True)])
        driver.transport.kick(HINT)
        assert len(queue.used()) == 1

    page(0xC0000)
    assert blocks(driver.memory) == before  # nobody has asked
    assert device.hint_free_pages()
    command = driver.transport.config(8, 4)
    assert command >= 2
    driver.ask(HINT, struct.pack("<I", command + 1))
    page(0xC0000)
    assert blocks(driver.memory) == before  # another command's
    driver.ask(HINT, struct.pack("<I", command))
    page(0xC0000)
    page(0xD0000)
    assert blocks(driver.memory) == before - 8 * PAGE
    driver.interrupts()
    driver.ask(HINT, struct.pack("<I", 0))
    assert driver.interrupts() & 2
    assert driver.transport.config(8, 4) == 1  # done: the guest's again
    page(0xC8000)
    assert blocks(driver.memory) == before - 8 * PAGE


def test_reports_are_discarded_in_one_piece() -> None:
    driver, device = balloon()
    before = blocks(driver.memory)
    queue = driver.queues[REPORT]
    queue.add([(0xD0000, 4 * PAGE, True), (0xC0000, 16 * PAGE, True), (0xE0000, 1, True)])
    driver.transport.kick(REPORT)
    assert len(queue.used()) == 1
    assert blocks(driver.memory) == before - 20 * PAGE
    assert device.statistics["report"].bytes == 20 * PAGE


def test_poisoned_pages_keep_their_contents() -> None:
    driver, device = balloon()
    assert driver.features & F_PAGE_POISON
    driver.board.mmio.write(0xFEB0_010C, 4, 0xAAAA_AAAA)
    before = blocks(driver.memory)
    queue = driver.queues[REPORT]
    queue.add([(0xC0000, 16 * PAGE, True)])
    driver.transport.kick(REPORT)
    assert len(queue.used()) == 1
    assert blocks(driver.memory) == before
    assert device.hint_free_pages()
    driver.ask(HINT, struct.pack("<I", driver.transport.config(8, 4)))
    driver.queues[HINT].add([(0xC0000, 16 * PAGE, True)])
    driver.transport.kick(HINT)
    assert blocks(driver.memory) == before


def test_a_driver_that_counts_only_the_queues_it_uses() -> None:
    """Linux: without hinting, reporting is the fourth queue."""
    device = VirtioBalloon(clock=clock())
    driver = Driver(device, without=F_FREE_PAGE_HINT, queues=[0, 1, 2, 3])
    driver.memory.fill(0xC0000, 16 * PAGE, 1)
    before = blocks(driver.memory)
    driver.queues[3].add([(0xC0000, 16 * PAGE, True)])
    driver.transport.kick(3)
    assert blocks(driver.memory) == before - 16 * PAGE
    assert not device.hint_free_pages()


def test_a_driver_that_goes_by_the_numbers() -> None:
    device = VirtioBalloon(clock=clock())
    driver = Driver(device, without=F_FREE_PAGE_HINT, queues=[0, 1, 2, 4])
    driver.memory.fill(0xC0000, 16 * PAGE, 1)
    before = blocks(driver.memory)
    driver.queues[4].add([(0xC0000, 16 * PAGE, True)])
    driver.transport.kick(4)
    assert blocks(driver.memory) == before - 16 * PAGE
