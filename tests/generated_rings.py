"""Virtqueues from a seed: what a driver left in memory, correct or hostile, and what is asked.

Fast rather than elegant: a property test makes a hundred thousand of them.
"""

from __future__ import annotations

import struct
from random import Random

from pykvm.memory import GuestMemory

# Two regions that touch, and one behind a hole.
REGIONS = ((0, 0x4000), (0x4000, 0x4000), (0x10000, 0x1000))
HIGH = 0x11000
EVENT_IDX, INDIRECT, PACKED, IN_ORDER = 2, 4, 8, 16  # of the last word of a queue's state
D_NEXT, D_WRITE, D_INDIRECT, D_AVAIL, D_USED = 1, 2, 4, 1 << 7, 1 << 15
TABLES = (0x2000, 0x2000, 0x2100, 0x2105, 0x4000 - 24, 0x10000)
DATA = 0x5000

_DESCRIPTOR = struct.Struct("<QIHH")
_ADDRESSES = (
    0, 1, 0x3FFF, 0x4000 - 8, 0x7FFF, 0x8000, 0x8000 - 4, 0x10000, HIGH - 1, HIGH, HIGH - 16,
    0xFFFF, 1 << 32, (1 << 64) - 1, (1 << 64) - 16, 1 << 63, 0x2000, DATA,
)  # fmt: skip
_LENGTHS = (0, 0, 1, 2, 15, 16, 17, 24, 4096, 0x4000, 0x8000, 0x8001, 1 << 31, (1 << 32) - 1)
_FLAGS = (0, 1, 2, 3, 4, 5, 6, 7, 0x80, 0x8000, 0x8080, 0xFFFF, 1, 1, 1)


class Ring:
    """One queue: `state` for its `restore`, the bytes for memory, and a script.

    `areas`: what a device may write, as (guest-physical address, length).
    """

    __slots__ = ("areas", "later", "memory", "place", "script", "state")

    def __init__(self) -> None:
        self.memory: list[tuple[int, bytes]] = []  # first
        self.later: list[tuple[int, bytes]] = []  # between the two halves of the script
        self.script = 0
        self.areas: list[tuple[int, int]] = []
        self.place = 0
        self.state: list[int] = []

    def write(self, memory: GuestMemory) -> None:
        for gpa, data in self.memory:
            memory.write(gpa, data)


def _buffers(dice: Random, count: int, linked: int) -> list[list[int]]:
    """Descriptors of a correct chain: [address, length, flags, next]."""
    first_writable = dice.randrange(count + 1)
    found = []
    bits = dice.getrandbits(32)
    for i in range(count):
        bits = bits * 1103515245 + 12345 & 0xFFFFFFFF
        choice = bits >> 24
        if choice < 24:
            address, length = 0x4000 - 1 - (bits >> 8 & 15), 32  # crosses into the next region
        else:
            address, length = DATA + 4 * (bits >> 8 & 0x3FF), 1 + (choice & 0x7F)
        flags = (D_WRITE if i >= first_writable else 0) | (D_NEXT if i + 1 < count else 0)
        found.append([address, length, flags, linked + i + 1])
    return found


def _spoil(dice: Random, entry: list[int], size: int) -> None:
    """Makes one field of a descriptor something else."""
    kind = dice.getrandbits(3)
    if kind < 2:
        entry[0] = dice.choice(_ADDRESSES)
    elif kind < 4:
        entry[1] = dice.choice(_LENGTHS)
    elif kind < 6:
        entry[2] = dice.choice(_FLAGS)
    elif kind == 6:
        entry[3] = dice.choice((0, 1, size - 1, size, 0xFFFF, dice.randrange(size + 1)))
    else:
        entry[2] ^= D_NEXT


def _table(dice: Random, ring: Ring, split: bool, hostile: bool) -> tuple[int, int]:
    """An indirect table; its place and length."""
    place = dice.choice(TABLES)
    if dice.random() < 0.003:  # as long as may be: 1024 pieces, or some more or less
        count = dice.choice((1000, 1023, 1024, 1025))
        entries = _buffers(dice, count, 0)
        for entry in entries:
            entry[0] = DATA
        crossing = min(max(1024 - count + dice.choice((-1, 0, 1, 2)), 0), count)
        for entry in dice.choice((entries[:crossing], entries[count - crossing :])):
            entry[0], entry[1] = 0x3FFE, 4  # two pieces
        hostile = False
        place = 0x3000  # over the words of the buffers
    else:
        count = dice.randrange(1, 7)
        entries = _buffers(dice, count, 0)
    if hostile:
        for _ in range(dice.getrandbits(1) + 1):
            _spoil(dice, entries[dice.randrange(count)], count)
    if split:
        raw = b"".join([_DESCRIPTOR.pack(*entry) for entry in entries])
    else:  # ids are reserved, and so is NEXT
        raw = b"".join([_DESCRIPTOR.pack(e[0], e[1], e[3], e[2]) for e in entries])
    ring.memory.append((place, raw))
    length = len(raw)
    if hostile and not dice.getrandbits(2):
        length = dice.choice((0, 8, length - 1, length + 16, 16 * 1024, 16 * 1025, 0xFFFFFFF0))
    return place, length


def _chains(
    dice: Random, ring: Ring, size: int, split: bool, indirect: bool, hostile: bool
) -> list[list[list[int]]]:
    """What the driver offers: chains of descriptors that fit the ring."""
    chains: list[list[list[int]]] = []
    left = size
    for _ in range(dice.choice((0, 1, 1, 2, 2, 3, 4))):
        if not left:
            break
        if indirect and dice.random() < 0.4:
            place, length = _table(dice, ring, split, hostile and dice.random() < 0.5)
            chain = [[place, length, D_INDIRECT, 0]]
        else:
            chain = _buffers(dice, dice.randrange(1, min(left, 5) + 1), 0)
        left -= len(chain)
        chains.append(chain)
    return chains


def generate(dice: Random) -> Ring:
    """A ring; about 40 of 100 keep all the rules."""
    ring = Ring()
    word = dice.getrandbits(32)
    packed, event_idx, in_order = word & 1, word >> 1 & 1, word >> 2 & 1
    indirect = (word >> 3 & 7) != 0
    hostile = (word >> 6 & 7) > 2
    ring.script = word >> 12
    if packed:
        size = 1 + (word >> 9 & 15)
    else:
        size = 1 << (word >> 9 & 7) % 5
    ring.place = base = 0x1000 if dice.random() < 0.85 else dice.choice((0x3FC0, 0x3FF0, 0x10E00))
    flags = 1 | EVENT_IDX * event_idx | INDIRECT * indirect | PACKED * packed | IN_ORDER * in_order
    chains = _chains(dice, ring, size, not packed, indirect, hostile)
    (_packed if packed else _split)(dice, ring, size, base, flags, chains, hostile)
    if hostile and dice.random() < 0.03:  # rings anywhere, as a saved state may say
        ring.state[dice.randrange(1, 4)] = dice.choice(_ADDRESSES)
        ring.areas = []
    return ring


def _split(
    dice: Random, ring: Ring, size: int, base: int, flags: int,
    chains: list[list[list[int]]], hostile: bool,
) -> None:  # fmt: skip
    start = dice.choice((0, 0, 1, 5, 0xFFFE, 0xFFFF, dice.getrandbits(16)))
    order = list(range(size))
    dice.shuffle(order)
    table = [[DATA, 4, dice.choice(_FLAGS), dice.randrange(size)] for _ in range(size)]
    heads = []
    at = 0
    for chain in chains:
        slots = order[at : at + len(chain)]
        at += len(chain)
        heads.append(slots[0])
        for i, entry in enumerate(chain):
            entry[3] = slots[i + 1] if i + 1 < len(chain) else 0
            table[slots[i]] = entry
    if hostile:
        for _ in range(dice.getrandbits(2)):
            _spoil(dice, table[dice.randrange(size)], size)
    entries = [dice.getrandbits(16)] * size
    count = len(heads)
    for i, head in enumerate(heads):
        entries[(start + i) % size] = head
    index = start + count
    if hostile and dice.random() < 0.3:
        if dice.getrandbits(1):
            index = start + dice.choice((size, size + 1, -1, dice.getrandbits(16), count + 1))
        else:
            entries[dice.randrange(size)] = dice.choice((size, 0xFFFF, dice.randrange(size)))
    now = count - dice.randrange(count + 1)  # the driver shows some now, the rest later
    shown = start + now if index == start + count else index
    driver = base + 16 * size
    device = driver + 6 + 2 * size + 3 & ~3
    avail = [dice.getrandbits(1), shown & 0xFFFF, *entries]
    event = start + dice.choice((0, 0, 1, count, -1, dice.getrandbits(16))) & 0xFFFF
    ring.memory.append((base, b"".join([_DESCRIPTOR.pack(*entry) for entry in table])))
    ring.memory.append((driver, struct.pack(f"<{size + 3}H", *avail, event)))
    ring.memory.append((device, bytes(6 + 8 * size)))
    ring.later.append((driver + 2, struct.pack("<H", index & 0xFFFF)))
    ring.areas = [(device, 6 + 8 * size)]
    ring.state = [size, base, driver, device, start, start, start, flags]


def _packed(
    dice: Random, ring: Ring, size: int, base: int, flags: int,
    chains: list[list[list[int]]], hostile: bool,
) -> None:  # fmt: skip
    start, wrap = dice.randrange(size), dice.getrandbits(1)
    old = (0 if wrap else D_AVAIL | D_USED) if dice.getrandbits(3) else 0  # used in the last lap
    older = D_AVAIL | D_USED if wrap else 0  # slots before `start`: used in this one
    slots = [[DATA, 4, older if at < start else old, at] for at in range(size)]
    at, turn = start, wrap
    later: list[tuple[int, int]] = []
    now = dice.randrange(len(chains) + 1)
    for number, chain in enumerate(chains):
        name = dice.randrange(size)
        for i, entry in enumerate(chain):
            mark = D_AVAIL if turn else D_USED
            slots[at] = [entry[0], entry[1], entry[2] | mark, name]
            if i == 0 and number >= now:
                later.append((at, slots[at][2]))
                slots[at][2] = old if turn == wrap else older
            at += 1
            if at == size:
                at, turn = 0, 1 - turn
    if hostile:
        for _ in range(dice.getrandbits(2)):
            _spoil(dice, slots[dice.randrange(size)], size)
        if dice.random() < 0.2:
            slots[dice.randrange(size)][2] ^= dice.choice((D_AVAIL, D_USED, D_NEXT))
    driver = base + 16 * size
    device = driver + 4
    event = dice.choice((start | wrap << 15, at | turn << 15, dice.getrandbits(16)))
    mode = dice.choice((0, 1, 2, 2, 3, dice.getrandbits(16)))
    ring.memory.append((base, b"".join([_DESCRIPTOR.pack(s[0], s[1], s[3], s[2]) for s in slots])))
    ring.memory.append((driver, struct.pack("<HHI", event, mode, 0)))
    for slot, mark in later:
        ring.later.append((base + 16 * slot + 14, struct.pack("<H", mark)))
    ring.areas = [(base, 16 * size), (device, 4)]
    place = start | wrap << 15
    ring.state = [size, base, driver, device, place, place, place, flags]
