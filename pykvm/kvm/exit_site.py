"""Where the guest was when it exited: CS:RIP as a linear address, the mode, the bytes around it.

`kvm` may not import `arch`, so the little that is needed of modes is here: the size of the code
segment and whether paging is on (SDM vol. 3A, 3.4.5 and 4.1.1; guest-virtual addresses are
translated by KVM_TRANSLATE).
"""

from __future__ import annotations

from itertools import pairwise

from pykvm._native import ffi, lib
from pykvm.kvm.constants import header_ioctls
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pykvm.kvm.region import MemoryRegion
    from pykvm.kvm.vcpu import Vcpu

BEFORE = 32
"""Bytes kept from before RIP: an instruction has at most 15, and what precedes it tells where it
begins."""
AFTER = 16
"""Bytes kept from RIP on."""

_CR0_PE = 1 << 0
_CR0_PG = 1 << 31
_EFER_LMA = 1 << 10
_RFLAGS_VM = 1 << 17
_PAGE = 4096
_TRANSLATE = header_ioctls()["KVM_TRANSLATE"]
_SITES = 1024


class Site(NamedTuple):
    """The place of one exit. Addresses are linear (guest-virtual with the segment's base added)."""

    rip: int
    address: int
    """CS:RIP."""
    bits: int
    """Size of the code segment: 16, 32 or 64."""
    paging: bool
    user: bool
    """CPL 3."""
    bases: dict[str, int]
    """Segment bases by name, as this mode uses them."""
    before: bytes
    """Up to 32 bytes that end at `address`; empty if they could not be fetched."""
    after: bytes
    """Up to 16 bytes from `address` on; empty if they could not be fetched."""
    spot: tuple[MemoryRegion, int, int] | None
    """Where `after` begins in host memory, and how much of it: to see whether it has changed."""

    def fresh(self) -> bool:
        """Whether the code is still what it was."""
        if self.spot is None:
            return False
        region, offset, length = self.spot
        try:
            return region._view[offset : offset + length] == self.after[:length]
        except ValueError:  # the region was closed
            return False

    def code(self, address: int) -> bytes:
        """The bytes known from `address` on; empty if none are."""
        offset = address - (self.address - len(self.before))
        return (self.before + self.after)[offset:] if offset >= 0 else b""


def capture(vcpu: Vcpu, run: Any) -> Site:
    """The site of the exit in `run`. Raises `KvmError` and `ClosedError` of the vCPU."""
    rip = vcpu.regs.rip  # this fetches what the host does not sync
    cr0 = vcpu.sregs.cr0
    sregs = run.s.regs.sregs
    real = not cr0 & _CR0_PE or bool(run.s.regs.regs.rflags & _RFLAGS_VM)
    cs = sregs.cs
    if sregs.efer & _EFER_LMA and cs.l and not real:
        bits = 64
    else:
        bits = 32 if cs.db and not real else 16
    bases = {name: int(getattr(sregs, name).base) for name in ("cs", "ds", "es", "fs", "gs", "ss")}
    if bits == 64:
        bases.update(dict.fromkeys(("cs", "ds", "es", "ss"), 0))
    mask = (1 << 64) - 1 if bits == 64 else (1 << 32) - 1
    address = (bases["cs"] + rip) & mask
    paging = bool(cr0 & _CR0_PG)
    before, after, spot = _surroundings(vcpu, address, paging)
    user = sregs.ss.dpl == 3 and not (real and not cr0 & _CR0_PE)
    return Site(rip, address, bits, paging, user, bases, before, after, spot)


def remembered(vcpu: Vcpu, run: Any) -> Site:
    """As `capture`, but taken from earlier exits at the same RIP while the code there is the same.

    For exit objects that outlive their exit without being looked at, as the loop variable of
    `while True: exit = vcpu.run()` does: nothing is asked of the kernel for these.
    """
    sites: dict[int, Site] = vcpu._exit_sites
    rip = vcpu.regs.rip
    site = sites.get(rip)
    if site is None or not site.fresh():
        if len(sites) >= _SITES:
            sites.clear()
        site = sites[rip] = capture(vcpu, run)
    return site


def _surroundings(
    vcpu: Vcpu, address: int, paging: bool
) -> tuple[bytes, bytes, tuple[MemoryRegion, int, int] | None]:
    """The bytes before and after `address`, as many as can be read, and where the latter begin."""
    low, high = max(0, address - BEFORE), address + AFTER
    cuts = sorted({low, address, high, min(high, (low // _PAGE + 1) * _PAGE)})
    pages: dict[int, int | None] = {}
    before = after = b""
    spot = None
    for start, end in pairwise(cuts):
        base = start & -_PAGE
        if base not in pages:
            pages[base] = physical(vcpu, base) if paging else base
        place = _find(vcpu, pages[base], start - base, end - start)
        if place is None:
            if start >= address:
                break
            before = b""
            continue
        region, offset = place
        data = bytes(region._view[offset : offset + end - start])
        if start < address:
            before += data
        else:
            spot = spot or (region, offset, len(data))
            after += data
    return before, after, spot


def _find(
    vcpu: Vcpu, page: int | None, offset: int, length: int
) -> tuple[MemoryRegion, int] | None:
    """The region and the offset in it of a part of a guest-physical page."""
    if page is not None:
        gpa = page + offset
        for region in vcpu.vm.regions:
            if region.contains(gpa, length) and not region.closed:
                return region, gpa - region.gpa
    return None


def physical(vcpu: Vcpu, linear: int) -> int | None:
    """The guest-physical address of a linear one with the page tables of the exit; None if it is
    not mapped."""
    # Not vcpu.translate(): that would first bring changed registers to the kernel, which completes
    # a pending instruction. Here the page tables of the exit are wanted.
    request: Any = ffi.new("struct kvm_translation *")
    request.linear_address = linear
    if lib.pykvm_ioctl(vcpu.fd, _TRANSLATE, request) < 0 or not request.valid:
        return None
    return int(request.physical_address)
