"""CPUID leaves as KVM takes and gives them (KVM API, 4.20 KVM_SET_CPUID, 4.46)."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from pykvm._native import ffi
from pykvm.kvm.errors import InvalidArgument, KvmError
from pykvm.kvm.fd import FdOwner
from pykvm.kvm.record import Record
from pykvm.typed import Any

MAX_ENTRIES = 256
"""What KVM_SET_CPUID2 takes at most (KVM_MAX_CPUID_ENTRIES)."""

_ENTRY_SIZE = ffi.sizeof("struct kvm_cpuid_entry2")
_LIST_LIMIT = 4096  # no kernel has that many; ends the search for a large enough buffer


class CpuidEntry(Record):
    """What the CPUID instruction answers for leaf `function` (and subleaf `index`).

    `flags`: `constants.KVM_CPUID_FLAG_*`; bit 0 says that `index` matters.
    """

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


def read_cpuid(owner: FdOwner, ioctl: str, size: int = 64) -> list[CpuidEntry]:
    """The entries that one of the KVM_GET_*CPUID* ioctls gives."""
    table = read_cpuid_table(owner, ioctl, size)
    return [CpuidEntry.from_c(table.entries[i]) for i in range(table.nent)]


def read_cpuid_table(owner: FdOwner, ioctl: str, size: int = 64) -> Any:
    """Issues one of the KVM_GET_*CPUID* ioctls, with a `struct kvm_cpuid2` as large as it needs.

    `Vcpu.set_cpuid` takes the structure as it is: the way for who only changes an entry or two.
    """
    while True:
        table: Any = ffi.new("struct kvm_cpuid2 *", {"nent": size, "entries": size})
        if ioctl == "KVM_GET_CPUID2":  # others look at what is in the buffer
            ffi.memmove(table.entries, b"\xff" * (size * _ENTRY_SIZE), size * _ENTRY_SIZE)
        try:
            owner.ioctl(ioctl, table)
        except KvmError as error:
            # Only KVM_GET_CPUID2 says how many it wanted; ENOMEM is KVM_GET_EMULATED_CPUID's word.
            if error.errno not in (errno.E2BIG, errno.ENOMEM) or size >= _LIST_LIMIT:
                raise
            size = max(size * 2, table.nent)
            continue
        # Kernels before 6.3 leave `nent` as it was: what they did not write is still all ones.
        while table.nent and table.entries[table.nent - 1].flags == 0xFFFFFFFF:
            table.nent -= 1
        return table


def pack_cpuid(entries: Iterable[CpuidEntry] | Any, ioctl: str) -> Any:
    """The entries as a `struct kvm_cpuid2 *`, if they are not one. Raises `InvalidArgument`."""
    if isinstance(entries, ffi.CData):
        return entries
    wanted = list(entries)
    if len(wanted) > MAX_ENTRIES:
        raise InvalidArgument(
            ioctl,
            f"{len(wanted)} entries",
            f"KVM takes at most {MAX_ENTRIES} CPUID entries; leave some leaves out",
            errno.E2BIG,
        )
    table: Any = ffi.new("struct kvm_cpuid2 *", {"nent": len(wanted), "entries": len(wanted)})
    for i, entry in enumerate(wanted):
        entry.to_c(table.entries[i])
    return table
