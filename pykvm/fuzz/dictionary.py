"""Words for a fuzzer's dictionary: the constants that a program compares with."""

from __future__ import annotations

from pykvm.arch.disasm import disassemble
from pykvm.fuzz import layout as at
from pykvm.fuzz.program import Program

_MOST = 1000
_COMPARES = ("cmp", "sub", "xor", "test")
_SMALLEST = 0x100


def words(program: Program) -> list[bytes]:
    """Immediates of comparisons in the code, of 2 to 8 bytes as they lie in memory, each once."""
    found: dict[bytes, None] = {}
    for start, size in program.functions():
        code = program.bytes_at(start, size)
        for instruction in disassemble(code, start, 64):
            if not instruction.mnemonic.startswith((*_COMPARES, "mov")):
                continue
            operands = instruction.operands.split(", ")
            value = _number(operands[-1])
            if value is None or program.segment_at(value) or value >= at.SHARED_GVA:
                continue  # an address is no part of an input
            word = _word(value)
            if word is None:
                continue
            found[word] = None
            if len(found) >= _MOST:
                return list(found)
    return list(found)


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def _word(value: int) -> bytes | None:
    if -_SMALLEST < value < _SMALLEST:
        return None
    length = max(2, (value.bit_length() + (value < 0) + 7) // 8)
    length = 2 if length <= 2 else 4 if length <= 4 else 8
    if length == 8 and not 0 <= value < 1 << 64:
        return None
    return (value & (1 << 8 * length) - 1).to_bytes(length, "little")
