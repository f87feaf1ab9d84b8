"""The native blk engine: limits, pauses, sizes, and a host that fails."""

from __future__ import annotations

import os
import pathlib
import struct
import threading
import time

import pytest
from blk_host import DATA, FLUSH, GET_ID, IN, IOERR, OK, OUT, SERIAL, EngineHost

from pykvm.datapath.limits import RateLimit
from pykvm.devices.block.backend import NativeFile


@pytest.fixture
def image(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(1 << 20))
    return path


@pytest.fixture(params=[True, False], ids=["io_uring", "threads"])
def uring(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_several_queues(image: pathlib.Path, uring: bool) -> None:
    host = EngineHost(image, queues=4, uring=uring).start()
    for index in range(4):
        data = bytes([index]) * 1024
        assert host.request(OUT, 2 * index, data, index=index)[0] == OK
    for index in range(4):
        assert host.request(IN, 2 * index, room=1024, index=3 - index)[1] == bytes([index]) * 1024
    assert host.request(GET_ID, room=20, index=2)[1] == SERIAL.ljust(20, b"\0")
    assert host.request(FLUSH, index=1)[0] == OK
    host.close()


def test_a_truncated_file_fails_reads_and_says_so(image: pathlib.Path, uring: bool) -> None:
    host = EngineHost(image, uring=uring).start()
    os.truncate(image, 4096)
    for _ in range(30):
        assert host.request(IN, 100, room=512)[0] == IOERR
    assert host.request(IN, 0, room=512)[0] == OK, "the rest goes on"
    assert len(host.failures) == 10, "only the first are reported"
    assert "a read at 0xc800 failed" in host.failures[0]
    assert host.engine.statistics["read"].errors == 30
    host.close()


@pytest.mark.parametrize("code", ["ENOSPC", "EBADF"])
def test_writes_that_the_host_refuses(image: pathlib.Path, uring: bool, code: str) -> None:
    device = "/dev/full" if code == "ENOSPC" else str(image)
    fd = os.open(device, os.O_WRONLY if code == "ENOSPC" else os.O_RDONLY)
    host = EngineHost(image, uring=uring, file=NativeFile(fd, fd, 0, 1 << 20)).start()
    assert host.request(OUT, 3, bytes(512))[0] == IOERR
    wanted = os.strerror(28 if code == "ENOSPC" else 9)
    until = time.monotonic() + 20
    while not host.failures and time.monotonic() < until:
        time.sleep(0.001)  # told by the engine's thread, after the request came back
    assert wanted in host.failures[0]
    assert not host.broken
    host.close()
    os.close(fd)


def test_a_limit_holds_and_a_pause_does_not_wait_for_it(image: pathlib.Path, uring: bool) -> None:
    limit = RateLimit(ops_per_s=1, burst_ops=2)
    host = EngineHost(image, uring=uring, limit=limit).start()
    assert host.request(IN, 0, room=512)[0] == OK
    assert host.request(IN, 0, room=512)[0] == OK
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(host.request(IN, 0, room=512)[0]))
    before = time.process_time()
    limit.charge(0)
    limit.charge(0)
    for _ in range(600):
        limit.charge(0)
    thread.start()
    while not limit.held:
        time.sleep(0.001)
    assert not done
    host.engine.pause()
    thread.join(20)
    assert done == [OK], "it was let go, and paid for"
    host.engine.resume()
    assert time.process_time() - before < 10, "nobody spins"
    thread = threading.Thread(target=lambda: done.append(host.request(IN, 0, room=512)[0]))
    held = limit.held
    thread.start()
    while limit.held == held:
        time.sleep(0.001)
    limit.set()
    host.engine.limits_changed()
    thread.join(20)
    assert done == [OK, OK], "new limits count at once"
    host.close()


def test_paused_means_that_nothing_is_touched(image: pathlib.Path, uring: bool) -> None:
    host = EngineHost(image, uring=uring).start()
    assert host.request(IN, 0, room=512)[0] == OK
    host.engine.pause()
    host.engine.pause()
    header = struct.pack("<IIQ", IN, 0, 1)
    host.memory.write(DATA, header)
    host.drivers[0].add([(DATA, 16, False), (DATA + 512, 512, True), (DATA + 16, 1, True)])
    host.kick()
    host.engine.resume()
    time.sleep(0.02)
    assert host.drivers[0].used() == []
    assert host.engine.in_flight == 0
    host.engine.resume()
    assert len(host.collect(1)) == 1
    host.close()


def test_another_size(image: pathlib.Path, uring: bool) -> None:
    host = EngineHost(image, uring=uring).start()
    assert host.request(IN, 2048, room=512)[0] == IOERR
    os.truncate(image, 2 << 20)
    host.engine.pause()
    host.engine.set_size(2 << 20, 2 << 20)
    host.engine.resume()
    assert host.request(IN, 2048, room=512) == (OK, bytes(512))
    host.close()


def test_a_stopped_engine_lets_go_of_the_disk(image: pathlib.Path, uring: bool) -> None:
    for _ in range(20):
        host = EngineHost(image, uring=uring).start()
        assert host.request(OUT, 1, bytes(512))[0] == OK
        host.close()
