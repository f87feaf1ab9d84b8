"""Finds the instruction behind an exit: KVM leaves RIP on it, or already behind it.

What KVM does (arch/x86/kvm/x86.c), and what each kind of host was seen to do:

- OUT: the fast path of VMX and SVM (`kvm_fast_pio`) leaves RIP on the instruction, except for port
  0x7e (KVM_X86_QUIRK_OUT_7E_INC_RIP). The instruction emulator writes RIP back before it exits:
  RIP is behind the OUT. So it was measured on a host without VMX and SVM, where KVM emulates: in
  real mode, 32-bit and 64-bit code, ring 0 and ring 3. VMX hosts without unrestricted guest emulate
  real mode as well.
- REP OUTS: always emulated. RIP stays on the instruction, also for the last element (measured:
  RCX is 0 then): the emulator looks at RCX before an element, not after it.
- IN, INS, MMIO reads, RDMSR and WRMSR: RIP is on the instruction; they complete at the next entry.
- MMIO writes: always emulated. RIP is behind the instruction (measured: for both parts of one that
  crosses a page), but on it for a REP string instruction, whose RSI, RDI and RCX have moved on.
- HLT: RIP is behind it.

So both places are looked at, and what lies there must fit the exit: opcode, port, size, direction
for ports; effective address, size and stored value for memory. Where both fit an OUT (two equal
OUTs in a row), what this host does decides: learnt from exits where only one place fits, or else
measured once with a tiny VM.
"""

from __future__ import annotations

from collections.abc import Callable

from pykvm.errors import PykvmError
from pykvm.kvm.exit_base import Where
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pykvm.kvm.decode import Instruction, MemoryOperand
    from pykvm.kvm.exit_site import Site

Translate = Callable[[int], int | None]

_LONGEST = 15
_PREFIXES = b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf2\xf3"

# Whether RIP is behind an OUT, by (bits, ring 3, string instruction): facts of this host's KVM.
_rip_is_behind: dict[tuple[int, bool, bool], bool] = {}


class PortInstruction(NamedTuple):
    """IN, OUT, INS or OUTS."""

    length: int
    write: bool
    size: int
    port: int | None
    """The immediate port, None if it is in DX."""
    string: bool
    rep: bool


def parse_port_instruction(code: bytes, bits: int) -> PortInstruction | None:
    """The port instruction that `code` begins with, None for any other (SDM vol. 2, 2.1)."""
    other_operand = rep = False
    at = 0
    while at < len(code) and code[at] in _PREFIXES:
        other_operand |= code[at] == 0x66
        rep |= code[at] in (0xF2, 0xF3)
        at += 1
    if bits == 64 and code[at : at + 1] and code[at] & 0xF0 == 0x40:  # REX
        at += 1
    if at >= len(code):
        return None
    opcode = code[at]
    string = opcode & 0xFC == 0x6C
    if not string and opcode & 0xF4 != 0xE4:
        return None
    port = None
    length = at + 1
    if opcode & 0xFC == 0xE4:
        if length >= len(code):
            return None
        port = code[length]
        length += 1
    size = 1 if not opcode & 1 else 2 if (bits == 16) != other_operand else 4
    return PortInstruction(length, bool(opcode & 2), size, port, string, rep and string)


def locate_port(site: Site, regs: Any, write: bool, port: int, size: int, count: int) -> Where:
    """The place of the instruction that accessed `port` with `count` elements of `size` bytes."""

    def fits(found: PortInstruction | None) -> bool:
        return (
            found is not None
            and found.write == write
            and found.size == size
            and port == (regs.rdx & 0xFFFF if found.port is None else found.port)
            and (count == 1 or found.rep)
        )

    if not site.after and not site.before:
        return Where(site.address, True, b"", site.bits)
    here = parse_port_instruction(site.after, site.bits)
    if not fits(here):
        here = None
    behind = _port_instruction_before(site, fits) if write else None
    if here and behind:
        key = (site.bits, site.user, here.string)
        if here.rep:
            use_behind = False
        elif port == 0x7E:
            use_behind = True
        else:
            use_behind = _host_goes_on(key)
        if use_behind:
            here = None
        else:
            behind = None
    elif (here or behind) and write and count == 1 and port != 0x7E:
        found = here or behind
        if found and not found.rep:
            _rip_is_behind[(site.bits, site.user, found.string)] = behind is not None
    if behind:
        address = site.address - behind.length
        return Where(address, True, site.code(address), site.bits)
    return Where(site.address, here is not None, site.after if here else b"", site.bits)


def _port_instruction_before(site: Site, fits: Any) -> PortInstruction | None:
    best = None
    for length in range(1, min(len(site.before), 6) + 1):
        found = parse_port_instruction(site.before[-length:], site.bits)
        # The shortest, as what precedes may be another instruction's: `mov al, 'd'` ends with a
        # byte that is also a prefix. But before a string instruction prefixes are prefixes.
        if (
            found
            and found.length == length
            and fits(found)
            and (best is None or (found.string and found.rep >= best.rep))
        ):
            best = found
    return best


def _host_goes_on(key: tuple[int, bool, bool]) -> bool:
    known = _rip_is_behind.get(key)
    if known is None:
        alike = [v for k, v in _rip_is_behind.items() if k[1:] == key[1:]]
        if alike:
            return alike[-1]
        measured = _measure()
        if measured is None:
            return key[2]  # string instructions are emulated everywhere
        _rip_is_behind[(16, False, False)] = measured
        known = measured or key[2]
    return known


def _measure() -> bool | None:
    """Whether RIP is behind an OUT on this host: one OUT in real mode, in a VM of its own."""
    from pykvm.kvm import Kvm

    try:
        with Kvm() as kvm, kvm.create_vm() as vm:
            memory = vm.add_memory(0, 0x2000)
            memory.write(0x1000, b"\xe6\x10\xf4")  # out 0x10, al; hlt
            vcpu = vm.create_vcpu(0)
            vcpu.sregs.cs.base = 0
            vcpu.sregs.cs.selector = 0
            vcpu.regs.rip = 0x1000
            vcpu.regs.rflags = 2
            vcpu.run()
            return vcpu.regs.rip == 0x1002
    except (PykvmError, OSError):
        return None


def locate_opcode(site: Site, behind: bool, *opcodes: bytes) -> Where:
    """The place of an instruction known by its opcode; `behind`: RIP has normally passed it."""
    here = next((code for code in opcodes if site.after.startswith(code)), None)
    before = next((code for code in opcodes if site.before.endswith(code)), None)
    if before and (behind or not here):
        address = site.address - len(before)
        return Where(address, True, site.code(address), site.bits)
    known = here is not None or not site.after
    return Where(site.address, known, site.after if here else b"", site.bits)


def locate_memory(
    site: Site, regs: Any, write: bool, gpa: int, data: bytes, translate: Translate | None = None
) -> Where:
    """The place of the instruction that accessed guest-physical `gpa`; `data`: what it wrote.

    `translate` gives the guest-physical address of a linear one with the page tables of the exit;
    without it only the offset in the page is compared.
    """
    if not write or not site.before:
        return Where(site.address, True, site.after, site.bits)
    from pykvm.kvm.decode import decode

    store = _Store(site, regs, gpa, data, translate)
    here = decode(site.after, site.address, site.bits)
    if here and not (here.mnemonic.startswith("rep") and store.fits(here)):
        ending = _ending_at_rip(site)
        for found in sorted(ending, key=lambda one: (ending[one], one.size), reverse=True):
            if store.fits(found):
                return Where(found.address, True, found.code, site.bits)
    if here and store.fits(here):
        return Where(site.address, True, here.code, site.bits)
    return Where(site.address, not site.after, b"", site.bits)


def _ending_at_rip(site: Site) -> dict[Instruction, int]:
    """The instructions that may have been the last before RIP, and how well each is supported.

    x86 code cannot be read backwards, but decoding falls into step soon wherever it begins: an
    instruction is supported by each earlier byte from which decoding arrives at it.
    """
    from pykvm.kvm.decode import decode

    end = len(site.before)
    last: dict[int, Instruction] = {}  # by offset: what decoding from there ends with
    support: dict[Instruction, int] = {}
    for at in range(end - 1, -1, -1):
        found = decode(site.before[at : at + _LONGEST], site.address - end + at, site.bits)
        if found is None:
            continue
        final = found if at + found.size == end else last.get(at + found.size)
        if final is not None:
            last[at] = final
            support[final] = support.get(final, 0) + (final is not found)
    return support


class _Store(NamedTuple):
    """An MMIO write, to be compared with instructions that may have made it, already executed."""

    site: Site
    regs: Any
    gpa: int
    data: bytes
    translate: Translate | None

    def fits(self, found: Instruction) -> bool:
        """Whether `found` can have written the data (or that part of it) there."""
        for operand in found.memory:
            if not operand.writes:
                continue
            linear = self._address(found, operand)
            if linear is None:
                continue
            for offset, length in _fragments(linear, operand.size):
                if length == len(self.data) and self._is_place(linear + offset):
                    value = self._value(found) if length == operand.size else None
                    if value is None or value == int.from_bytes(self.data, "little"):
                        return True
        if found.mnemonic.startswith("push"):
            return self._is_place(self.site.bases["ss"] + self.regs.rsp)
        return False

    def _is_place(self, linear: int) -> bool:
        if not self.site.paging:
            return linear == self.gpa
        if (linear ^ self.gpa) & 0xFFF:
            return False
        return self.translate is None or self.translate(linear) == self.gpa

    def _address(self, found: Instruction, operand: MemoryOperand) -> int | None:
        """The operand's linear address; a string instruction has moved its pointer since."""
        base = self._register(operand.base, found)
        index = self._register(operand.index, found)
        if base is None or index is None:
            return None
        offset = base + index * operand.scale + operand.displacement
        if found.mnemonic.split()[-1][:4] in ("movs", "stos") and operand.base in _STRING_TARGETS:
            offset += operand.size if self.regs.rflags & _DIRECTION else -operand.size
        name = operand.base or operand.index
        bits = self.site.bits
        if name.startswith("e") or name.endswith("d"):
            bits = 32
        elif name and bits == 32:
            bits = 16
        elif bits == 16 and operand.displacement > 0xFFFF:
            bits = 32
        segment = operand.segment or ("ss" if operand.base in _STACK_BASES else "ds")
        top = (1 << 64 if self.site.bits == 64 else 1 << 32) - 1
        return (self.site.bases.get(segment, 0) + (offset & (1 << bits) - 1)) & top

    def _value(self, found: Instruction) -> int | None:
        """What a MOV stored, None if that is not known."""
        source = found.source
        value = self._register(source, found) if isinstance(source, str) else source
        return None if value is None else value & ((1 << 8 * len(self.data)) - 1)

    def _register(self, name: str, found: Instruction) -> int | None:
        """A general register (or a part of one) by name; 0 for none, None if it is another kind."""
        if not name:
            return 0
        if name in ("rip", "eip"):
            return found.address + found.size
        place = _REGISTERS.get(name)
        if place is None:
            return None
        register, shift, bits = place
        return int(getattr(self.regs, register)) >> shift & ((1 << bits) - 1)


def _fragments(linear: int, size: int) -> list[tuple[int, int]]:
    """How KVM cuts an access, as (offset, length): at a page's end, and every 8 bytes."""
    fragments = []
    at = 0
    while at < size:
        length = min(8, size - at, 4096 - (linear + at) % 4096)
        fragments.append((at, length))
        at += length
    return fragments


_DIRECTION = 1 << 10  # RFLAGS.DF
_STRING_TARGETS = ("rdi", "edi", "di")
_STACK_BASES = ("rsp", "esp", "sp", "rbp", "ebp", "bp")


def _register_table() -> dict[str, tuple[str, int, int]]:
    table: dict[str, tuple[str, int, int]] = {}
    for letter in "abcd":
        full = f"r{letter}x"
        table |= {f"{letter}l": (full, 0, 8), f"{letter}h": (full, 8, 8)}
        table |= {f"{letter}x": (full, 0, 16), f"e{letter}x": (full, 0, 32), full: (full, 0, 64)}
    for short in ("si", "di", "bp", "sp"):
        full = f"r{short}"
        table |= {f"{short}l": (full, 0, 8), short: (full, 0, 16)}
        table |= {f"e{short}": (full, 0, 32), full: (full, 0, 64)}
    for number in range(8, 16):
        full = f"r{number}"
        table |= {full: (full, 0, 64), f"{full}d": (full, 0, 32)}
        table |= {f"{full}w": (full, 0, 16), f"{full}b": (full, 0, 8)}
    return table


_REGISTERS = _register_table()
