"""Exits of other architectures that the headers name, and the deprecated DCR.

An x86 host never makes them; they have classes so that every reason has one. Their data is read
from the exit union at the offsets of <linux/kvm.h> (natural alignment, little endian).
"""

from __future__ import annotations

import struct

from pykvm.kvm.exit_base import Exit
from pykvm.typed import Any, Generic, TypeVar, overload

_T = TypeVar("_T", int, tuple[int, ...])


class _Member(Generic[_T]):
    """A field of the exit union, by `struct` format and offset."""

    __slots__ = ("_offset", "_unpack")

    def __init__(self, layout: str, offset: int) -> None:
        self._unpack = struct.Struct("<" + layout).unpack_from
        self._offset = offset

    @overload
    def __get__(self, obj: None, owner: type) -> _Member[_T]: ...
    @overload
    def __get__(self, obj: Exit, owner: type) -> _T: ...
    def __get__(self, obj: Exit | None, owner: type) -> Any:
        if obj is None:
            return self
        values = self._unpack(obj.raw, self._offset)
        return values[0] if len(values) == 1 else values


_Int = _Member[int]
_Ints = _Member[tuple[int, ...]]


class _ForeignExit(Exit):
    __slots__ = ()

    def _at(self) -> str:
        return ""

    def _what(self) -> str:
        fields = "".join(f" {name}={getattr(self, name)!r}" for name in self._fields)
        return super()._what() + fields


class DcrExit(_ForeignExit, kvm="KVM_EXIT_DCR"):
    """PowerPC 4xx device control register (deprecated)."""

    __slots__ = ()
    _fields = ("dcrn", "data", "is_write")
    dcrn, data, is_write = _Int("I", 0), _Int("I", 4), _Int("B", 8)


class OsiExit(_ForeignExit, kvm="KVM_EXIT_OSI"):
    """PowerPC OpenFirmware interface call (MacOS)."""

    __slots__ = ()
    _fields = ("gprs",)
    gprs = _Ints("32Q", 0)


class PaprHcallExit(_ForeignExit, kvm="KVM_EXIT_PAPR_HCALL"):
    """PowerPC PAPR hypercall."""

    __slots__ = ()
    _fields = ("nr", "ret", "args")
    nr, ret, args = _Int("Q", 0), _Int("Q", 8), _Ints("9Q", 16)


class EprExit(_ForeignExit, kvm="KVM_EXIT_EPR"):
    """PowerPC external proxy: the guest acknowledges an interrupt."""

    __slots__ = ()
    _fields = ("epr",)
    epr = _Int("I", 0)


class S390SieicExit(_ForeignExit, kvm="KVM_EXIT_S390_SIEIC"):
    """s390 interception."""

    __slots__ = ()
    _fields = ("icptcode", "ipa", "ipb")
    icptcode, ipa, ipb = _Int("B", 0), _Int("H", 2), _Int("I", 4)


class S390ResetExit(_ForeignExit, kvm="KVM_EXIT_S390_RESET"):
    """s390 reset."""

    __slots__ = ()
    _fields = ("reset_flags",)
    reset_flags = _Int("Q", 0)


class S390UcontrolExit(_ForeignExit, kvm="KVM_EXIT_S390_UCONTROL"):
    """s390 user-controlled VM: a translation exception."""

    __slots__ = ()
    _fields = ("trans_exc_code", "pgm_code")
    trans_exc_code, pgm_code = _Int("Q", 0), _Int("I", 8)


class S390TschExit(_ForeignExit, kvm="KVM_EXIT_S390_TSCH"):
    """s390 TEST SUBCHANNEL."""

    __slots__ = ()
    _fields = ("subchannel_id", "subchannel_nr", "io_int_parm", "io_int_word", "ipb", "dequeued")
    subchannel_id, subchannel_nr = _Int("H", 0), _Int("H", 2)
    io_int_parm, io_int_word, ipb = _Int("I", 4), _Int("I", 8), _Int("I", 12)
    dequeued = _Int("B", 16)


class S390StsiExit(_ForeignExit, kvm="KVM_EXIT_S390_STSI"):
    """s390 STORE SYSTEM INFORMATION."""

    __slots__ = ()
    _fields = ("addr", "ar", "fc", "sel1", "sel2")
    addr, ar = _Int("Q", 0), _Int("B", 8)
    fc, sel1, sel2 = _Int("B", 10), _Int("B", 11), _Int("H", 12)


class ArmNisvExit(_ForeignExit, kvm="KVM_EXIT_ARM_NISV"):
    """Arm data abort without a valid syndrome."""

    __slots__ = ()
    _fields = ("esr_iss", "fault_ipa")
    esr_iss, fault_ipa = _Int("Q", 0), _Int("Q", 8)


class RiscvSbiExit(_ForeignExit, kvm="KVM_EXIT_RISCV_SBI"):
    """RISC-V SBI call."""

    __slots__ = ()
    _fields = ("extension_id", "function_id", "args", "ret")
    extension_id, function_id = _Int("Q", 0), _Int("Q", 8)
    args, ret = _Ints("6Q", 16), _Ints("2Q", 64)


class RiscvCsrExit(_ForeignExit, kvm="KVM_EXIT_RISCV_CSR"):
    """RISC-V CSR access."""

    __slots__ = ()
    _fields = ("csr_num", "new_value", "write_mask", "ret_value")
    csr_num, new_value = _Int("Q", 0), _Int("Q", 8)
    write_mask, ret_value = _Int("Q", 16), _Int("Q", 24)


class LoongarchIocsrExit(_ForeignExit, kvm="KVM_EXIT_LOONGARCH_IOCSR"):
    """LoongArch IOCSR access."""

    __slots__ = ()
    _fields = ("phys_addr", "data", "len", "is_write")
    phys_addr, data = _Int("Q", 0), _Int("Q", 8)
    len, is_write = _Int("I", 16), _Int("B", 20)
