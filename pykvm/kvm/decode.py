"""One x86 instruction taken apart with capstone: for the texts of exits.

capstone takes about 60-90 ms to import, so it is imported when the first instruction is decoded.
"""

from __future__ import annotations

from functools import cache, lru_cache

from pykvm.typed import Any, NamedTuple


class MemoryOperand(NamedTuple):
    """An explicit memory operand. Register names are capstone's ("rbx", "si"), "" for none."""

    segment: str
    """The overriding segment register, "" for the default one."""
    base: str
    index: str  # type: ignore[assignment]  # shadows tuple.index
    scale: int
    displacement: int
    size: int
    """Bytes accessed."""
    reads: bool
    writes: bool


class Instruction(NamedTuple):
    """A decoded instruction."""

    address: int
    """Where it lies (guest-virtual, as given)."""
    code: bytes
    mnemonic: str
    operands: str
    memory: tuple[MemoryOperand, ...]
    source: str | int | None
    """What a two-operand instruction stores: a register's name or an immediate, else None."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.code)

    @property
    def text(self) -> str:
        """As an assembler has it, in Intel syntax: "out dx, al"."""
        return f"{self.mnemonic} {self.operands}".rstrip()


_ONLY_READ = frozenset(
    ("bt", "call", "cmp", "div", "idiv", "imul", "jmp", "lgdt", "lidt", "mul", "push", "test")
)


@lru_cache(maxsize=4096)
def decode(code: bytes, address: int, bits: int) -> Instruction | None:
    """The first instruction in `code`, or None if it is none (or is cut off).

    `address` is where `code` lies (guest-virtual); `bits` is the mode's size: 16, 32 or 64.
    """
    for found in _engine(bits).disasm(code, address, 1):
        return _convert(found)
    return None


def disassemble(code: bytes, address: int, bits: int) -> str:
    """The text of the first instruction in `code`, "" if it is none. As `decode`."""
    found = decode(code, address, bits)
    return found.text if found else ""


@cache
def _engine(bits: int) -> Any:
    import capstone

    modes = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
    engine = capstone.Cs(capstone.CS_ARCH_X86, modes[bits])
    engine.detail = True
    return engine


def _convert(found: Any) -> Instruction:
    from capstone import CS_AC_READ, CS_AC_WRITE
    from capstone.x86 import X86_OP_IMM, X86_OP_MEM, X86_OP_REG

    def name(register: int) -> str:
        return str(found.reg_name(register)) if register else ""

    memory = []
    for position, operand in enumerate(found.operands):
        if operand.type == X86_OP_MEM:
            place = operand.mem
            access = operand.access or CS_AC_READ | CS_AC_WRITE  # 0: capstone does not say
            if position == 0 and found.mnemonic not in _ONLY_READ:
                access |= CS_AC_WRITE  # nor does it say so of movups, movnti, fstp and others
            memory.append(
                MemoryOperand(
                    segment=name(place.segment),
                    base=name(place.base),
                    index=name(place.index),
                    scale=place.scale,
                    displacement=place.disp,
                    size=operand.size,
                    reads=bool(access & CS_AC_READ),
                    writes=bool(access & CS_AC_WRITE),
                )
            )
    source: str | int | None = None
    if found.mnemonic == "mov" and len(found.operands) == 2:
        second = found.operands[1]
        if second.type == X86_OP_REG:
            source = name(second.reg)
        elif second.type == X86_OP_IMM:
            source = second.imm
    return Instruction(
        address=found.address,
        code=bytes(found.bytes),
        mnemonic=found.mnemonic,
        operands=found.op_str,
        memory=tuple(memory),
        source=source,
    )
