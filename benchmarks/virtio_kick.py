"""How long a kick takes to its handler and back, and what an interrupt costs.

`python benchmarks/virtio_kick.py`

The guest writes the doorbell and waits for a word that the device's handler changes, again and
again: the time for one turn is guest -> handler -> guest. Ways: "exit" handles the kick in the
vCPU's thread, as it comes; "thread" has KVM signal the I/O thread (ioeventfd). "interrupt" is what
the device pays to interrupt its driver. Nothing is asserted.
"""

from __future__ import annotations

import statistics
import struct
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pykvm import Machine  # noqa: E402
from pykvm.devices.virtio import VirtioDevice, VirtioMmio  # noqa: E402
from pykvm.devices.virtio.queue import VirtQueue  # noqa: E402

TURNS, ROUNDS = 1000, 5
CODE, WORD, RINGS = 0x1_0000, 0x9000, 0x10_0000


class Counter(VirtioDevice):
    """Counts kicks in guest memory."""

    name = "counter"

    def __init__(self) -> None:
        super().__init__(4, [16])
        self.count = 0

    def handle(self, queue: VirtQueue) -> None:
        """One more."""
        self.count += 1
        assert queue.memory is not None
        queue.memory.write_u32(WORD, self.count)


def code(doorbell: int, wide: bool) -> bytes:
    """Writes the doorbell, waits for the word; TURNS times, then cli; hlt."""
    start = b"\x48\xbb" + struct.pack("<Q", doorbell) + b"\x48\xbf" + struct.pack("<Q", WORD)
    start += b"\xb9" + struct.pack("<I", TURNS) + b"\x31\xc0\x31\xd2"
    store = b"\x89\x03" if wide else b"\x66\x89\x03"
    body = store + b"\xff\xc2\x39\x17\x75\xfc\x39\xca"
    return start + body + b"\x75" + struct.pack("<b", -len(body) - 2) + b"\xfa\xf4"


def measure(board: str, direct: bool) -> tuple[float, float]:
    """(us a turn, us an interrupt)"""
    device = Counter()
    with Machine(board=board, memory="16M") as machine:
        placed = machine.add_virtio(device, direct=direct, io_thread=None if direct else False)
        machine.load(b"\xf4", load=CODE, entry=CODE, mode="long")
        if isinstance(placed, VirtioMmio):
            assert placed.address is not None
            program = code(placed.address + 0x50, True)
        else:
            bar = placed.bars[4]
            assert bar is not None
            assert bar.address is not None
            program = code(bar.address + 0x3000, False)
        machine.load(program, load=CODE, entry=CODE, mode="long")
        write = placed._set_status
        write(3)
        device.driver_features = 1 << 32
        write(11)
        queue = device.queues[0]
        queue.desc, queue.driver, queue.device = RINGS, RINGS + 0x1000, RINGS + 0x2000
        device.enable_queue(queue)
        write(15)
        started = time.perf_counter()
        result = machine.run(timeout=60)
        turn = (time.perf_counter() - started) / TURNS
        assert device.count == TURNS, result.reason
        started = time.perf_counter()
        for _ in range(TURNS):
            placed.queue_interrupt(0)
        return turn * 1e6, (time.perf_counter() - started) / TURNS * 1e6


def main() -> None:
    """Prints the medians."""
    print("board    way     turn us  interrupt us")
    for board in ("microvm", "pc"):
        for direct in (False, True):
            samples = [measure(board, direct) for _ in range(ROUNDS)]
            turn, interrupt = (statistics.median(column) for column in zip(*samples, strict=True))
            way = "thread" if direct else "exit"
            print(f"{board:8} {way:7} {turn:7.1f} {interrupt:13.1f}")


if __name__ == "__main__":
    main()
