"""Sizes as people write them: "64M", "1.5G", 4096."""

from __future__ import annotations

from pykvm.machine.result import MachineError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
MAX_MEMORY = 1 << 46  # bytes; far above what hosts have, below what makes KVM's tables overflow


def parse_size(text: str | int, what: str = "memory") -> int:
    """Bytes from "64M", "64MiB", "1.5G" or a number. Raises `MachineError`."""
    if isinstance(text, int):
        return text
    if text[:-1].isdecimal() and text[-1] in _UNITS:
        return int(text[:-1]) * _UNITS[text[-1]]
    import re  # for the rarer ways to write it

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise MachineError(f"{what} {text!r} is not a size; write it like 64M or 1G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def memory_size(text: str | int) -> int:
    """Guest RAM in bytes: a whole number of 4 KiB pages. Raises `MachineError`."""
    size = parse_size(text)
    if size < 4096 or size > MAX_MEMORY or size % 4096:
        raise MachineError(
            f"memory {text!r} is not possible; choose whole pages, 4K to {MAX_MEMORY >> 40}T"
        )
    return size
