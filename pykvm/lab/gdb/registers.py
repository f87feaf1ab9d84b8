"""A vCPU's registers as GDB's numbers and bytes.

`RegisterFile` is one vCPU at one stop: what several registers need (the XSAVE area) is fetched
once. Sources: GDB manual, G.5.6; SDM vol. 1, 8.1.7 (tag word), 10.5.1 (FXSAVE area), 13.4 (XSAVE
area).
"""

from __future__ import annotations

import struct

from pykvm.arch import registers as named
from pykvm.errors import PykvmError
from pykvm.lab.gdb.descriptions import Arch, Register
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm import Vcpu

_X87_STACK, _XMM, _MXCSR, _HEADER = 32, 160, 24, 512
_AVX = 576  # its place is CPUID's to say (leaf 0xD, subleaf 2), and is the same on every CPU
_XSTATE_X87, _XSTATE_SSE, _XSTATE_AVX = 1, 2, 4
_VALID, _ZERO, _SPECIAL, _EMPTY = 0, 1, 2, 3
_INTEGER_BIT, _EXPONENT = 1 << 63, 0x7FFF

# x87 control registers in the FXSAVE area: offset and bytes (ftag is worked out).
_X87_CONTROL = {"fctrl": (0, 2), "fstat": (2, 2), "fop": (6, 2), "fioff": (8, 4), "fiseg": (12, 2),
                "fooff": (16, 4), "foseg": (20, 2)}  # fmt: skip

_NAMES = {
    "eflags": "rflags", "ldtr": "ldt.selector", "ldtr_base": "ldt.base", "ldtr_limit": "ldt.limit",
    "fs_base": "fs.base", "gs_base": "gs.base", "k_gs_base": "kernel_gs_base",
}  # fmt: skip


class RegisterFile:
    """One vCPU's registers, for as long as it stands still.

    `linear_pc`: EIP is shown with CS.base added, so that GDB, which knows no segments, finds
    the code of 16-bit guests; and is taken off when it is written.
    """

    def __init__(self, vcpu: Vcpu, arch: Arch, *, linear_pc: bool = True) -> None:
        self._vcpu = vcpu
        self._linear_pc = linear_pc and arch is not Arch.X86_64
        self._area: bytearray | None = None

    def read(self, register: Register) -> bytes:
        """The register's bytes, little-endian. Raises `PykvmError` where the host refuses."""
        name = register.name
        place = _vector_place(name)
        if place is not None:
            at = place[0]
            return bytes(self._xsave[at : at + register.size])
        if name == "ftag":
            value = _full_tags(self._xsave)
        elif name in _X87_CONTROL:
            at, size = _X87_CONTROL[name]
            value = int.from_bytes(self._xsave[at : at + size], "little")
        else:
            value = self._plain(name)
        mask = (1 << register.bits) - 1
        return (value & mask).to_bytes(register.size, "little")

    def write(self, register: Register, data: bytes) -> None:
        """Sets a register from its bytes. Raises `PykvmError` for a value that is refused."""
        name = register.name
        place = _vector_place(name)
        if place is not None:
            self._store(place[0], data, place[1])
            return
        value = int.from_bytes(data, "little")
        if name == "ftag":
            tags = sum(1 << i for i in range(8) if value >> 2 * i & 3 != _EMPTY)
            self._store(4, bytes((tags,)), _XSTATE_X87)
        elif name in _X87_CONTROL:
            at, size = _X87_CONTROL[name]
            self._store(at, data[:size], _XSTATE_X87)
        else:
            self._set_plain(name, value, register.bits)

    # -- registers with a name of their own --------------------------------------------------------

    def _plain(self, name: str) -> int:
        value = named.get(self._vcpu, _own_name(name))
        if name == "eip" and self._linear_pc:
            value += self._vcpu.sregs.cs.base
        return value

    def _set_plain(self, name: str, value: int, bits: int) -> None:
        if self._plain(name) & (1 << bits) - 1 == value:
            return  # GDB writes back what it read (`G`): nothing to refuse then
        if name == "eip" and self._linear_pc:
            value = value - self._vcpu.sregs.cs.base & 0xFFFFFFFF
        elif name in ("cs", "ss", "ds", "es", "fs", "gs"):
            self._load_segment(name, value)
            return
        own = _own_name(name)
        named.set(self._vcpu, own, value & (1 << named.lookup(own).bits) - 1)

    def _load_segment(self, name: str, selector: int) -> None:
        """A selector; in real mode with its base, as a MOV to the register would (SDM, 21.1.1)."""
        selector &= 0xFFFF
        named.set(self._vcpu, name, selector)
        if not self._vcpu.sregs.cr0 & 1:
            named.set(self._vcpu, f"{name}.base", selector << 4)

    # -- x87, SSE, AVX -----------------------------------------------------------------------------

    @property
    def _xsave(self) -> bytearray:
        if self._area is None:
            self._area = bytearray(self._vcpu.get_xsave())
        return self._area

    def _store(self, at: int, data: bytes, component: int) -> None:
        area = self._xsave
        before = bytes(area)
        area[at : at + len(data)] = data
        if bytes(area) == before:
            return
        in_use = int.from_bytes(area[_HEADER : _HEADER + 8], "little")
        area[_HEADER : _HEADER + 8] = (in_use | component).to_bytes(8, "little")
        try:
            self._vcpu.set_xsave(area)
        except PykvmError:
            self._area = None
            raise


def _own_name(name: str) -> str:
    """GDB's name of a register as `pykvm.arch.registers` has it."""
    found = _NAMES.get(name)
    if found is not None:
        return found
    return name.replace("_", ".")


def _vector_place(name: str) -> tuple[int, int] | None:
    """Offset in the XSAVE area and component of a data register; None for others."""
    if name.startswith("xmm"):
        return _XMM + 16 * int(name[3:]), _XSTATE_SSE
    if name.startswith("ymm"):
        return _AVX + 16 * int(name[3:-1]), _XSTATE_AVX
    if name.startswith("st"):
        return _X87_STACK + 16 * int(name[2:]), _XSTATE_X87
    if name == "mxcsr":
        return _MXCSR, _XSTATE_SSE
    return None


def _full_tags(area: bytearray) -> int:
    """The tag word with two bits a register, from FXSAVE's one and the registers' contents."""
    present = area[4]
    top = int.from_bytes(area[2:4], "little") >> 11 & 7
    tags = 0
    for physical in range(8):
        tag = _EMPTY
        if present >> physical & 1:
            at = _X87_STACK + 16 * (physical - top & 7)
            mantissa, sign_exponent = struct.unpack_from("<QH", area, at)
            exponent = sign_exponent & _EXPONENT
            if exponent == _EXPONENT:
                tag = _SPECIAL
            elif exponent == 0:
                tag = _ZERO if mantissa == 0 else _SPECIAL
            else:
                tag = _VALID if mantissa & _INTEGER_BIT else _SPECIAL
        tags |= tag << 2 * physical
    return tags


def has_avx(vcpu: Vcpu) -> bool:
    """Whether the guest can have YMM registers: XCR0 may hold their bit (CPUID leaf 0xD)."""
    leaf = next((e for e in vcpu.cpuid if (e.function, e.index) == (0xD, 0)), None)
    return leaf is not None and bool(leaf.eax & _XSTATE_AVX)
