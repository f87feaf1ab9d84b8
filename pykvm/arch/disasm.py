"""Disassembly of guest code, with capstone loaded when it is first asked for (about 90 ms)."""

from __future__ import annotations

from functools import cache

from pykvm.arch.errors import ArchError
from pykvm.typed import Any, NamedTuple

MAX_INSTRUCTION = 15
"""The longest x86 instruction, in bytes."""


class Insn(NamedTuple):
    """One instruction: linear address, its bytes, mnemonic and operands."""

    address: int
    data: bytes
    mnemonic: str
    operands: str

    @property
    def size(self) -> int:
        """Bytes of the instruction."""
        return len(self.data)

    @property
    def text(self) -> str:
        """`mov eax, 1`: mnemonic and operands."""
        return f"{self.mnemonic} {self.operands}".strip()

    def __str__(self) -> str:
        return f"{self.address:#x}: {self.data.hex(' '):<30} {self.text}"


@cache
def _engine(bits: int) -> Any:
    import capstone

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    if bits not in modes:
        raise ArchError(f"x86 code is 16, 32 or 64 bits wide, not {bits}")
    return capstone.Cs(capstone.CS_ARCH_X86, modes[bits])


def disassemble(code: bytes, address: int, bits: int, *, count: int = 0) -> list[Insn]:
    """The instructions in `code`, which lies at linear `address`; Intel syntax.

    `bits` is the default operand size: 16, 32 or 64. At most `count` instructions when it is not 0.
    Stops before bytes that are no instruction (or are cut off): the sizes then add up to less than
    `len(code)`. Raises `ArchError` for other `bits`.
    """
    return [
        Insn(at, bytes(code[at - address : at - address + size]), mnemonic, operands)
        for at, size, mnemonic, operands in _engine(bits).disasm_lite(bytes(code), address, count)
    ]


def disassemble_one(code: bytes, address: int, bits: int) -> Insn | None:
    """The first instruction in `code`, or None when the bytes are not one."""
    found = disassemble(code[:MAX_INSTRUCTION], address, bits, count=1)
    return found[0] if found else None
