"""`MemoryMap`: guest memory as the native data path sees it."""

from __future__ import annotations

from weakref import WeakKeyDictionary, ref

from pykvm._native import ffi
from pykvm.memory import GuestMemory
from pykvm.memory_search import Span
from pykvm.typed import Any


class MemoryMap:
    """The regions of a `GuestMemory` at one moment, as `struct pykvm_map` (`c`).

    The pages of a map stay mapped while it lives, even if the memory is closed, so C code that uses
    an old one touches no foreign memory. `current` tells whether the regions are still those; if
    not, `MemoryMap.of` makes another.
    """

    def __init__(self, memory: GuestMemory) -> None:
        #: What the map was made from; never changed, replaced whole (see `GuestMemory.spans`).
        self.spans: tuple[Span, ...] = memory.spans
        self._views = [(span[0], span[1], span[3].view) for span in self.spans]
        self._held = [ffi.from_buffer("uint8_t[]", view) for _, _, view in self._views]
        self._marks = [ffi.from_buffer("uint8_t[]", span[3].marks) for span in self.spans]
        entries = ffi.new("struct pykvm_map_entry[]", max(len(self.spans), 1))
        for entry, (base, end, _), host, marks in zip(
            entries, self._views, self._held, self._marks, strict=False
        ):
            entry.gpa, entry.size, entry.host, entry.marks = base, end - base, host, marks
        self._entries = entries
        #: `struct pykvm_map *`, valid as long as this object.
        self.c: Any = ffi.new("struct pykvm_map *", {"count": len(self.spans), "entry": entries})
        #: The largest region, as (first address, end, view): where most buffers are.
        self.main: tuple[int, int, memoryview] = max(
            self._views, key=lambda found: found[1] - found[0], default=(0, -1, memoryview(b""))
        )

    @classmethod
    def of(cls, memory: GuestMemory) -> MemoryMap:
        """The current map of `memory`; one is shared by all who hold it."""
        known = _MAPS.get(memory)
        found = known() if known is not None else None
        if found is None or found.spans is not memory.spans:
            found = cls(memory)
            _MAPS[memory] = ref(found)
        return found

    def view(self, gpa: int, length: int) -> memoryview:
        """`length` bytes at guest-physical `gpa`, which lie in one region of this map."""
        for base, end, view in self._views:
            if base <= gpa and gpa + length <= end:
                return view[gpa - base : gpa - base + length]
        raise LookupError(f"{length} bytes at {gpa:#x} are not in one region of the map")


_MAPS: WeakKeyDictionary[GuestMemory, ref[MemoryMap]] = WeakKeyDictionary()
