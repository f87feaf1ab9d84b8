"""Random descriptor chains in every queue of a device: what a hostile driver may ask for."""

from __future__ import annotations

import random
from collections.abc import Callable

from virtio_driver import NEXT, WRITE
from virtio_small import RAM, RING, Driver

EXTRA = 1 << 32  # where a second region may be
DATA = 0x40000
ODD_ADDRESSES = [0, 1, RING, RAM - 1, RAM, EXTRA, EXTRA + 8, 1 << 40, (1 << 64) - 1, 1 << 63]
ODD_LENGTHS = [0, 1, 3, 23, 24, 4096, RAM, 1 << 21, 1 << 31, (1 << 32) - 1]


def scramble(
    driver: Driver, dice: random.Random, blob: Callable[[random.Random], bytes]
) -> list[tuple[int, int]]:
    """Chains of `blob`s in all queues; the (address, length) of what the device may write."""
    writable = []
    memory = driver.memory
    for at in range(DATA, DATA + 0x8000, 128):
        memory.write(at, blob(dice))
    for queue in driver.queues.values():
        for index in range(queue.size):
            address = DATA + 128 * dice.randrange(256)
            length = dice.choice([4, 8, 10, 24, 64, 64, 128, 1100])
            if dice.random() < 0.03:
                address, length = dice.choice(ODD_ADDRESSES), dice.choice(ODD_LENGTHS)
            flags = dice.choice([0, NEXT, WRITE, WRITE, NEXT, 0])
            queue.write_descriptor(index, address, length, flags, dice.randrange(queue.size))
            if flags & WRITE:
                writable.append((address, length))
        for slot in range(queue.size):
            memory.write_u16(queue.driver + 4 + 2 * slot, dice.randrange(queue.size))
    for index, queue in driver.queues.items():
        state = driver.device.queues[index].state()
        ahead = dice.randrange(queue.size) if dice.random() < 0.97 else dice.getrandbits(16)
        memory.write_u16(queue.driver + 2, state[4] + ahead & 0xFFFF)
    return writable
