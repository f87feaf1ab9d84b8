"""`VirtioBalloon`: the memory balloon (VIRTIO 1.2, section 5.5).

Pages in the balloon, and free pages that the guest hints or reports, are given back to the host: a
hole is punched into the memory's file, in as few ranges as there are. The guest finds zeros there
when it takes them again. Where the guest poisons free pages with something else than zeros
(PAGE_POISON), hints and reports are taken note of and nothing is discarded (5.5.6.5, 5.5.6.6).
"""

from __future__ import annotations

import struct

from pykvm.datapath.statistics import IoStatistics
from pykvm.devices.base import Clock, MonotonicClock
from pykvm.devices.state import StateReader
from pykvm.devices.virtio.buffers import PAGE, gather, merged, parse_size, runs
from pykvm.devices.virtio.device import DRIVER_OK, Commit, VirtioDevice
from pykvm.devices.virtio.queue import Chain, QueueError, VirtQueue
from pykvm.memory import GuestMemory, MemoryAccessError

DEVICE_ID = 5
F_MUST_TELL_HOST, F_STATS_VQ, F_DEFLATE_ON_OOM, F_FREE_PAGE_HINT, F_PAGE_POISON, F_REPORTING = (
    1 << bit for bit in range(6)
)
INFLATE, DEFLATE, STATS, HINT, REPORT = range(5)
CMD_STOP, CMD_DONE, CMD_FIRST = 0, 1, 2  # values of free_page_hint_cmd_id (5.5.6.5)
#: Names of the guest's statistics, by tag (5.5.6.4); numbers of bytes, pages or events.
GUEST_STATISTICS = (
    "swap_in", "swap_out", "major_faults", "minor_faults", "free_memory", "total_memory",
    "available_memory", "disk_caches", "hugetlb_allocations", "hugetlb_failures",
)  # fmt: skip

_QUEUE_SIZE = 128
_MOST_PFNS = 1 << 18  # page numbers in one request: a gigabyte's
_MOST_STATS = 64
_ONES = 0xFFFF_FFFF
_CONFIG = struct.Struct("<4I")
_STAT = struct.Struct("<HQ")
_KINDS = ("inflate", "deflate", "statistics", "hint", "report")


class VirtioBalloon(VirtioDevice):
    """A balloon of guest memory.

    - `target`: how big it shall be, in bytes or as "64M"; settable at any time. The guest fills it
      as it can; `actual` is how far it has come.
    - `period`: seconds between two questions for `guest_statistics`; 0 asks never.
    - `deflate_on_oom`: the guest may take pages back rather than kill programs.
    - `must_tell_host`: the guest says so before it takes pages back.
    - `hinting`, `reporting`: offer free page hinting and free page reporting.
    """

    def __init__(
        self, target: int | str = 0, *, period: float = 0, deflate_on_oom: bool = True,
        must_tell_host: bool = False, hinting: bool = True, reporting: bool = True,
        clock: Clock | None = None, name: str = "virtio-balloon",
    ) -> None:  # fmt: skip
        features = F_STATS_VQ | F_PAGE_POISON
        features |= F_DEFLATE_ON_OOM * deflate_on_oom | F_MUST_TELL_HOST * must_tell_host
        features |= F_FREE_PAGE_HINT * hinting | F_REPORTING * reporting
        # The queues keep their numbers; those behind the last feature do not exist.
        queues = 5 if reporting else 4 if hinting else 3
        super().__init__(DEVICE_ID, [_QUEUE_SIZE] * queues, features)
        self.name = name
        #: Requests by kind; the bytes are those that the host got back.
        self.statistics = IoStatistics(_KINDS)
        #: What the guest last said of its memory, by the names in `GUEST_STATISTICS`.
        self.guest_statistics: dict[str, int] = {}
        self._memory: GuestMemory | None = None
        self._target = _pages(target)
        self._own_clock: MonotonicClock | None = None
        if clock is None:
            clock = self._own_clock = MonotonicClock()
        self._clock = clock
        self._timer = clock.timer(self._ask)
        self._period_ns = 0
        self._power_on()
        self.period = period

    def _power_on(self) -> None:
        self._actual = self._poison = 0
        self._command = CMD_DONE
        self._hinting = False  # between the guest's "start" and "stop"
        self._roles = list(range(len(self.queues)))
        self._held: Chain | None = None  # the statistics buffer, until the next question

    # -- the host's side -----------------------------------------------------------------------

    @property
    def target(self) -> int:
        """How big the balloon shall be, in bytes."""
        return self._target * PAGE

    @target.setter
    def target(self, size: int | str) -> None:
        pages = _pages(size)
        memory = self._memory
        if memory is not None and pages * PAGE > memory.size:
            raise ValueError(
                f"a balloon of {pages * PAGE >> 20} MiB is more than the guest's "
                f"{memory.size >> 20} MiB of memory"
            )
        with self.lock:
            if pages != self._target:
                self._target = pages
                self.config_changed()

    @property
    def actual(self) -> int:
        """How big the guest says the balloon is, in bytes."""
        return self._actual * PAGE

    @property
    def discarded(self) -> int:
        """Bytes that were given back to the host so far, by whatever way."""
        return sum(self.statistics[kind].bytes for kind in ("inflate", "hint", "report"))

    @property
    def period(self) -> float:
        """Seconds between two questions for statistics; 0: none."""
        return self._period_ns / 1e9

    @period.setter
    def period(self, seconds: float) -> None:
        if not 0 <= seconds <= 1e6:
            raise ValueError(f"a period of {seconds} seconds is not from 0 to a million")
        with self.lock:
            self._period_ns = int(seconds * 1e9)
            self._timer.cancel()
            self._arm()

    def update_statistics(self) -> bool:
        """Asks the guest for statistics now; False if it has not given a buffer for them."""
        with self.lock:
            return self._return_held()

    def hint_free_pages(self) -> bool:
        """Asks the guest for the pages that are free now; False if it cannot do that.

        They are discarded as they are named, and the guest's again when it has named all.
        """
        with self.lock:
            if not self.has & F_FREE_PAGE_HINT or not self.status & DRIVER_OK:
                return False
            self._command = max(CMD_FIRST, self._command + 1 & _ONES)
            self._hinting = False
            self.config_changed()
            return True

    # -- configuration (5.5.4) -----------------------------------------------------------------

    def config(self) -> bytes:
        """num_pages, actual, free_page_hint_cmd_id, poison_val."""
        return _CONFIG.pack(self._target, self._actual, self._command, self._poison)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """The driver writes `actual` and `poison_val`, in whatever pieces."""
        raw = bytearray(self.config())
        piece = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        for at, byte in enumerate(piece, offset):
            if 4 <= at < 8 or 12 <= at < 16:
                raw[at] = byte
        _, self._actual, _, self._poison = _CONFIG.unpack(raw)

    # -- requests ------------------------------------------------------------------------------

    def attach(self, transport: object, memory: GuestMemory) -> None:
        """As the base class; a target that is more than all memory is cut."""
        super().attach(transport, memory)  # type: ignore[arg-type]
        self._memory = memory
        self._target = min(self._target, memory.size // PAGE)

    def activated(self) -> None:
        """Finds out which queue is for what.

        The numbers are fixed (5.5.2), but Linux counts only the queues whose features it accepted.
        """
        super().activated()
        self._roles = list(range(len(self.queues)))
        bits = {STATS: F_STATS_VQ, HINT: F_FREE_PAGE_HINT, REPORT: F_REPORTING}
        wanted = [role for role in self._roles if role < STATS or self.has & bits[role]]
        ready = [queue.index for queue in self.queues if queue.ready]
        if ready == list(range(len(wanted))) and ready != wanted:
            self._roles = wanted + [role for role in self._roles if role not in wanted]
        self._arm()

    def handle(self, queue: VirtQueue) -> None:
        """Every request of a queue."""
        role = self._roles[queue.index]
        try:
            while (chain := queue.pop()) is not None:
                if role == STATS:
                    self._take_statistics(queue, chain)
                    continue
                if role in (INFLATE, DEFLATE):
                    freed = self._take_pages(chain, role == INFLATE)
                elif role == HINT:
                    freed = self._take_hint(chain)
                else:
                    freed = self._discard(self._ranges(chain)) if not self._poisoned else 0
                self.statistics[_KINDS[role]].add(freed)
                queue.push(chain, 0)
        finally:
            self.finish(queue)

    def _take_pages(self, chain: Chain, inflate: bool) -> int:
        if chain.readable_bytes > 4 * _MOST_PFNS:
            raise QueueError(f"{self.name}: {chain.readable_bytes} bytes of page numbers at once")
        if not inflate:
            return 0  # the pages come back by themselves when they are touched
        raw = gather(chain.readable, 4 * _MOST_PFNS)
        numbers = struct.unpack(f"<{len(raw) // 4}I", raw[: len(raw) & ~3])
        return self._discard([(first * PAGE, count * PAGE) for first, count in runs(numbers)])

    def _ranges(self, chain: Chain) -> list[tuple[int, int]]:
        """The memory of the buffers themselves, as (guest-physical, bytes)."""
        memory = self._memory
        assert memory is not None
        found = []
        for view in chain.writable:
            gpa = memory.address_of(view)
            if gpa is not None:
                found.append((gpa, len(view)))
        return merged(found)

    def _discard(self, ranges: list[tuple[int, int]]) -> int:
        """Gives memory back; what is none is skipped. Bytes."""
        memory = self._memory
        assert memory is not None
        freed = 0
        for gpa, length in ranges:
            try:
                freed += memory.discard(gpa, length)
            except MemoryAccessError:
                freed += self._discard_parts(memory, gpa, length)
        return freed

    def _discard_parts(self, memory: GuestMemory, gpa: int, length: int) -> int:
        self.complain(f"{self.name}: {length:#x} bytes at {gpa:#x} are not all memory")
        freed = 0
        for region in memory.regions:
            low, high = max(gpa, region.gpa), min(gpa + length, region.end)
            if low < high:
                freed += memory.discard(low, high - low)
        return freed

    # -- hints (5.5.6.5) -----------------------------------------------------------------------

    @property
    def _poisoned(self) -> bool:
        """A free page has contents that the guest expects to find again."""
        return bool(self.has & F_PAGE_POISON and self._poison)

    def _take_hint(self, chain: Chain) -> int:
        if chain.readable:
            raw = gather(chain.readable, 4)
            if len(raw) < 4:
                raise QueueError(f"{self.name}: a hint command of {len(raw)} bytes")
            (command,) = struct.unpack("<I", raw)
            if command == self._command and command >= CMD_FIRST:
                self._hinting = True
            elif command == CMD_STOP and self._hinting:
                self._hinting = False
                self._command = CMD_DONE  # the guest may use what it has named
                self.config_changed()
        # Pages that come for a command which is over are the guest's again (5.5.6.5.2).
        if not chain.writable or not self._hinting or self._poisoned:
            return 0
        return self._discard(self._ranges(chain))

    # -- statistics (5.5.6.3) ------------------------------------------------------------------

    def _take_statistics(self, queue: VirtQueue, chain: Chain) -> None:
        raw = gather(chain.readable, _STAT.size * _MOST_STATS)
        usable = len(raw) - len(raw) % _STAT.size
        found = {}
        for tag, value in _STAT.iter_unpack(raw[:usable]):
            if tag < len(GUEST_STATISTICS):
                found[GUEST_STATISTICS[tag]] = value
        self.guest_statistics = found
        self.statistics["statistics"].add()
        if self._held is not None:  # there should be one only
            queue.push(self._held, 0)
        self._held = chain

    def _return_held(self) -> bool:
        queue = self.queues[self._roles.index(STATS)]
        if self._held is None or not self.active or self._frozen or not queue.ready:
            return False
        held, self._held = self._held, None
        try:
            queue.push(held, 0)
            self.finish(queue)
        except QueueError as error:
            self.needs_reset(str(error))
        return True

    def _ask(self) -> None:
        with self.lock:
            self._return_held()
            self._arm()

    def _arm(self) -> None:
        if self._period_ns and self.status & DRIVER_OK:
            self._timer.arm(self._clock.now_ns() + self._period_ns)

    # -- life ----------------------------------------------------------------------------------

    def device_reset(self) -> None:
        """An empty balloon, as far as we know; the target is the host's."""
        self._timer.cancel()
        self._power_on()
        self.guest_statistics = {}

    def state(self) -> dict[str, object]:
        """The base class's and the balloon's."""
        return {
            **super().state(),
            "balloon_target": self._target,
            "balloon_actual": self._actual,
            "balloon_poison": self._poison,
            "balloon_command": self._command,
            "balloon_hinting": self._hinting,
            "balloon_held": [] if self._held is None else _words(self._held),
        }

    def take(self, take: StateReader) -> Commit:
        """Reads them back."""
        base = super().take(take)
        target, actual = (
            take.integer("balloon_target", _ONES),
            take.integer("balloon_actual", _ONES),
        )
        poison, command = (take.integer(f"balloon_{n}", _ONES) for n in ("poison", "command"))
        hinting = take.boolean("balloon_hinting")
        held = take.integers("balloon_held", 3, 0xFFFF)

        def commit() -> None:
            base()
            self._timer.cancel()
            memory = self._memory
            self._target = target if memory is None else min(target, memory.size // PAGE)
            self._actual, self._poison, self._command = actual, poison, command
            self._hinting = hinting
            self._held = Chain(*held) if held else None
            self._arm()

        return commit

    def close(self) -> None:
        """Ends the questions."""
        super().close()
        self._timer.cancel()
        if self._own_clock is not None:
            self._own_clock.close()


def _words(chain: Chain) -> list[int]:
    """What a request is to its queue: head, slots and position."""
    return [chain.head, chain.count, chain.position]


def _pages(size: int | str) -> int:
    pages = parse_size(size, "a balloon") // PAGE
    if pages > _ONES:
        raise ValueError(f"a balloon of {size} is more than 16 TiB")
    return pages
