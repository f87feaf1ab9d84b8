"""Native rules: exits that the C loop finishes by itself, without Python.

A rule counts what it did. Writes can be dropped or appended to a ring of bytes that Python drains;
reads can be answered with a constant. What a rule does not cover, an access that reaches past the
rule's range, and a write into a full ring come to Python as ordinary exits.
"""

from __future__ import annotations

import errno
import os
import weakref

from pykvm._native import ffi, lib
from pykvm.errors import PykvmError
from pykvm.typed import Any, Literal


class RuleError(PykvmError):
    """A native rule that cannot be set: what is wrong with it."""


class Rule:
    """One rule; switch it off with `remove()`."""

    def __init__(self, rules: Rules, index: int) -> None:
        self._rules = rules
        self._index = index

    @property
    def _entry(self) -> Any:
        return self._rules._live().rule[self._index]

    @property
    def writes(self) -> int:
        """Elements written by guests that this rule finished."""
        return int(self._entry.writes)

    @property
    def reads(self) -> int:
        """Elements read by guests that this rule answered."""
        return int(self._entry.reads)

    @property
    def count(self) -> int:
        """Elements in both directions."""
        return self.writes + self.reads

    def drain(self) -> bytes:
        """Takes the bytes written since the last call out of the rule's ring."""
        ring = self._entry.ring
        if ring == ffi.NULL:
            raise RuleError('this rule keeps no bytes; make it with write="ring"')
        buffer = bytearray(ring.capacity)
        n = lib.pykvm_ring_drain(ring, ffi.from_buffer(buffer), len(buffer))
        return bytes(buffer[:n])

    def set_answer(self, value: int) -> None:
        """Changes the constant that reads get; takes effect with the next read."""
        self._entry.value = value

    def remove(self) -> None:
        """Switches the rule off; its accesses come to Python again. Counts stay readable."""
        lib.pykvm_rule_clear(self._rules._live(), self._index)


class Rules:
    """The native rules of a VM, shared by its vCPUs (`vm.rules`)."""

    def __init__(self) -> None:
        self._native: Any = lib.pykvm_rules_new()
        if self._native == ffi.NULL:
            raise MemoryError("no memory for the native rule table")
        self._finalizer = weakref.finalize(self, lib.pykvm_rules_free, self._native)

    def _live(self) -> Any:
        if not self._finalizer.alive:
            raise RuleError("the rules of a closed VM cannot be used")
        return self._native

    def close(self) -> None:
        """Frees the table. No vCPU may run any more."""
        self._finalizer()

    def _new(self, write: str | None, read: int | None, ring_size: int) -> int:
        if write is None and read is None:
            raise RuleError('a rule needs write="drop"|"ring", read=VALUE, or both')
        if write not in (None, "drop", "ring"):
            raise RuleError(f'write={write!r} is not a rule; use "drop", "ring" or None')
        if read is not None and not 0 <= read < 1 << 64:
            raise RuleError(f"read={read:#x} does not fit 64 bits")
        on_write = {None: lib.PYKVM_W_PYTHON, "drop": lib.PYKVM_W_DROP, "ring": lib.PYKVM_W_RING}
        on_read = lib.PYKVM_R_PYTHON if read is None else lib.PYKVM_R_CONSTANT
        index: int = lib.pykvm_rule_new(
            self._live(), on_write[write], on_read, read or 0, ring_size if write == "ring" else 0
        )
        if index < 0:
            raise RuleError(f"cannot add a native rule: {os.strerror(-index)}")
        return index

    def pio(
        self,
        port: int,
        length: int = 1,
        *,
        write: Literal["drop", "ring"] | None = None,
        read: int | None = None,
        ring_size: int = 1 << 16,
    ) -> Rule:
        """A rule for `length` ports from `port`. `ring_size` is bytes, a power of two."""
        index = self._new(write, read, ring_size)
        result = lib.pykvm_rule_pio(self._live(), index, port, length)
        if result < 0:
            lib.pykvm_rule_clear(self._live(), index)
            raise RuleError(f"no native rule for {length} ports at {port:#x}: {_why(result)}")
        return Rule(self, index)

    def mmio(
        self,
        gpa: int,
        length: int,
        *,
        write: Literal["drop", "ring"] | None = None,
        read: int | None = None,
        ring_size: int = 1 << 16,
    ) -> Rule:
        """A rule for `length` bytes from guest-physical address `gpa`."""
        index = self._new(write, read, ring_size)
        result = lib.pykvm_rule_mmio(self._live(), index, gpa, length)
        if result < 0:
            lib.pykvm_rule_clear(self._live(), index)
            raise RuleError(f"no native rule for {length:#x} bytes at {gpa:#x}: {_why(result)}")
        return Rule(self, index)


def _why(result: int) -> str:
    return _REASONS.get(-result) or os.strerror(-result)


_REASONS = {
    errno.EEXIST: "another rule is there; remove it first",
    errno.EINVAL: "the range is empty or too long",
    errno.ENOSPC: "there are 64 MMIO rules already",
}
