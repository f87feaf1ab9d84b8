"""Which crashes are the same, what the smallest input is, and what to say of each."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from pykvm.arch.disasm import disassemble_one
from pykvm.fuzz.result import Crash, Outcome
from pykvm.fuzz.ring3 import Ring3

_AROUND = 24  # bytes of code before the instruction that are tried


@dataclass
class Group:
    """Inputs that fail in the same place.

    `crash`: of the smallest; `inputs`: the files, smallest first; `listing`: code before and at the
    failing instruction; `stack`: who called, by name where it is known.
    """

    crash: Crash
    inputs: list[pathlib.Path] = field(default_factory=list)
    listing: list[str] = field(default_factory=list)
    stack: list[str] = field(default_factory=list)


def identity(crash: Crash) -> tuple[object, ...]:
    """What two crashes have in common that are one bug: kind, instruction, callers."""
    return crash.kind, crash.rip, crash.stack


def triage(target: Ring3, paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Group], list[str]]:
    """Runs each input: the groups of those that crash, largest first, and those that do not."""
    groups: dict[tuple[object, ...], Group] = {}
    harmless: list[str] = []
    for path in sorted(map(pathlib.Path, paths), key=lambda p: (p.stat().st_size, str(p))):
        result = target.execute(path.read_bytes()[: target.room])
        if result.crash is None:
            harmless.append(str(path))
            continue
        group = groups.setdefault(identity(result.crash), Group(result.crash))
        if not group.inputs:
            group.listing = listing(target, result.crash.rip)
            group.stack = [_named(target, address) for address in result.crash.stack]
        group.inputs.append(path)
    return sorted(groups.values(), key=lambda g: -len(g.inputs)), harmless


def listing(target: Ring3, rip: int) -> list[str]:
    """Some instructions before `rip` and the one there, marked."""
    code = target.read(rip - _AROUND, _AROUND + 15)
    if len(code) <= _AROUND:
        code = target.read(rip, 15)
        return _decoded(code, rip, rip) if code else []
    for skipped in range(_AROUND):  # the first start from which decoding meets rip
        lines = _decoded(code[skipped:], rip - _AROUND + skipped, rip)
        if lines and lines[-1].startswith("->"):
            return lines
    return _decoded(code[_AROUND:], rip, rip)


def _decoded(code: bytes, at: int, rip: int) -> list[str]:
    lines = []
    while at <= rip and code:
        instruction = disassemble_one(code, at, 64)
        if instruction is None:
            return []
        mark = "->" if at == rip else "  "
        lines.append(f"{mark} {at:#x}  {instruction.text}")
        if at == rip:
            return lines
        code, at = code[instruction.size :], at + instruction.size
    return []


def _named(target: Ring3, address: int) -> str:
    where = target.program.where(address)
    return f"{address:#x} <{where}>" if where else f"{address:#x}"


def minimise(target: Ring3, data: bytes, *, most: int = 20_000) -> bytes:
    """A smaller input with the same crash (or hang): parts left out, then bytes made zeros.

    At most `most` runs. An input that does neither comes back as it is.
    """
    first = target.execute(data)
    if first.outcome is Outcome.OK:
        return data
    runs = 0

    def same(candidate: bytes) -> bool:
        nonlocal runs
        if runs >= most:
            return False
        runs += 1
        result = target.execute(candidate)
        if first.crash is None or result.crash is None:
            return result.outcome is first.outcome
        return identity(result.crash) == identity(first.crash)

    return _plainer(_shorter(data, same), same)


def _shorter(data: bytes, same: Callable[[bytes], bool]) -> bytes:
    size = max(1, len(data) // 2)
    while data:
        at, before = 0, len(data)
        while at < len(data):
            candidate = data[:at] + data[at + size :]
            if same(candidate):
                data = candidate
            else:
                at += size
        if size > 1:
            size //= 2
        elif len(data) == before:
            break
    return data


def _plainer(data: bytes, same: Callable[[bytes], bool]) -> bytes:
    for at, value in enumerate(data):
        if value:
            candidate = data[:at] + b"\0" + data[at + 1 :]
            if same(candidate):
                data = candidate
    return data
