"""Cut power: a guest's VMM is killed at a random moment, and every flushed record is on the disk.

The guest (guests/virtio-records) prints "safe n" when the disk has acknowledged the flush behind
record n; those lines go to a pipe. SIGKILL ends the VMM; a qemu-storage-daemon that has the image
is killed in the same moment, as it would go with the power, before the VMM or after it. What this
cannot show is the loss of the host's page cache: it is about what is still in our hands.
"""

from __future__ import annotations

import os
import pathlib
import random
import select
import signal
import subprocess
import sys
import time

import pytest
from debian_tools import need

from pykvm.devices.block import BlockBackend, BlockError, open_image

SECTORS = 4096
RECORD = 0x4345_5200_0000_0000
VMM = """
import os, sys
from pykvm import Machine, images
path, format, first, depth = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with Machine(board="microvm", memory="32M", serial=lambda data: os.write(1, data)) as m:
    disk = m.add_disk(path, format=format)
    print("pid", getattr(disk.backend, "pid", 0), flush=True)
    m.load("virtio-records")
    images.find("virtio-records").patch(m.memory, first=first, depth=depth)
    m.run(timeout=60)
"""


def opened(path: pathlib.Path, format: str) -> BlockBackend:
    """The image. Requests in the kernel (io_uring) keep its lock a little longer than the VMM."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return open_image(path, format=format, read_only=True)
        except BlockError as error:
            if "in use" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def cut(path: pathlib.Path, format: str, first: int, depth: int, chance: random.Random) -> int:
    """Runs a guest from record `first` on and cuts the power; the number of safe records."""
    with subprocess.Popen(
        [sys.executable, "-c", VMM, str(path), format, str(first), str(depth)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    ) as vmm:  # fmt: skip
        assert vmm.stdout is not None
        output = b""
        while b"safe" not in output:
            assert select.select([vmm.stdout], [], [], 60)[0], "the guest did not begin"
            data = os.read(vmm.stdout.fileno(), 65536)
            assert data, f"the VMM ended: {output!r}"
            output += data
        time.sleep(chance.uniform(0, 0.15))
        child = int(output.split()[1])
        victims = [vmm.pid, *([child] if child else [])]
        chance.shuffle(victims)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        output += vmm.stdout.read()
    # The last line may be cut off: "safe 12" of "safe 123".
    said = output.rpartition(b"\n")[0].decode().splitlines()
    safe = [int(line.split()[1]) for line in said if line.startswith("safe")]
    assert safe
    if format == "qcow2":
        tool = need("qemu-img", package="qemu-utils")
        done = subprocess.run([tool, "check", "-q", str(path)], capture_output=True, check=False)
        while b"another process" in done.stderr:  # the kernel is still clearing up
            time.sleep(0.01)
            done = subprocess.run(
                [tool, "check", "-q", str(path)], capture_output=True, check=False
            )
        # 3: clusters that were allocated and not used yet; no record is in them.
        assert done.returncode in (0, 3), done.stdout + done.stderr
        if done.returncode == 3:
            subprocess.run([tool, "check", "-q", "-r", "leaks", str(path)], check=True)
    disk = opened(path, format)
    try:
        for number in safe:
            at = number % SECTORS * 512
            found = int.from_bytes(disk.read(at, 8), "little") - RECORD
            # The guest may have gone round and written a later record to this sector.
            assert found >= number, f"record {number} is lost: {found}"
            assert found % SECTORS == number % SECTORS
            assert disk.read(at, 512) == (RECORD + found).to_bytes(8, "little") * 64
    finally:
        disk.close()
    return max(safe) + 1


def cuts(folder: pathlib.Path, format: str, rounds: int) -> int:
    """One image through many cuts; the number of the last safe record."""
    need("qemu-storage-daemon", package="qemu-system-common")
    path = folder / f"disk.{format}"
    tool = need("qemu-img", package="qemu-utils")
    size = str(SECTORS * 512)
    subprocess.run([tool, "create", "-q", "-f", format, str(path), size], check=True)
    chance = random.Random(rounds)
    number = 0
    for turn in range(rounds):
        number = cut(path, format, number, (1, 8, 3)[turn % 3], chance)
    return number


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_what_was_flushed_survives(format: str, tmp_path: pathlib.Path) -> None:
    assert cuts(tmp_path, format, 10) > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_what_was_flushed_survives_a_hundred_times(format: str, tmp_path: pathlib.Path) -> None:
    print(f"{format}: {cuts(tmp_path, format, 100)} records")
