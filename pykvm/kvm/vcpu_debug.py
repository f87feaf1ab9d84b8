"""Debugging a guest from outside (KVM API, 4.15 KVM_TRANSLATE, KVM_GET_DEBUGREGS,
KVM_SET_GUEST_DEBUG; SDM vol. 3, 18.2)."""

from __future__ import annotations

from collections.abc import Sequence

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.errors import InvalidArgument, KvmError
from pykvm.kvm.record import Record
from pykvm.kvm.vcpu_base import VcpuBase
from pykvm.kvm.vm_base import check_int
from pykvm.typed import Any, NamedTuple

_NAME = "KVM_SET_GUEST_DEBUG"
_KINDS = {"execute": 0, "write": 1, "access": 3}
_LENGTHS = {1: 0, 2: 1, 8: 2, 4: 3}


class DebugRegs(Record):
    """The guest's own debug registers: `db` is DR0 to DR3."""

    db: tuple[int, ...]
    dr6: int
    dr7: int
    flags: int = 0


class HardwareBreakpoint(NamedTuple):
    """One of the four that a CPU has.

    `address`: guest-virtual (linear). `kind`: "execute", "write" or "access" (read or write).
    `length`: 1, 2, 4 or 8 bytes, 1 for execution; the address must be aligned to it.
    """

    address: int
    kind: str = "execute"
    length: int = 1


class GuestDebug(NamedTuple):
    """What `set_guest_debug` has switched on. `control`: `constants.KVM_GUESTDBG_*`."""

    control: int
    breakpoints: tuple[HardwareBreakpoint, ...]

    @property
    def singlestep(self) -> bool:
        """Whether each instruction is an exit."""
        return bool(self.control & c.KVM_GUESTDBG_SINGLESTEP)

    @property
    def software_breakpoints(self) -> bool:
        """Whether INT3 is an exit."""
        return bool(self.control & c.KVM_GUESTDBG_USE_SW_BP)


class Translation(NamedTuple):
    """Where a guest-virtual address leads. `gpa` is None if it is not mapped.

    `writeable`, `usermode`: as KVM reports them, which is 1 and 0 whatever the page tables say;
    walk the tables (`pykvm.arch.paging`) for the real rights.
    """

    gva: int
    gpa: int | None
    valid: bool
    writeable: bool
    usermode: bool


class VcpuDebug(VcpuBase):
    """Debug registers, single steps, breakpoints, address translation."""

    _guest_debug: GuestDebug = GuestDebug(0, ())

    def get_debugregs(self) -> DebugRegs:
        """A copy of the guest's debug registers."""
        return self._get("KVM_GET_DEBUGREGS", DebugRegs, "kvm_debugregs")

    def set_debugregs(self, state: DebugRegs) -> None:
        """Sets the guest's debug registers."""
        try:
            self._set("KVM_SET_DEBUGREGS", state, "kvm_debugregs")
        except KvmError as error:
            raise error.explained(
                f"dr6={state.dr6:#x} dr7={state.dr7:#x}", "both must fit 32 bits, and flags be 0"
            ) from None

    debugregs = property(get_debugregs, set_debugregs, doc="DR0-3, DR6, DR7: a copy.")

    @property
    def guest_debug(self) -> GuestDebug:
        """What `set_guest_debug` switched on last."""
        return self._guest_debug

    def set_guest_debug(
        self,
        *,
        singlestep: bool = False,
        software_breakpoints: bool = False,
        hardware_breakpoints: Sequence[HardwareBreakpoint] = (),
        block_interrupts: bool = False,
        inject_db: bool = False,
        inject_bp: bool = False,
    ) -> None:
        """Makes debug events of the guest `DebugExit`s; replaces what was set before.

        `singlestep`: after each instruction. `software_breakpoints`: at INT3 (0xCC) that you put
        into guest memory. `hardware_breakpoints`: up to four, hidden from the guest.
        `block_interrupts`: none is delivered while stepping, where the host can. `inject_db`,
        `inject_bp`: give the guest the #DB or #BP that you decided not to keep.
        """
        control = 0
        for wanted, bit in (
            (singlestep, c.KVM_GUESTDBG_SINGLESTEP),
            (software_breakpoints, c.KVM_GUESTDBG_USE_SW_BP),
            (bool(hardware_breakpoints), c.KVM_GUESTDBG_USE_HW_BP),
            (block_interrupts, c.KVM_GUESTDBG_BLOCKIRQ),
            (inject_db, c.KVM_GUESTDBG_INJECT_DB),
            (inject_bp, c.KVM_GUESTDBG_INJECT_BP),
        ):
            control |= bit if wanted else 0
        control |= c.KVM_GUESTDBG_ENABLE if control else 0
        request: Any = ffi.new("struct kvm_guest_debug *")
        request.control = control
        _fill_registers(request.arch.debugreg, hardware_breakpoints)
        try:
            self.ioctl(_NAME, request)
        except KvmError as error:
            hint = "the host may lack part of it; `pykvm doctor` tries"
            if inject_db or inject_bp:
                hint = "an exception is pending in the guest already"
            raise error.explained(f"control={control:#x}", hint) from None
        keep = control & ~(c.KVM_GUESTDBG_INJECT_DB | c.KVM_GUESTDBG_INJECT_BP)
        self._guest_debug = GuestDebug(keep, tuple(hardware_breakpoints))

    def clear_guest_debug(self) -> None:
        """Switches all of `set_guest_debug` off; the guest has its debug registers to itself."""
        self.set_guest_debug()

    def translate(self, gva: int) -> Translation:
        """Where a guest-virtual (linear) address leads with the vCPU's current page tables."""
        request: Any = ffi.new("struct kvm_translation *")
        request.linear_address = check_int(gva, 64, "gva", "KVM_TRANSLATE")
        self.ioctl("KVM_TRANSLATE", request)
        valid = bool(request.valid)
        return Translation(
            gva,
            int(request.physical_address) if valid else None,
            valid,
            bool(request.writeable),
            bool(request.usermode),
        )


def _fill_registers(debugreg: Any, breakpoints: Sequence[HardwareBreakpoint]) -> None:
    """DR0-3 and DR7 (SDM vol. 3, 18.2.4) as KVM_SET_GUEST_DEBUG takes them."""
    if len(breakpoints) > 4:
        raise InvalidArgument(
            _NAME, f"{len(breakpoints)} hardware breakpoints", "a CPU has 4; use software ones too"
        )
    dr7 = 0x400
    for i, (address, kind, length) in enumerate(breakpoints):
        what = f"breakpoint at {address:#x}"
        check_int(address, 64, "address", _NAME)
        if kind not in _KINDS:
            raise InvalidArgument(_NAME, what, f'kind={kind!r}; use "execute", "write" or "access"')
        if length not in _LENGTHS or (kind == "execute" and length != 1):
            raise InvalidArgument(_NAME, what, f"length={length}; use 1, 2, 4, 8, or 1 to execute")
        if address % length:
            raise InvalidArgument(_NAME, what, f"it is not aligned to its length of {length}")
        debugreg[i] = address
        dr7 |= 2 << (2 * i) | (_KINDS[kind] | _LENGTHS[length] << 2) << (16 + 4 * i)
    if breakpoints:
        debugreg[7] = dr7
