"""The ioctl table and the cdef against what the compiler gets from the kernel's headers."""

from __future__ import annotations

import pathlib
import re

import pytest
from ioctl_opt import IOC_DIR, IOC_NONE, IOC_SIZE

from pykvm._native import ffi
from pykvm.kvm import constants as c
from pykvm.kvm.ioctls import IOCTLS, Ioctl, name_of

CDEF = (pathlib.Path(__file__).parents[2] / "native" / "cdef" / "10_kvm.h").read_text()
CURRENT = [i for i in IOCTLS.values() if i.on != "obsolete"]


@pytest.mark.parametrize("ioctl", CURRENT, ids=lambda i: i.name)
def test_number_is_the_compilers(ioctl: Ioctl) -> None:
    assert ioctl.number == c.header_ioctls()[ioctl.name]


@pytest.mark.parametrize("ioctl", IOCTLS.values(), ids=lambda i: i.name)
def test_size_is_the_compilers(ioctl: Ioctl) -> None:
    assert IOC_SIZE(ioctl.number) == ioctl.size
    assert bool(ioctl.structure) == (IOC_DIR(ioctl.number) != IOC_NONE)
    if ioctl.on == "obsolete" and ioctl.structure not in c.structure_sizes():
        assert ioctl.name not in c.header_ioctls()  # gone from this header, as it may be
    elif ioctl.structure:
        assert ioctl.size == c.structure_sizes()[ioctl.structure]


def test_nothing_of_the_headers_is_missing() -> None:
    assert set(c.header_ioctls()) <= set(IOCTLS)


def test_obsolete_rows_that_this_header_has_are_right_too() -> None:
    old = [i for i in IOCTLS.values() if i.on == "obsolete" and i.name in c.header_ioctls()]
    assert [i.number for i in old] == [c.header_ioctls()[i.name] for i in old]


def test_numbers_are_unique_and_have_names() -> None:
    assert len({i.number for i in IOCTLS.values()}) == len(IOCTLS)
    assert name_of(IOCTLS["KVM_RUN"].number) == "KVM_RUN"
    assert name_of(0x5401) == "ioctl 0x5401"


def test_known_numbers() -> None:
    # From the kernel's documentation and strace tables, not from any header.
    assert IOCTLS["KVM_RUN"].number == 0xAE80
    assert IOCTLS["KVM_SET_USER_MEMORY_REGION"].number == 0x4020AE46
    assert IOCTLS["KVM_GET_SREGS"].number == 0x8138AE83
    assert IOCTLS["KVM_CREATE_GUEST_MEMFD"].number == 0xC040AED4


def test_every_declared_structure_has_the_compilers_size() -> None:
    declared = {" ".join(m) for m in re.findall(r"^(struct|union) (\w+) \{", CDEF, re.M)}
    assert len(declared) > 70
    for name in declared:
        assert ffi.sizeof(name) == c.structure_sizes()[name], name


def test_kvm_run_has_the_documented_layout() -> None:
    # KVM API, section 5; offsets are ABI.
    for member, offset in {
        "immediate_exit": 1,
        "exit_reason": 8,
        "if_flag": 13,
        "cr8": 16,
        "apic_base": 24,
        "io": 32,
        "mmio": 32,
        "padding": 32,
        "kvm_valid_regs": 288,
        "s": 304,
    }.items():
        assert ffi.offsetof("struct kvm_run", member) == offset, member


def test_exit_extra_overlays_the_exit_union() -> None:
    run = ffi.new("struct kvm_run *")
    extra = c.exit_extra(run)
    extra.memory_fault.flags = 8
    extra.memory_fault.gpa = 0x1234000
    extra.memory_fault.size = 0x1000
    assert list(run.internal.data[0:2]) == [0x1234000, 0x1000]
    assert bytes(ffi.buffer(run))[32:40] == (8).to_bytes(8, "little")
    run.hypercall.nr = 12
    run.hypercall.ret = 7
    assert (extra.hypercall.nr, extra.hypercall.ret) == (12, 7)
    assert len(extra.raw) == 256


def test_tables_of_names() -> None:
    assert c.capabilities()["KVM_CAP_IRQFD"] == 32
    assert c.capabilities()["KVM_CAP_GUEST_MEMFD_FLAGS"] == 244
    assert len(c.capabilities()) > 230
    reasons = c.exit_reasons()
    assert reasons["KVM_EXIT_IO"] == 2
    assert reasons["KVM_EXIT_MEMORY_FAULT"] == 39
    # Sub-codes share the prefix but are no reasons: then two names would share a number.
    assert len(set(reasons.values())) == len(reasons)
    assert set(range(41)) <= set(reasons.values())
    assert c.exit_name(17) == "KVM_EXIT_INTERNAL_ERROR"
    assert c.exit_name(4711) == "KVM_EXIT_4711"


def test_capability_by_name_number_and_mistake() -> None:
    assert c.capability("KVM_CAP_IRQFD") == c.capability("irqfd") == c.capability(32) == 32
    assert c.capability_name(32) == "KVM_CAP_IRQFD"
    assert c.capability_name(99999) == "capability 99999"
    with pytest.raises(ValueError, match="did you mean KVM_CAP_IRQFD"):
        c.capability("KVM_CAP_IRQDF")
    with pytest.raises(ValueError, match="pass its number"):
        c.capability("xyzzy")
