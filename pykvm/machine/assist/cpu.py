"""The guest CPU as one instruction sees it: mode, privilege, segments, linear memory, faults.

Addresses: an effective address plus its segment's base is a linear address; paging makes it
guest-physical. Rules: SDM vol. 3A 5.3 to 5.6 (limits, types, privilege), 4.6 (page rights), 4.8
(Accessed and Dirty).
"""

from __future__ import annotations

from pykvm.arch.bits import PTE, Vector
from pykvm.arch.pagewalk import Walk, walk
from pykvm.kvm.errors import KvmError
from pykvm.kvm.region import MemoryAccessError
from pykvm.kvm.registers import SYNC_REGS, SYNC_SREGS
from pykvm.machine.assist.decode import Instruction
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from pykvm.kvm import Vcpu
    from pykvm.machine.machine import Machine

PAGE = 4096
_READONLY = 1 << 1  # KVM_MEM_READONLY: ROM, whose writes go to the bus
_WALKS = 256  # page walks kept for each vCPU
CF, PF, AF, ZF, SF, TF, IF, DF, OF = (1 << n for n in (0, 2, 4, 6, 7, 8, 9, 10, 11))
NT, RF, VM, AC = 1 << 14, 1 << 16, 1 << 17, 1 << 18
CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_NE = 1, 2, 4, 8, 32
CR4_TSD, CR4_PGE, CR4_OSFXSR, CR4_UMIP = 1 << 2, 1 << 7, 1 << 9, 1 << 11
CR4_OSXSAVE, CR4_PKE = 1 << 18, 1 << 22
EFER_SCE, EFER_LMA = 1, 1 << 10
REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
)  # fmt: skip
MASK = {8: 0xFF, 16: 0xFFFF, 32: 0xFFFFFFFF, 64: (1 << 64) - 1}
_ACCESSED, _DIRTY = int(PTE.A), int(PTE.D)
UD, NM, DF_, TS, NP, SS, GP, PF_ = (
    int(v) for v in (Vector.UD, Vector.NM, Vector.DF, Vector.TS, Vector.NP, Vector.SS, Vector.GP,
                     Vector.PF)
)  # fmt: skip


class Fault(Exception):
    """An exception for the guest. `error` is None where the vector has no error code."""

    def __init__(self, vector: int, error: int | None = None, cr2: int | None = None) -> None:
        super().__init__(f"vector {vector}")
        self.vector = vector
        self.error = error
        self.cr2 = cr2


class Refused(Exception):
    """The assist cannot finish this instruction: why. The guest's state is as it was."""


class Slice(NamedTuple):
    """Part of an operand that lies in one page: guest-physical address and length in bytes."""

    gpa: int
    length: int


class Cpu:
    """One vCPU at an exit. `regs` and `sregs` are the C structures; `commit` makes them count."""

    __slots__ = (
        "_ac", "_touch", "_walks", "bits", "cpl", "long", "machine", "real", "regs", "sregs",
        "user", "vcpu", "vm86",
    )  # fmt: skip

    def __init__(
        self, machine: Machine, vcpu: Vcpu, walks: dict[tuple[int, ...], Walk] | None = None
    ) -> None:
        self._walks = {} if walks is None else walks
        self.machine = machine
        self.vcpu = vcpu
        self.regs: Any = vcpu.regs._readable()
        self.sregs: Any = vcpu.sregs._readable()
        self._touch: Callable[[int], None] = vcpu._touch
        self.settle()

    def settle(self) -> None:
        """Finds mode and privilege from the registers, again after they were changed."""
        sregs, flags = self.sregs, self.regs.rflags
        self.real = not sregs.cr0 & CR0_PE
        self.vm86 = not self.real and bool(flags & VM)
        self.long = bool(sregs.efer & EFER_LMA)
        self.cpl = 0 if self.real else 3 if self.vm86 else int(sregs.ss.dpl)
        self.user = self.cpl == 3
        self._ac = bool(flags & AC)
        if self.real or self.vm86:
            self.bits = 32 if self.real and sregs.cs.db else 16
        elif self.long and sregs.cs.l:
            self.bits = 64
        else:
            self.bits = 32 if sregs.cs.db else 16

    def changed(self) -> None:
        """General registers were written."""
        self._mark_written(SYNC_REGS)

    def changed_sregs(self) -> None:
        """Segment, control or table registers were written."""
        self._mark_written(SYNC_SREGS)

    def _mark_written(self, part: int) -> None:
        # Other ioctls may have been issued since the structures were read. They did not change
        # registers, so what is here still counts.
        self.vcpu._native.sync_valid |= part
        self._touch(part)

    @property
    def legacy(self) -> bool:
        """Real mode or vm86: interrupts through 4-byte vectors, selectors are paragraphs."""
        return self.real or self.vm86

    # -- registers ---------------------------------------------------------------------------------

    def reg(self, number: int, bits: int = 64) -> int:
        """A general register, its low `bits`."""
        return getattr(self.regs, REGISTERS[number]) & MASK[bits]  # type: ignore[no-any-return]

    def set_reg(self, number: int, value: int, bits: int = 64) -> None:
        """Writes a register; 32 bits clear the upper half, 8 and 16 leave the rest."""
        name = REGISTERS[number]
        if bits < 32:
            old = getattr(self.regs, name)
            value = old & ~MASK[bits] | value & MASK[bits]
        setattr(self.regs, name, value & MASK[max(bits, 32) if bits < 64 and bits >= 32 else 64])
        self.changed()

    def flags(self, clear: int, put: int = 0) -> None:
        """Clears and sets bits of RFLAGS."""
        self.regs.rflags = self.regs.rflags & ~clear | put
        self.changed()

    def skip(self, length: int) -> None:
        """RIP goes behind the instruction."""
        rip = self.regs.rip + length
        self.regs.rip = rip & MASK[64] if self.bits == 64 else rip & 0xFFFFFFFF
        if self.bits == 16:
            self.regs.rip &= 0xFFFF if self.regs.rip - length <= 0xFFFF else 0xFFFFFFFF
        self.changed()

    # -- addresses ---------------------------------------------------------------------------------

    def offset(self, insn: Instruction) -> int:
        """The effective address of the memory operand."""
        if insn.vsib:
            raise Refused("a gather or scatter has many memory operands")
        disp = insn.disp
        if insn.compressed:
            disp = _evex_displacement(insn)
        value = disp
        if insn.rip_relative:
            value += self.regs.rip + insn.length
        if insn.base is not None:
            value += self.reg(insn.base)
        if insn.index is not None:
            value += self.reg(insn.index) * insn.scale
        return value & MASK[insn.address_size]

    def segment_of(self, insn: Instruction) -> str:
        """The segment of the memory operand."""
        if insn.segment is not None:
            return insn.segment
        return "ss" if insn.base in (4, 5) else "ds"

    def linear(self, segment: str, offset: int, size: int, *, write: bool = False) -> int:
        """The linear address of `size` bytes at a segment's offset, after the segment's checks."""
        part: Any = getattr(self.sregs, segment)
        bad = SS if segment == "ss" else GP
        if self.bits == 64:
            address = offset + (part.base if segment in ("fs", "gs") else 0) & MASK[64]
            self.canonical(address, bad)
            return address
        if not self.legacy:
            if part.unusable or not part.present:
                raise Fault(GP, 0)
            code = part.type & 8
            if (write and (code or not part.type & 2)) or (code and not part.type & 2):
                raise Fault(bad, 0)
        last = offset + max(size, 1) - 1
        if part.s and part.type & 0xC == 4 and not self.legacy:  # expand-down
            top = 0xFFFFFFFF if part.db else 0xFFFF
            if offset <= part.limit or last > top:
                raise Fault(bad, 0)
        elif last > part.limit:
            raise Fault(bad, 0)
        return part.base + offset & 0xFFFFFFFF  # type: ignore[no-any-return]

    def canonical(self, address: int, vector: int = GP) -> None:
        """Raises #GP(0), or #SS(0), for a linear address that is none in 64-bit mode."""
        shift = 57 if self.sregs.cr4 & 1 << 12 else 48
        high = address >> shift - 1
        if high and high != (1 << 65 - shift) - 1:
            raise Fault(vector, 0)

    def operand(self, insn: Instruction, size: int, *, write: bool = False) -> int:
        """The linear address of the instruction's memory operand of `size` bytes."""
        return self.linear(self.segment_of(insn), self.offset(insn), size, write=write)

    # -- paging ------------------------------------------------------------------------------------

    def walk(self, address: int) -> Walk:
        """The page walk of a linear address.

        An earlier walk of the page is taken if all the entries that it read are still the same.
        """
        s = self.sregs
        page = address & -PAGE
        key = (page, s.cr3, s.cr0, s.cr4, s.efer)
        known = self._walks.get(key)
        if known is None or not self._unchanged(known):
            known = self._walk(page)
            if len(self._walks) >= _WALKS:
                self._walks.clear()
            self._walks[key] = known
        if page == address:
            return known
        gpa = None if known.gpa is None else known.gpa | address & PAGE - 1
        return known._replace(va=address, gpa=gpa)

    def _unchanged(self, known: Walk) -> bool:
        if self.long:
            read = self.machine.memory.read_u64
            try:
                for level in known.levels:
                    if read(level.entry_gpa) != level.raw:
                        return False
            except MemoryAccessError:
                return False
            return bool(known.levels)
        return False

    def _walk(self, address: int) -> Walk:
        s = self.sregs
        return walk(
            self.machine.memory, address, cr0=s.cr0, cr3=s.cr3, cr4=s.cr4, efer=s.efer,
        )  # fmt: skip

    def translate(
        self,
        address: int,
        *,
        write: bool = False,
        fetch: bool = False,
        system: bool = False,
    ) -> int:
        """Linear → guest-physical, with Accessed and Dirty set. Raises `Fault`.

        `system`: an access of the CPU itself to its tables, which is never a user access.
        """
        found = self.walk(address)
        self.permit(found, write=write, fetch=fetch, system=system)
        self.mark(found, write)
        assert found.gpa is not None
        return found.gpa

    def permit(
        self, found: Walk, *, write: bool = False, fetch: bool = False, system: bool = False
    ) -> None:
        """Raises the `Fault` that an access to a walked address gives."""
        user = self.user and not system
        pkru = 0
        if self.sregs.cr4 & CR4_PKE and found.user:
            from pykvm.machine.assist.xstate import read_pkru

            pkru = read_pkru(self.vcpu)
        raised = found.exception(
            write=write, fetch=fetch, user=user, ac=self._ac and not system, pkru=pkru
        )
        if raised is not None:
            vector, error = raised
            raise Fault(int(vector), error, found.va if vector == Vector.PF else None)

    def mark(self, found: Walk, write: bool) -> None:
        """Sets Accessed in every entry of a walk, and Dirty in the last one for a write."""
        last = len(found.levels) - 1
        for depth, level in enumerate(found.levels):
            wanted = _ACCESSED | (_DIRTY if write and depth == last else 0)
            if level.raw & wanted == wanted or (level.number == 3 and last < 3 and not self.long):
                continue
            # One byte, so that a neighbour's write to the rest of the entry is never undone.
            memory = self.machine.memory
            memory.write_u8(level.entry_gpa, memory.read_u8(level.entry_gpa) | wanted)

    def slices(
        self, address: int, size: int, *, write: bool = False, fetch: bool = False,
        system: bool = False,
    ) -> list[Slice]:  # fmt: skip
        """The guest-physical pieces of a linear range; all are checked before any is used."""
        pieces = []
        walks = []
        wrap = MASK[64] if self.long else 0xFFFFFFFF
        while size:
            length = min(size, PAGE - (address & PAGE - 1))
            found = self.walk(address)
            self.permit(found, write=write, fetch=fetch, system=system)
            assert found.gpa is not None
            walks.append(found)
            pieces.append(Slice(found.gpa, length))
            address = address + length & wrap
            size -= length
        for found in walks:
            self.mark(found, write)
        return pieces

    # -- memory ------------------------------------------------------------------------------------

    def read(self, address: int, size: int, *, system: bool = False, fetch: bool = False) -> bytes:
        """Bytes at a linear address; MMIO goes to the machine's bus."""
        pieces = self.slices(address, size, system=system, fetch=fetch)
        return b"".join([self.read_physical(*piece) for piece in pieces])

    def write(self, address: int, data: bytes, *, system: bool = False) -> None:
        """Writes bytes at a linear address."""
        done = 0
        for gpa, length in self.slices(address, len(data), write=True, system=system):
            self.write_physical(gpa, data[done : done + length])
            done += length

    def number(self, address: int, size: int, *, system: bool = False) -> int:
        """A little-endian number of `size` bytes at a linear address."""
        return int.from_bytes(self.read(address, size, system=system), "little")

    def read_physical(self, gpa: int, size: int) -> bytes:
        """Bytes at a guest-physical address."""
        try:
            return self.machine.memory.read(gpa, size)
        except MemoryAccessError:
            mmio = self.machine.mmio
            return b"".join([mmio.read(at, n).to_bytes(n, "little") for at, n in _bus(gpa, size)])

    def write_physical(self, gpa: int, data: bytes) -> None:
        """Writes at a guest-physical address."""
        try:
            region = self.machine.vm.region_at(gpa)
            if region is None or region.flags & _READONLY:
                raise MemoryAccessError("not writable memory", gpa, len(data))
            self.machine.memory.write(gpa, data)
        except MemoryAccessError:
            for at, n in _bus(gpa, len(data)):
                value = int.from_bytes(data[at - gpa : at - gpa + n], "little")
                self.machine.mmio.write(at, n, value)

    def fetch(self, count: int) -> bytes:
        """Up to `count` bytes of code at CS:RIP; fewer where the next page is missing."""
        rip = self.regs.rip
        if self.bits == 64:
            address = int(rip)
        else:
            address = int(self.sregs.cs.base + rip & 0xFFFFFFFF)
        first = min(count, PAGE - (address & PAGE - 1))
        data = self.read(address, first, fetch=True)
        if first < count:
            try:
                data += self.read(address + first & MASK[64], count - first, fetch=True)
            except Fault:
                pass  # only a longer instruction would need it
        return data

    # -- MSRs --------------------------------------------------------------------------------------

    def msr(self, index: int) -> int:
        """An MSR of the guest. Raises `Refused` where KVM does not know it."""
        try:
            return self.vcpu.get_msrs([index])[index]
        except KvmError as error:
            raise Refused(f"MSR {index:#x} cannot be read: {error}") from None


def _bus(gpa: int, size: int) -> list[tuple[int, int]]:
    """An MMIO access in naturally sized pieces of at most 8 bytes."""
    pieces = []
    while size:
        n = 8
        while n > size or gpa % n:
            n >>= 1
        pieces.append((gpa, n))
        gpa += n
        size -= n
    return pieces


def _evex_displacement(insn: Instruction) -> int:
    """An EVEX disp8 in bytes; its unit depends on the opcode, which capstone's tables know."""
    import capstone
    from capstone import x86

    mode = capstone.CS_MODE_64 if insn.bits == 64 else capstone.CS_MODE_32
    engine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    engine.detail = True
    for found in engine.disasm(insn.raw, 0, 1):
        for operand in found.operands:
            if operand.type == x86.X86_OP_MEM:
                return int(operand.mem.disp)
    raise Refused("its displacement cannot be told")
