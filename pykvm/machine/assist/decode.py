"""Takes an x86 instruction apart: prefixes, opcode map, ModRM, displacement, immediate.

Only the maps that KVM's emulator may refuse are known: 0F, 0F38, 0F3A, their VEX and EVEX forms,
x87 and a few one-byte opcodes. Source: SDM vol. 2A chapter 2, vol. 2D appendix A; APM vol. 3 A.
"""

from __future__ import annotations

MAX_LENGTH = 15


class Undecodable(Exception):
    """The bytes are no instruction that is known here.

    `short`: more bytes are needed. `undefined`: to a CPU they are none either (#UD).
    """

    def __init__(self, why: str, *, short: bool = False, undefined: bool = False) -> None:
        super().__init__(why)
        self.undefined = undefined
        self.short = short


SEGMENTS = {0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}
LEGACY, VEX, EVEX = "legacy", "vex", "evex"
# One-byte opcodes: immediate bytes after the opcode; ModRM ones apart.
_ONE_BYTE = {0x9B: 0, 0xCC: 0, 0xCD: 1, 0xCE: 0, 0xCF: 0, 0xF1: 0, 0xF4: 0, 0xCB: 0, 0xCA: 2}
_NO_MODRM = frozenset(
    (0x05, 0x06, 0x07, 0x08, 0x09, 0x0B, 0x0E, *range(0x30, 0x38), 0x77, 0xA0, 0xA1, 0xA2, 0xA8,
     0xA9, 0xAA, *range(0xC8, 0xD0))
)  # fmt: skip
_IMM8 = frozenset((0x0F, 0x70, 0x71, 0x72, 0x73, 0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6))
_VSIB = frozenset((0x90, 0x91, 0x92, 0x93, 0xA0, 0xA1, 0xA2, 0xA3, 0xC6, 0xC7))


class Instruction:
    """One decoded instruction.

    `map`: 0 one-byte, 1 0F, 2 0F38, 3 0F3A (EVEX also 5 and 6). `prefix`: the mandatory one, 0,
    0x66, 0xF3 or 0xF2. `modrm` is None without one; `reg` and `rm` have the REX bits, `mod` 3 is
    a register. `base`, `index` are register numbers or None; `disp` is signed.
    """

    __slots__ = (
        "address_size", "base", "bits", "disp", "encoding", "extended", "imm", "index", "length",
        "lock", "map", "mod", "modrm", "opcode", "operand_prefix", "prefix", "raw", "reg", "rep",
        "rex", "rip_relative", "rm", "scale", "segment", "tail", "vsib",
    )  # fmt: skip

    def __init__(self, raw: bytes, bits: int) -> None:
        self.bits = bits
        self.lock = False
        self.rep = 0
        self.operand_prefix = False
        self.segment: str | None = None
        self.rex = 0
        self.encoding = LEGACY
        self.extended = b""  # the VEX or EVEX prefix as it was
        self.map = 0
        self.opcode = 0
        self.prefix = 0
        self.modrm: int | None = None
        self.mod = 3
        self.reg = self.rm = 0
        self.base: int | None = None
        self.index: int | None = None
        self.scale = 1
        self.disp = 0
        self.rip_relative = False
        self.vsib = False
        self.tail = 0  # offset of the immediate
        self.imm = b""
        self.address_size = bits
        self.length = 0
        self.raw = raw
        try:
            self._decode(raw)
        except IndexError:
            if len(raw) >= MAX_LENGTH:
                raise Undecodable("it is longer than 15 bytes") from None
            raise Undecodable("it is cut off", short=True) from None
        self.raw = raw[: self.length]

    @property
    def memory(self) -> bool:
        """It has a ModRM memory operand."""
        return self.modrm is not None and self.mod != 3

    @property
    def key(self) -> tuple[int, int]:
        """(map, opcode)."""
        return self.map, self.opcode

    @property
    def wide(self) -> bool:
        """REX.W, VEX.W or EVEX.W."""
        if self.encoding is VEX:
            return len(self.extended) == 3 and bool(self.extended[2] & 0x80)
        if self.encoding is EVEX:
            return bool(self.extended[2] & 0x80)
        return bool(self.rex & 8)

    @property
    def operand_size(self) -> int:
        """16, 32 or 64 bits, of a general-register operand."""
        if self.wide and self.bits == 64:
            return 64
        return 16 if self.operand_prefix != (self.bits == 16) else 32

    def _decode(self, raw: bytes) -> None:
        at = 0
        while True:
            byte = raw[at]
            if byte in SEGMENTS:
                if self.bits != 64 or byte >= 0x64:
                    self.segment = SEGMENTS[byte]
            elif byte == 0x66:
                self.operand_prefix = True
            elif byte == 0x67:
                self.address_size = {64: 32, 32: 16, 16: 32}[self.bits]
            elif byte == 0xF0:
                self.lock = True
            elif byte in (0xF2, 0xF3):
                self.rep = byte
            elif self.bits == 64 and 0x40 <= byte <= 0x4F:
                if raw[at + 1] not in _PREFIXES and not 0x40 <= raw[at + 1] <= 0x4F:
                    self.rex = byte
            else:
                break
            at += 1
            if at >= MAX_LENGTH:
                raise Undecodable("it is longer than 15 bytes")
        if byte in (0xC4, 0xC5, 0x62) and (self.bits == 64 or raw[at + 1] >= 0xC0):
            at = self._extended(raw, at)
        else:
            at = self._legacy(raw, at)
        self._operands(raw, at)

    def _legacy(self, raw: bytes, at: int) -> int:
        byte = raw[at]
        if byte == 0x0F:
            at += 1
            byte = raw[at]
            self.map = {0x38: 2, 0x3A: 3}.get(byte, 1)
            if self.map > 1:
                at += 1
                byte = raw[at]
        self.opcode = byte
        self.prefix = self.rep or (0x66 if self.operand_prefix else 0)
        return at + 1

    def _extended(self, raw: bytes, at: int) -> int:
        first = raw[at]
        size = {0xC5: 2, 0xC4: 3, 0x62: 4}[first]
        self.encoding = EVEX if first == 0x62 else VEX
        self.extended = bytes(raw[at : at + size])
        if self.lock or self.rep or self.operand_prefix or self.rex:
            raise Undecodable("a VEX prefix after LOCK, 66, F2, F3 or REX", undefined=True)
        last = raw[at + size - 1] if first != 0x62 else raw[at + 2]
        self.prefix = (0, 0x66, 0xF3, 0xF2)[last & 3]
        if first == 0xC5:
            self.map = 1
            self.rex = 0x40 | (~raw[at + 1] >> 5 & 4)
        else:
            self.map = raw[at + 1] & (0x1F if first == 0xC4 else 7)
            self.rex = 0x40 | (~raw[at + 1] >> 5 & 7)
            if raw[at + 2] & 0x80:
                self.rex |= 8
        if self.bits != 64:
            self.rex = 0
        self.opcode = raw[at + size]
        return at + size + 1

    def _operands(self, raw: bytes, at: int) -> None:
        has_modrm, imm = _shape(self)
        if has_modrm:
            at = self._modrm(raw, at)
        self.tail = at
        if imm:
            raw[at + imm - 1]
            self.imm = bytes(raw[at : at + imm])
        self.length = at + imm

    def _modrm(self, raw: bytes, at: int) -> int:
        modrm = raw[at]
        at += 1
        self.modrm = modrm
        self.mod = modrm >> 6
        rex = self.rex
        self.reg = modrm >> 3 & 7 | (rex & 4) << 1
        self.rm = modrm & 7 | (rex & 1) << 3
        if self.mod == 3:
            return at
        if self.address_size == 16:
            return self._address16(raw, at, modrm)
        low = modrm & 7
        if low == 4:
            sib = raw[at]
            at += 1
            self.scale = 1 << (sib >> 6)
            index = sib >> 3 & 7 | (rex & 2) << 2
            self.index = None if index == 4 else index
            self.base = sib & 7 | (rex & 1) << 3
            self.vsib = self.encoding is not LEGACY and self.map == 2 and self.opcode in _VSIB
            if sib & 7 == 5 and self.mod == 0:
                self.base = None
                return self._disp(raw, at, 4)
        elif low == 5 and self.mod == 0:
            self.rip_relative = self.bits == 64
            return self._disp(raw, at, 4)
        else:
            self.base = self.rm
        return self._disp(raw, at, (0, 1, 4)[self.mod])

    def _address16(self, raw: bytes, at: int, modrm: int) -> int:
        low = modrm & 7
        if low == 6 and self.mod == 0:
            return self._disp(raw, at, 2)
        self.base = (3, 3, 5, 5, None, None, 5, 3)[low]  # BX, BP
        self.index = (6, 7, 6, 7, 6, 7, None, None)[low]  # SI, DI
        return self._disp(raw, at, (0, 1, 2)[self.mod])

    def _disp(self, raw: bytes, at: int, size: int) -> int:
        if size:
            raw[at + size - 1]
            self.disp = int.from_bytes(raw[at : at + size], "little", signed=True)
        return at + size

    @property
    def compressed(self) -> bool:
        """An EVEX disp8, which counts in units of the operand (SDM vol. 2A, 2.7.5)."""
        return self.encoding is EVEX and self.mod == 1 and self.memory


_PREFIXES = frozenset((*SEGMENTS, 0x66, 0x67, 0xF0, 0xF2, 0xF3))


def _shape(insn: Instruction) -> tuple[bool, int]:
    """(has ModRM, bytes of immediate)."""
    opcode = insn.opcode
    if insn.map == 0:
        if 0xD8 <= opcode <= 0xDF:
            return True, 0
        if opcode in _ONE_BYTE:
            return False, _ONE_BYTE[opcode]
        raise Undecodable(f"opcode {opcode:02x} is not one that the assist knows")
    if insn.map == 1:
        if opcode in _NO_MODRM:
            return False, 0
        if 0x80 <= opcode <= 0x8F and insn.encoding is LEGACY:
            raise Undecodable("a jump")
        if opcode == 0x78 and insn.encoding is LEGACY and insn.prefix:
            return True, 2  # EXTRQ, INSERTQ
        return True, int(opcode in _IMM8)
    if insn.map in (2, 5, 6):
        return True, 0
    if insn.map == 3:
        return True, 1
    raise Undecodable(f"opcode map {insn.map} does not exist", undefined=True)


def relocated(insn: Instruction, offset: int) -> bytes:
    """The instruction for 64-bit code, its memory operand at `offset` from its own first byte.

    Segment and address-size prefixes are gone; registers and immediates stay. `insn` must have a
    memory operand, or none at all (then `offset` does not count).
    """
    out = bytearray()
    if insn.lock:
        out.append(0xF0)
    if insn.encoding is LEGACY:
        if _wants_operand_prefix(insn):
            out.append(0x66)
        if insn.rep:
            out.append(insn.rep)
        rex = insn.rex
        if insn.memory:
            rex &= ~3
        if rex:
            out.append(rex)
        out += (b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a")[insn.map]
    else:
        extended = bytearray(insn.extended)
        if insn.memory and extended[0] != 0xC5:
            extended[1] |= 0x60  # X and B, inverted
        out += extended
    out.append(insn.opcode)
    if insn.memory:
        assert insn.modrm is not None
        out.append(insn.modrm & 0x38 | 5)
        length = len(out) + 4 + len(insn.imm)
        out += (offset - length).to_bytes(4, "little", signed=True)
    elif insn.modrm is not None:
        out.append(insn.modrm)
    return bytes(out + insn.imm)


def _wants_operand_prefix(insn: Instruction) -> bool:
    """Whether the 64-bit form takes 66: in 16-bit code it means the other size there."""
    if insn.bits == 16 and _sized(insn):
        return not insn.operand_prefix
    return insn.operand_prefix


def _sized(insn: Instruction) -> bool:
    """66 chooses the operand size, not the instruction."""
    if insn.map == 0:
        return insn.opcode in (0xD9, 0xDD)  # FLDENV, FNSTENV, FNSAVE, FRSTOR
    if insn.map == 1:
        if insn.opcode == 0xC7:
            return insn.mod == 3
        return insn.opcode in (0xB8, 0xBC, 0xBD) and bool(insn.rep)
    return insn.map == 2 and insn.opcode in (0xF0, 0xF1)
