"""Which instruction is completed by what, and its name for the statistics."""

from __future__ import annotations

from functools import lru_cache

from pykvm.machine.assist import compute, descriptors, system, transfer
from pykvm.machine.assist.decode import LEGACY, Instruction, relocated
from pykvm.machine.assist.system import Handler
from pykvm.typed import NamedTuple


class Entry(NamedTuple):
    """`handler` in Python, or `kind` for the engine; `name` is the mnemonic."""

    name: str
    handler: Handler | None = None
    kind: str = ""


_ONE_BYTE: dict[int, Entry] = {
    0xCC: Entry("int3", system.int3),
    0xCD: Entry("int", system.int_n),
    0xCE: Entry("into", system.into),
    0xF1: Entry("int1", system.int1),
    0xCF: Entry("iret", transfer.iret),
}
_TWO_BYTE: dict[int, Entry] = {
    0x02: Entry("lar", descriptors.lar),
    0x03: Entry("lsl", descriptors.lsl),
    0x05: Entry("syscall", transfer.syscall),
    0x07: Entry("sysret", transfer.sysret),
    0x08: Entry("invd", system.caches),
    0x09: Entry("wbinvd", system.caches),
    0x0B: Entry("ud2", system.undefined),
    0x0D: Entry("prefetchw", system.hint),
    **{n: Entry("prefetch", system.hint) for n in range(0x18, 0x20)},
    0x34: Entry("sysenter", transfer.sysenter),
    0x35: Entry("sysexit", transfer.sysexit),
    0xB9: Entry("ud1", system.undefined),
    0xFF: Entry("ud0", system.undefined),
}
# 0F 01 with a register form: by the whole ModRM byte.
_GROUP7: dict[int, Entry] = {
    0xC8: Entry("monitor", system.monitor),
    0xC9: Entry("mwait", system.mwait),
    0xCA: Entry("clac", system.clac),
    0xCB: Entry("stac", system.stac),
    0xD0: Entry("xgetbv", system.xgetbv),
    0xD1: Entry("xsetbv", system.xsetbv),
    0xD6: Entry("xtest", system.no_transaction),
    0xEE: Entry("rdpkru", system.rdpkru),
    0xEF: Entry("wrpkru", system.wrpkru),
    0xF9: Entry("rdtscp", system.rdtscp),
    0xFA: Entry("monitorx", system.monitor),
    0xFB: Entry("mwaitx", system.mwait),
    0xFC: Entry("clzero", system.clzero),
}
_SUPERVISOR_STATE = "xss"


def find(insn: Instruction) -> Entry | None:
    """What completes an instruction; None if nothing does."""
    if insn.lock and not (insn.key == (1, 0xC7) and insn.memory and insn.reg & 7 == 1):
        return Entry("lock", system.undefined) if _never_locked(insn) else None
    if insn.encoding is LEGACY:
        found = _system(insn)
        if found is not None:
            return found
    kind = compute.kind_of(insn)
    return Entry(name_of(relocated(insn, 0), 64), kind=kind) if kind is not None else None


def _never_locked(insn: Instruction) -> bool:
    return compute.kind_of(insn) is not None or _system(insn) is not None


def _system(insn: Instruction) -> Entry | None:
    opcode, reg = insn.opcode, insn.reg & 7
    if insn.map == 0:
        return _ONE_BYTE.get(opcode)
    if insn.map == 2:
        if opcode == 0x82 and insn.prefix == 0x66 and insn.memory:
            return Entry("invpcid", system.invpcid)
        if opcode == 0xF8 and insn.prefix == 0x66:
            return Entry("movdir64b", system.movdir64b)
        return None
    if insn.map != 1:
        return None
    if opcode == 0x00 and reg in (4, 5):
        return Entry("verw" if reg & 1 else "verr", descriptors.verify)
    if opcode == 0x01 and not insn.memory and insn.modrm is not None:
        return _GROUP7.get(insn.modrm)
    if opcode == 0xAE:
        return _group15(insn, reg)
    if opcode == 0xC7 and insn.rep == 0xF3 and not insn.memory and reg == 7:
        return Entry("rdpid", system.rdpid)
    if opcode == 0xC7 and insn.memory and reg in (3, 5):
        return Entry("xrstors" if reg == 3 else "xsaves", kind=_SUPERVISOR_STATE)
    return _TWO_BYTE.get(opcode)


def _group15(insn: Instruction, reg: int) -> Entry | None:
    if insn.memory:
        if reg == 7 and insn.prefix in (0, 0x66):
            return Entry("clflushopt" if insn.prefix else "clflush", system.cache_line)
        if reg == 6 and insn.prefix == 0x66:
            return Entry("clwb", system.cache_line)
    elif insn.prefix == 0xF3 and reg < 4:
        name = ("rdfsbase", "rdgsbase", "wrfsbase", "wrgsbase")[reg]
        return Entry(name, system.fs_gs_base)
    return None


@lru_cache(maxsize=4096)
def decoded(code: bytes, bits: int) -> tuple[Instruction, Entry | None]:
    """The instruction that `code` begins with, and what completes it. Raises `Undecodable`."""
    insn = Instruction(code, bits)
    return insn, find(insn)


@lru_cache(maxsize=1024)
def name_of(raw: bytes, bits: int) -> str:
    """The mnemonic, by capstone; the bytes where it knows none."""
    from pykvm.arch.disasm import disassemble_one

    found = disassemble_one(raw, 0, bits)
    if found is None:
        return raw.hex(" ")
    return found.mnemonic.split()[-1]
