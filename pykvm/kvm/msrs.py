"""Reading and writing model-specific registers, with the one that was refused named.

KVM_GET_MSRS and KVM_SET_MSRS stop at the first MSR they refuse and return how many they did (KVM
API, 4.18 and 4.19), so the next one in the list is the culprit.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from itertools import islice

from pykvm._native import ffi
from pykvm.errors import explain
from pykvm.kvm.errors import InvalidArgument, KvmError
from pykvm.kvm.fd import FdOwner
from pykvm.typed import Any

_AT_ONCE = 255  # the kernel refuses lists of MAX_IO_MSRS (256) entries and more


class MsrError(KvmError):
    """An MSR that KVM refused to read or write; the message has its name and number.

    `.index`: its number. `.value`: what was to be written, None for a read. `.done`: how many MSRs
    of the call were read or written before it.
    """

    def __init__(self, ioctl: str, index: int, value: int | None, done: int) -> None:
        from pykvm.kvm.exit_names import msr

        what = msr(index) if value is None else f"{msr(index)} = {value:#x}"
        why = explain(ioctl, (index, value)) or (
            "KVM does not have this MSR, or the vCPU's CPUID hides it"
            if value is None
            else "KVM does not have this MSR, or the value sets reserved bits"
        )
        super().__init__(ioctl, errno.EINVAL, what, why)
        self.index = index
        self.value = value
        self.done = done

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.ioctl, self.index, self.value, self.done))


def read_msrs(owner: FdOwner, indices: Iterable[int]) -> dict[int, int]:
    """The MSRs' values by index, in the order given. Raises `MsrError`."""
    found: dict[int, int] = {}
    rest = iter(indices)
    while part := list(islice(rest, _AT_ONCE)):
        table: Any = ffi.new("struct kvm_msrs *", {"nmsrs": len(part), "entries": len(part)})
        entries = table.entries
        for i, index in enumerate(part):
            entries[i].index = _checked(index, 32, f"MSR {index:#x}", "KVM_GET_MSRS")
        done = owner.ioctl("KVM_GET_MSRS", table)
        for i in range(done):
            found[part[i]] = entries[i].data
        if done < len(part):
            raise MsrError("KVM_GET_MSRS", part[done], None, len(found))
    return found


def write_msrs(owner: FdOwner, values: Mapping[int, int]) -> None:
    """Writes MSRs in the mapping's order. Raises `MsrError`; the ones before it are written."""
    written = 0
    rest = iter(values.items())
    while part := list(islice(rest, _AT_ONCE)):
        table: Any = ffi.new("struct kvm_msrs *", {"nmsrs": len(part), "entries": len(part)})
        entries = table.entries
        for i, (index, value) in enumerate(part):
            what = f"MSR {index:#x} = {value:#x}"
            entries[i].index = _checked(index, 32, what, "KVM_SET_MSRS")
            entries[i].data = _checked(value, 64, what, "KVM_SET_MSRS")
        done = owner.ioctl("KVM_SET_MSRS", table)
        written += done
        if done < len(part):
            raise MsrError("KVM_SET_MSRS", *part[done], written)


def _checked(value: int, bits: int, what: str, ioctl: str) -> int:
    if not 0 <= value < 1 << bits:
        raise InvalidArgument(
            ioctl, what, "MSR numbers have 32 bits and values 64, both without a sign"
        )
    return value
