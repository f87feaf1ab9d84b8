"""MSRs, CPUID and numbered registers of a vCPU (KVM API, 4.18 to 4.20, KVM_GET_ONE_REG)."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.cpuid import CpuidEntry, pack_cpuid, read_cpuid
from pykvm.kvm.errors import KvmError, Unsupported
from pykvm.kvm.msrs import read_msrs, write_msrs
from pykvm.kvm.vcpu_base import VcpuBase
from pykvm.typed import Any

_MSR_REGISTER = c.KVM_REG_X86 | c.KVM_REG_SIZE_U64 | c.KVM_X86_REG_TYPE_MSR << 32
_KVM_REGISTER = c.KVM_REG_X86 | c.KVM_REG_SIZE_U64 | c.KVM_X86_REG_TYPE_KVM << 32


class VcpuMsrs(VcpuBase):
    """Model-specific registers and what the CPUID instruction says."""

    def get_msrs(self, indices: Iterable[int] | None = None) -> dict[int, int]:
        """MSR values by number. All that make up the vCPU's state, unless named.

        Raises `MsrError` naming the first one that KVM refuses. Without `indices` the refused ones
        are left out: the kernel lists MSRs that a vCPU's CPUID may hide.
        """
        if indices is not None:
            return read_msrs(self, indices)
        from pykvm.kvm.msrs import MsrError

        found: dict[int, int] = {}
        rest = self.vm.kvm.msr_index_list()
        while rest:
            try:
                found |= read_msrs(self, rest)
                break
            except MsrError as error:
                found |= read_msrs(self, rest[: error.done])
                rest = rest[error.done + 1 :]
        return found

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Writes MSRs, number to value, in that order.

        Raises `MsrError` naming the first one that KVM refuses; those before it are written.
        """
        write_msrs(self, values)

    def get_msr(self, index: int) -> int:
        """The value of one MSR. Raises `MsrError`."""
        return read_msrs(self, (index,))[index]

    def set_msr(self, index: int, value: int) -> None:
        """Writes one MSR. Raises `MsrError`."""
        write_msrs(self, {index: value})

    # -- CPUID ---------------------------------------------------------------------------------

    def get_cpuid(self) -> list[CpuidEntry]:
        """What the guest's CPUID instruction answers; empty until set."""
        return read_cpuid(self, "KVM_GET_CPUID2")

    def set_cpuid(self, entries: Iterable[CpuidEntry] | Any) -> None:
        """Sets what the guest's CPUID instruction answers; start from `Kvm.supported_cpuid()`.

        Also takes a `struct kvm_cpuid2 *` (`pykvm.kvm.cpuid.read_cpuid_table`).

        Once the vCPU has run, KVM takes no other table than the one it has.
        """
        table = pack_cpuid(entries, "KVM_SET_CPUID2")
        try:
            self.ioctl("KVM_SET_CPUID2", table)
        except KvmError as error:
            hint = ""
            if error.errno == errno.EINVAL:
                hint = (
                    "the vCPU has run already, or leaf 0x80000008 has an address width, or leaf "
                    "0xD a feature, that the host lacks"
                )
            raise error.explained(f"{table.nent} entries", hint) from None

    cpuid = property(get_cpuid, set_cpuid, doc="The CPUID table: a copy; assign it to set it.")

    # -- numbered registers --------------------------------------------------------------------

    def register_list(self) -> list[int]:
        """Ids of the registers that `get_register` knows (Linux 6.18 and newer)."""
        size = 0
        while True:
            table: Any = ffi.new("struct kvm_reg_list *", {"n": size, "reg": size})
            try:
                self.ioctl("KVM_GET_REG_LIST", table)
            except KvmError as error:
                if error.errno != errno.E2BIG or table.n <= size:
                    raise _no_registers(error) from None
                size = table.n
                continue
            return [int(table.reg[i]) for i in range(table.n)]

    def get_register(self, register_id: int) -> int:
        """A 64-bit register by its KVM id (see `msr_register_id`, `SSP_REGISTER`)."""
        value: Any = ffi.new("__u64 *")
        self._one_reg("KVM_GET_ONE_REG", register_id, value)
        return int(value[0])

    def set_register(self, register_id: int, value: int) -> None:
        """Sets a 64-bit register by its KVM id."""
        self._one_reg("KVM_SET_ONE_REG", register_id, ffi.new("__u64 *", value))

    def _one_reg(self, ioctl: str, register_id: int, value: Any) -> None:
        request: Any = ffi.new("struct kvm_one_reg *")
        request.id = register_id
        request.addr = int(ffi.cast("uintptr_t", value))
        try:
            self.ioctl(ioctl, request)
        except KvmError as error:
            raise _no_registers(error.explained(f"register {register_id:#x}")) from None


SSP_REGISTER: int = _KVM_REGISTER | c.KVM_REG_GUEST_SSP
"""The KVM id of the guest's shadow stack pointer."""


def msr_register_id(index: int) -> int:
    """The KVM register id of an MSR, for `get_register`."""
    return _MSR_REGISTER | index


def _no_registers(error: KvmError) -> KvmError:
    if error.errno in (errno.ENOTTY, errno.EINVAL):
        return Unsupported(
            error.ioctl,
            error.argument,
            "this host's KVM (before Linux 6.18) or vCPU does not have it; use get_msrs",
            error.errno,
        )
    return error
