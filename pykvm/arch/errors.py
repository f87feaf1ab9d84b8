"""Errors of the architecture room."""

from __future__ import annotations

from pykvm.errors import PykvmError


class ArchError(PykvmError):
    """A value that the x86 architecture has no encoding for; the message says which and why."""


class DescriptorError(ArchError):
    """A descriptor, gate, table or TSS that cannot be encoded or decoded."""


class PagingError(ArchError):
    """A mapping that no page table can express, or tables that do not fit their room."""


class UnknownRegister(ArchError, KeyError):
    """A register name that does not exist."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""
