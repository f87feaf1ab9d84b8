"""Bytes out of and into the buffers of a request, and sizes as people write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
PAGE = 4096


def gather(views: Iterable[memoryview], limit: int) -> bytes:
    """The first `limit` bytes of the buffers, or all where there are fewer."""
    parts: list[bytes] = []
    for view in views:
        if limit <= 0:
            break
        parts.append(bytes(view[:limit]))
        limit -= len(view)
    return b"".join(parts)


def scatter(views: Iterable[memoryview], data: bytes) -> int:
    """Puts `data` into the buffers, as much as fits; how many bytes that was."""
    done = 0
    for view in views:
        if done >= len(data):
            break
        piece = data[done : done + len(view)]
        view[: len(piece)] = piece
        done += len(piece)
    return done


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers in any order, with repetitions, as (first, count) of adjacent ones."""
    found: list[tuple[int, int]] = []
    first = last = -2
    for number in sorted(set(numbers)):
        if number != last + 1:
            if last >= 0:
                found.append((first, last - first + 1))
            first = number
        last = number
    if last >= 0:
        found.append((first, last - first + 1))
    return found


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, length) ranges in any order; those that touch or overlap become one."""
    found: list[tuple[int, int]] = []
    for start, length in sorted(ranges):
        if found and start <= found[-1][0] + found[-1][1]:
            begin, before = found[-1]
            found[-1] = begin, max(before, start + length - begin)
        else:
            found.append((start, length))
    return found


def parse_size(size: int | str, what: str) -> int:
    """Bytes from a number, "64M" or "1GiB". Raises `ValueError` with the remedy."""
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"{what} of {size} bytes is negative")
        return size
    text = size.strip().upper()
    text = text.removesuffix("IB") if text.endswith("IB") else text.removesuffix("B")
    unit = _UNITS.get(text[-1:], 1)
    digits = text[:-1] if unit > 1 else text
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise ValueError(f"{what} {size!r} is not a size; write it like 64M or 1G")
    return int(digits) * unit
