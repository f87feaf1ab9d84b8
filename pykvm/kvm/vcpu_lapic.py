"""The local APIC and the run state of a vCPU (KVM API, 4.38 KVM_GET_MP_STATE, 4.57
KVM_GET_LAPIC)."""

from __future__ import annotations

import errno

from pykvm._native import ffi
from pykvm.enums import IntEnum
from pykvm.kvm import constants as c
from pykvm.kvm.errors import InvalidArgument, KvmError
from pykvm.kvm.vcpu_base import VcpuBase
from pykvm.typed import Any

_SIZE = 0x400

# Registers by name: offset in the APIC page (SDM vol. 3, table 11-1).
REGISTERS = {
    "id": 0x20,
    "version": 0x30,
    "tpr": 0x80,
    "apr": 0x90,
    "ppr": 0xA0,
    "eoi": 0xB0,
    "ldr": 0xD0,
    "dfr": 0xE0,
    "spiv": 0xF0,
    "esr": 0x280,
    "lvt_cmci": 0x2F0,
    "icr": 0x300,
    "icr2": 0x310,
    "lvt_timer": 0x320,
    "lvt_thermal": 0x330,
    "lvt_pc": 0x340,
    "lvt_lint0": 0x350,
    "lvt_lint1": 0x360,
    "lvt_error": 0x370,
    "timer_initial": 0x380,
    "timer_current": 0x390,
    "timer_divide": 0x3E0,
}


class LapicState:
    """A local APIC's 1 KiB of registers: `state["tpr"]`, `state[0x80]`, both 32 bits.

    Names are the keys of `REGISTERS`. `state.data` is the page itself, a bytearray.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes | bytearray) -> None:
        if len(data) != _SIZE:
            raise ValueError(f"a local APIC has {_SIZE} bytes of registers, not {len(data)}")
        self.data = bytearray(data)

    def __getitem__(self, register: str | int) -> int:
        at = _offset(register)
        return int.from_bytes(self.data[at : at + 4], "little")

    def __setitem__(self, register: str | int, value: int) -> None:
        at = _offset(register)
        self.data[at : at + 4] = value.to_bytes(4, "little")

    @property
    def irr(self) -> list[int]:
        """Vectors that are requested."""
        return self._vectors(0x200)

    @property
    def isr(self) -> list[int]:
        """Vectors in service."""
        return self._vectors(0x100)

    def _vectors(self, base: int) -> list[int]:
        words = [self[base + 16 * i] for i in range(8)]
        return [
            32 * i + bit for i, word in enumerate(words) for bit in range(32) if word >> bit & 1
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LapicState) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"<LapicState id={self['id']:#x} spiv={self['spiv']:#x} irr={self.irr}>"


class MpState(IntEnum):
    """What a vCPU is doing (KVM API, 4.38)."""

    RUNNABLE = c.KVM_MP_STATE_RUNNABLE
    UNINITIALIZED = c.KVM_MP_STATE_UNINITIALIZED  # an application processor before INIT
    INIT_RECEIVED = c.KVM_MP_STATE_INIT_RECEIVED  # waiting for SIPI
    HALTED = c.KVM_MP_STATE_HALTED
    SIPI_RECEIVED = c.KVM_MP_STATE_SIPI_RECEIVED


class VcpuLapic(VcpuBase):
    """Local APIC and multiprocessing state."""

    def get_lapic(self) -> LapicState:
        """A copy of the local APIC's registers. Needs an in-kernel irqchip, split or whole."""
        data: Any = ffi.new("struct kvm_lapic_state *")
        self._lapic("KVM_GET_LAPIC", data)
        return LapicState(bytes(ffi.buffer(data)))

    def set_lapic(self, state: LapicState) -> None:
        """Sets the local APIC's registers."""
        data: Any = ffi.new("struct kvm_lapic_state *")
        ffi.buffer(data)[:] = bytes(state.data)
        self._lapic("KVM_SET_LAPIC", data)

    lapic = property(get_lapic, set_lapic, doc="Local APIC registers: a copy.")

    def _lapic(self, ioctl: str, data: Any) -> None:
        try:
            self.ioctl(ioctl, data)
        except KvmError as error:
            hint = ""
            if self.vm.irqchip == "none":
                hint = "the VM has no in-kernel interrupt controller; call create_irqchip() first"
            elif error.errno == errno.EINVAL:
                hint = "its id or version is not the vCPU's own"
            raise error.explained("LAPIC", hint) from None

    def get_mp_state(self) -> MpState:
        """Whether the vCPU is runnable, halted, or waits for INIT or SIPI."""
        data: Any = ffi.new("struct kvm_mp_state *")
        self.ioctl("KVM_GET_MP_STATE", data)
        return MpState(data.mp_state)

    def set_mp_state(self, state: MpState | int) -> None:
        """Sets what the vCPU is doing. Without an in-kernel LAPIC only `RUNNABLE` is possible."""
        data: Any = ffi.new("struct kvm_mp_state *")
        if not 0 <= state < 1 << 32:
            raise InvalidArgument("KVM_SET_MP_STATE", f"state={state}", "see MpState")
        data.mp_state = int(state)
        try:
            self.ioctl("KVM_SET_MP_STATE", data)
        except KvmError as error:
            known = state in list(MpState)
            what = f"state={MpState(state).name if known else state}"
            hint = "x86 has the states of MpState only"
            if known:
                hint = "without an in-kernel LAPIC, or in SMM, the vCPU cannot be in that state"
            raise error.explained(what, hint) from None

    mp_state = property(get_mp_state, set_mp_state, doc="What the vCPU is doing: an `MpState`.")


def _offset(register: str | int) -> int:
    if isinstance(register, str):
        if register not in REGISTERS:
            raise KeyError(f"no APIC register {register!r}; there are: {', '.join(REGISTERS)}")
        return REGISTERS[register]
    if not 0 <= register < _SIZE or register % 16:
        raise KeyError(f"no APIC register at {register:#x}; they are 16 bytes apart, below 0x400")
    return register
