"""Every register of a vCPU by name: `get(vcpu, "cr3")`, `set(vcpu, "al", 5)`.

Names, in any case: the general registers and their parts (`rax`, `eax`, `ax`, `al`, `ah`, `r8d`),
`rip`, `rflags` and single flags (`zf`); segment selectors (`cs`) and hidden parts (`cs.base`);
`gdtr.base`, `idtr.limit`; `cr0` to `cr8`, `efer`, `apic_base`; `dr0` to `dr7`; MSRs by their names
(`IA32_PAT`, `lstar`) or numbers (`0x277`, `msr.0x277`). `lookup` resolves a name once, for code
that reads often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

from pykvm.arch import msrs
from pykvm.arch.bits import RFLAGS
from pykvm.arch.errors import ArchError, UnknownRegister
from pykvm.arch.state import GENERAL_REGISTERS, SEGMENT_FIELDS, SEGMENT_REGISTERS
from pykvm.typed import Any, NamedTuple


class Register(NamedTuple):
    """One register: `read(vcpu)` and `write(vcpu, value)`, its width in bits and its group.

    Groups: `general`, `flags`, `segment`, `table`, `control`, `debug`, `msr`.
    """

    name: str
    group: str
    bits: int
    read: Callable[[Any], int]
    write: Callable[[Any, int], None]


def get(vcpu: Any, name: str) -> int:
    """The value of a register. Raises `UnknownRegister`."""
    return lookup(name).read(vcpu)


def set(vcpu: Any, name: str, value: int) -> None:
    """Write a register. Raises `UnknownRegister`, and `ArchError` for a value that does not fit.

    Writing a 32-bit part clears the upper half of the register, as the CPU does. Writing a
    segment selector changes only the selector: the hidden parts stay, as KVM has it.
    """
    register = lookup(name)
    if not 0 <= value < 1 << register.bits:
        raise ArchError(f"{register.name} has {register.bits} bits, which {value:#x} does not fit")
    register.write(vcpu, value)


def get_many(vcpu: Any, names: Iterable[str]) -> dict[str, int]:
    """Several registers at once, by the names asked for; the MSRs travel in one call."""
    wanted = {name: lookup(name) for name in names}
    numbers = {name: msrs.number(r.name) for name, r in wanted.items() if r.group == "msr"}
    values = vcpu.get_msrs(list(numbers.values())) if numbers else {}
    return {
        name: int(values[numbers[name]]) if name in numbers else register.read(vcpu)
        for name, register in wanted.items()
    }


def names(group: str | None = None) -> list[str]:
    """The register names of a group, or of all groups but `msr` (see `msrs.table` for those)."""
    return [r.name for r in _fixed().values() if group in (None, r.group)]


def lookup(name: str) -> Register:
    """Resolve a name. Raises `UnknownRegister`, with similar names, when there is none."""
    key = name.strip().lower()
    found = _fixed().get(_ALIASES.get(key, key))
    return found if found is not None else _msr(key, name)


def _msr(key: str, asked: str) -> Register:
    try:
        number = msrs.number(key.removeprefix("msr.").removeprefix("msr:"))
    except UnknownRegister as error:
        import difflib

        near = difflib.get_close_matches(key, _fixed(), 3)
        if not near:
            raise UnknownRegister(f"there is no register named {asked!r} ({error})") from None
        raise UnknownRegister(
            f"there is no register named {asked!r}; did you mean {', '.join(near)}?"
        ) from None

    def read(vcpu: Any) -> int:
        return int(vcpu.get_msrs([number])[number])

    def write(vcpu: Any, value: int) -> None:
        vcpu.set_msrs({number: value})

    return Register(msrs.name(number), "msr", 64, read, write)


_ALIASES = {
    "pc": "rip",
    "ip": "rip",
    "flags": "rflags",
    "eflags": "rflags",
    "gdtr": "gdtr.base",
    "idtr": "idtr.base",
    "gdt.base": "gdtr.base",
    "gdt.limit": "gdtr.limit",
    "idt.base": "idtr.base",
    "idt.limit": "idtr.limit",
    "ldtr": "ldt",
    "ldtr.base": "ldt.base",
    "ldtr.limit": "ldt.limit",
    "tpr": "cr8",
}

_LETTERED = {"rax": "a", "rbx": "b", "rcx": "c", "rdx": "d"}
_PART_BITS = {"selector": 16, "base": 64, "limit": 32, "type": 4, "dpl": 2}


@cache
def _fixed() -> dict[str, Register]:
    registers = {}
    for register in (*_general(), *_flags(), *_segments(), *_tables(), *_control(), *_debug()):
        registers[register.name] = register
    return registers


def _plain(name: str, group: str, bits: int, *path: str, default: int | None = None) -> Register:
    """A register that is an attribute, such as `vcpu.sregs.cs.base`."""
    *way, last = path

    def owner(vcpu: Any) -> Any:
        for step in way:
            vcpu = getattr(vcpu, step)
        return vcpu

    def read(vcpu: Any) -> int:
        return int(getattr(owner(vcpu), last))

    def write(vcpu: Any, value: int) -> None:
        setattr(owner(vcpu), last, value)

    return Register(name, group, bits, read, write)


def _part(name: str, whole: str, shift: int, bits: int, group: str = "general") -> Register:
    """Some bits of a general register; 32-bit parts zero-extend when written."""
    mask = (1 << bits) - 1

    def read(vcpu: Any) -> int:
        return int(getattr(vcpu.regs, whole)) >> shift & mask

    def write(vcpu: Any, value: int) -> None:
        old = 0 if bits == 32 else int(getattr(vcpu.regs, whole)) & ~(mask << shift)
        setattr(vcpu.regs, whole, old | value << shift)

    return Register(name, group, bits, read, write)


def _general() -> Iterable[Register]:
    for name in GENERAL_REGISTERS:
        yield _plain(name, "general", 64, "regs", name)
        if name == "rflags":
            continue
        if name == "rip":
            yield _part("eip", name, 0, 32)
        elif name[1:].isdigit():
            yield _part(f"{name}d", name, 0, 32)
            yield _part(f"{name}w", name, 0, 16)
            yield _part(f"{name}b", name, 0, 8)
        else:
            yield _part(f"e{name[1:]}", name, 0, 32)
            yield _part(name[1:], name, 0, 16)
            letter = _LETTERED.get(name)
            if letter:
                yield _part(f"{letter}l", name, 0, 8)
                yield _part(f"{letter}h", name, 8, 8)
            else:
                yield _part(f"{name[1:]}l", name, 0, 8)


def _flags() -> Iterable[Register]:
    for flag in RFLAGS:
        if flag not in (RFLAGS.FIXED, RFLAGS.IOPL0, RFLAGS.IOPL1):
            name = str(flag.name).lower()
            yield _part(name, "rflags", int(flag).bit_length() - 1, 1, "flags")
    yield _part("iopl", "rflags", 12, 2, "flags")


def _segments() -> Iterable[Register]:
    for segment in SEGMENT_REGISTERS:
        yield _plain(segment, "segment", 16, "sregs", segment, "selector")
        for part in SEGMENT_FIELDS:
            bits = _PART_BITS.get(part, 1)
            yield _plain(f"{segment}.{part}", "segment", bits, "sregs", segment, part)


def _tables() -> Iterable[Register]:
    for table in ("gdt", "idt"):
        yield _plain(f"{table}r.base", "table", 64, "sregs", table, "base")
        yield _plain(f"{table}r.limit", "table", 16, "sregs", table, "limit")


def _control() -> Iterable[Register]:
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"):
        yield _plain(name, "control", 64, "sregs", name)


def _debug() -> Iterable[Register]:
    for n in (0, 1, 2, 3, 6, 7):
        yield _debug_register(n)


def _debug_register(n: int) -> Register:
    def read(vcpu: Any) -> int:
        state = vcpu.debugregs
        return int(state.db[n] if n < 4 else getattr(state, f"dr{n}"))

    def write(vcpu: Any, value: int) -> None:
        # The whole set travels together: read it, change one, write it back.
        state = vcpu.debugregs
        if n < 4:
            breakpoints = list(state.db)
            breakpoints[n] = value
            state.db = type(state.db)(breakpoints)
        else:
            setattr(state, f"dr{n}", value)
        vcpu.debugregs = state

    return Register(f"dr{n}", "debug", 64, read, write)
