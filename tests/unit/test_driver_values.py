"""The driver's value types, errors and argument checks that need no /dev/kvm."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykvm._native import ffi
from pykvm.kvm import ClosedError, InvalidArgument, Kvm, KvmError, KvmUnavailable, Unsupported
from pykvm.kvm.cpuid import CpuidEntry, pack_cpuid
from pykvm.kvm.fd import FdOwner
from pykvm.kvm.irqchip import IoapicState, PitChannel, PitState, default_routes
from pykvm.kvm.msrs import MsrError
from pykvm.kvm.record import Record
from pykvm.kvm.vcpu_debug import DebugRegs, HardwareBreakpoint, _fill_registers
from pykvm.kvm.vcpu_events import VcpuEvents
from pykvm.kvm.vcpu_fpu import FpuState
from pykvm.kvm.vcpu_lapic import LapicState
from pykvm.kvm.vcpu_regs import DescriptorTable, Segment, Sregs2State, SregsState
from pykvm.kvm.vm_dirty import set_bits
from pykvm.kvm.vm_policy import MsrFilterRange

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
u16 = st.integers(0, 2**16 - 1)
u8 = st.integers(0, 255)


class Point(Record):
    x: int
    y: int = 7


def test_record_is_a_small_value() -> None:
    p = Point(1)
    assert (p.x, p.y) == (1, 7)
    assert p == Point(x=1, y=7)
    assert p != Point(1, 8)
    assert p != (1, 7)
    assert repr(Point(255, 3)) == "Point(x=0xff, y=3)"
    assert p.replace(y=9).as_dict() == {"x": 1, "y": 9}
    p.x = 5
    assert p.x == 5
    assert pickle.loads(pickle.dumps(p)) == p


@pytest.mark.parametrize(
    ("args", "named", "words"),
    [
        ((1, 2, 3), {}, "2 fields, 3 values"),
        ((), {"z": 1}, "no field 'z'"),
        ((1,), {"x": 1}, "two values for the field 'x'"),
        ((), {"y": 1}, "field 'x' is missing"),
    ],
)
def test_record_refuses_wrong_fields(
    args: tuple[int, ...], named: dict[str, int], words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        Point(*args, **named)


def test_nested_records_survive_json() -> None:
    channel = PitChannel(*range(13))
    state = PitState((channel, channel.replace(mode=2), channel), flags=1)
    again = PitState.from_dict(json.loads(json.dumps(state.as_dict())))
    assert again == state
    assert again.channels[1].mode == 2
    with pytest.raises(TypeError, match="no field 'tea'"):
        PitState.from_dict({"tea": 1})


def test_record_refuses_unknown_attributes() -> None:
    with pytest.raises(AttributeError, match="no field 'z'"):
        Point(1).z = 2  # type: ignore[attr-defined]


def test_record_says_which_field_does_not_fit() -> None:
    regs = DebugRegs((0, 0, 0, 1 << 64), 0, 0)
    with pytest.raises(ValueError, match=r"DebugRegs\.db"):
        regs.to_c(ffi.new("struct kvm_debugregs *"))
    with pytest.raises(ValueError, match="4 elements, not 2"):
        DebugRegs((0, 0), 0, 0).to_c(ffi.new("struct kvm_debugregs *"))


def through_c(record: Record, structure: str) -> Record:
    struct = ffi.new(f"struct {structure} *")
    record.to_c(struct)
    return type(record).from_c(struct)


@given(
    st.builds(
        FpuState,
        fpr=st.tuples(*[st.binary(min_size=16, max_size=16)] * 8),
        xmm=st.tuples(*[st.binary(min_size=16, max_size=16)] * 16),
        fcw=u16,
        fsw=u16,
        ftwx=u8,
        last_opcode=u16,
        last_ip=u64,
        last_dp=u64,
        mxcsr=u32,
    )
)
def test_fpu_state_survives_c(state: FpuState) -> None:
    assert through_c(state, "kvm_fpu") == state
    assert FpuState.from_dict(state.as_dict()) == state


segments = st.builds(
    Segment,
    base=u64,
    limit=u32,
    selector=u16,
    **dict.fromkeys(("type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable"), u8),
)
tables = st.builds(DescriptorTable, base=u64, limit=u16)
common = {
    **dict.fromkeys(("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt"), segments),
    **dict.fromkeys(("gdt", "idt"), tables),
    **dict.fromkeys(("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"), u64),
}


@given(st.builds(SregsState, **common, interrupt_bitmap=st.tuples(u64, u64, u64, u64)))
def test_sregs_survive_c(state: SregsState) -> None:
    assert through_c(state, "kvm_sregs") == state
    assert SregsState.from_dict(json.loads(json.dumps(state.as_dict()))) == state


@given(st.builds(Sregs2State, **common, flags=u64, pdptrs=st.tuples(u64, u64, u64, u64)))
def test_sregs2_survive_c(state: Sregs2State) -> None:
    assert through_c(state, "kvm_sregs2") == state


@given(st.fixed_dictionaries(dict.fromkeys(VcpuEvents._fields, u8)))
def test_events_survive_c(fields: dict[str, int]) -> None:
    state = VcpuEvents(**fields)
    assert through_c(state, "kvm_vcpu_events") == state


def test_every_byte_of_the_events_structure_has_a_field() -> None:
    struct = ffi.new("struct kvm_vcpu_events *")
    ffi.buffer(struct)[:] = b"\xff" * ffi.sizeof("struct kvm_vcpu_events")
    back = ffi.new("struct kvm_vcpu_events *")
    VcpuEvents.from_c(struct).to_c(back)
    kept = sum(byte == 0xFF for byte in ffi.buffer(back)[:])
    assert kept == len(ffi.buffer(struct)) - 26 - 1  # less `reserved` and `nmi.pad`


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        KvmError("KVM_RUN", errno.EINVAL, "cr0=0x1", "set PG with PE"),
        InvalidArgument("KVM_CREATE_VCPU", "vcpu_id=5", "it is used", errno.EEXIST),
        Unsupported("KVM_SMI", None, "no SMM here"),
        KvmUnavailable("/dev/kvm", errno.ENOENT, "there is no /dev/kvm", "load the module"),
        MsrError("KVM_SET_MSRS", 0xDEAD, 5, 3),
    ],
    ids=lambda e: type(e).__name__,
)
def test_errors_can_be_pickled(error: KvmError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert (again.ioctl, again.errno, again.argument) == (error.ioctl, error.errno, error.argument)


def test_error_text_is_one_sentence_with_everything() -> None:
    error = KvmError("KVM_RUN", errno.EINVAL, "cr0=0x1", "set PG with PE")
    assert str(error) == "KVM_RUN refused cr0=0x1 (EINVAL, Invalid argument): set PG with PE"
    assert (
        str(KvmError("KVM_RUN", errno.EPERM)) == "KVM_RUN refused (EPERM, Operation not permitted)"
    )
    assert isinstance(error, OSError)
    assert error.strerror == "Invalid argument"
    assert "ulimit" in str(KvmError("KVM_CREATE_VM", errno.EMFILE))


def test_argument_errors_are_value_errors() -> None:
    assert isinstance(InvalidArgument("KVM_RUN", None, "no"), ValueError)


def test_missing_device(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "kvm")
    with pytest.raises(KvmUnavailable, match=f"there is no {path}; load the kernel module") as info:
        Kvm(path)
    assert info.value.errno == errno.ENOENT
    assert "nested virtualization" in info.value.remedy


@pytest.mark.parametrize("kind", ["file", "null"])
def test_something_that_is_not_kvm(kind: str, tmp_path: os.PathLike[str]) -> None:
    path = "/dev/null"
    if kind == "file":
        path = os.path.join(tmp_path, "kvm")
        with open(path, "w"):
            pass
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmUnavailable, match="is not the KVM device"):
        Kvm(path)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_directory_is_not_kvm(tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(KvmUnavailable, match="is a directory"):
        Kvm(str(tmp_path))


def test_no_permission(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "kvm")
    with open(path, "w"):
        pass
    os.chmod(path, 0)
    for parent in (tmp_path, os.path.dirname(tmp_path), os.path.dirname(os.path.dirname(tmp_path))):
        os.chmod(parent, 0o755)
    code = f"""
import os
from pykvm.kvm import Kvm, KvmUnavailable
import pykvm.kvm.system
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    Kvm({path!r})
except KvmUnavailable as error:
    print(error.errno, error)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.startswith(f"{errno.EACCES} this user may not open {path}; join its group")


class OldKvm(Kvm):
    @property
    def api_version(self) -> int:
        return 11


def test_another_api_version_is_refused() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmUnavailable, match="version 11 of the KVM API, pykvm 12"):
        OldKvm("/dev/null")
    assert set(os.listdir("/proc/self/fd")) == before


# -- descriptors -------------------------------------------------------------------------------


def test_fd_owner_closes_once_and_refuses_use() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    done: list[str] = []
    with FdOwner(fd, "the thing") as owner:
        owner._at_close(lambda: done.append("first"))
        owner._at_close(lambda: done.append("second"))
        assert owner.fileno() == owner.fd == fd
    assert done == ["second", "first"]
    assert owner.closed
    owner.close()
    for use in (lambda: owner.fd, lambda: owner.ioctl("KVM_RUN"), owner.__enter__):
        with pytest.raises(ClosedError, match="the thing is closed"):
            use()
    with pytest.raises(OSError):
        os.fstat(fd)


def test_fd_owner_that_is_garbage_closes() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    FdOwner(fd, "garbage")
    with pytest.raises(OSError):
        os.fstat(fd)


def test_ioctl_errors_name_the_ioctl() -> None:
    with FdOwner(os.open("/dev/null", os.O_RDONLY), "x") as owner:
        with pytest.raises(KvmError, match=r"KVM_GET_REGS refused \(ENOTTY.*this kernel"):
            owner.ioctl("KVM_GET_REGS", ffi.new("struct kvm_regs *"))
        with pytest.raises(KvmError, match="KVM_RUN refused"):
            owner.ioctl(0xAE80)
        with pytest.raises(KeyError):
            owner.ioctl("KVM_NO_SUCH_THING")


# -- arguments ---------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 2000)))
def test_set_bits(bits: set[int]) -> None:
    bitmap = sum(1 << b for b in bits).to_bytes(256, "little")
    assert set_bits(bitmap) == sorted(bits)


@given(st.sets(st.integers(0x400000, 0x400400), min_size=1), st.booleans())
def test_msr_filter_range_of(indices: set[int], allow: bool) -> None:
    made = MsrFilterRange.of(indices, allow=allow)
    assert made.base == min(indices)
    assert made.base + made.count - 1 == max(indices)
    for i in range(made.count):
        bit = made.bitmap[i // 8] >> (i % 8) & 1
        assert bool(bit) == ((made.base + i in indices) == allow)


def test_msr_filter_range_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one MSR"):
        MsrFilterRange.of([])


def test_debug_registers_of_hardware_breakpoints() -> None:
    registers = [0] * 8
    _fill_registers(
        registers,
        [
            HardwareBreakpoint(0x1001),
            HardwareBreakpoint(0x2004, "write", 4),
            HardwareBreakpoint(0x3008, "access", 8),
        ],
    )
    assert registers[:4] == [0x1001, 0x2004, 0x3008, 0]
    # SDM vol. 3, figure 18-1: G0-2; R/W0=00 LEN0=00, R/W1=01 LEN1=11, R/W2=11 LEN2=10
    assert registers[7] == 0x400 | 0b101010 | 0b1101 << 20 | 0b1011 << 24


@pytest.mark.parametrize(
    ("breakpoints", "words"),
    [
        ([HardwareBreakpoint(0)] * 5, "a CPU has 4"),
        ([HardwareBreakpoint(0, "read")], 'use "execute"'),
        ([HardwareBreakpoint(0, "execute", 4)], "1 to execute"),
        ([HardwareBreakpoint(0, "write", 3)], "length=3"),
        ([HardwareBreakpoint(2, "write", 4)], "not aligned"),
        ([HardwareBreakpoint(-1)], "address=-0x1"),
    ],
)
def test_impossible_hardware_breakpoints(breakpoints: list[HardwareBreakpoint], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        _fill_registers([0] * 8, breakpoints)


def test_lapic_registers_by_name_and_offset() -> None:
    state = LapicState(bytes(1024))
    state["tpr"] = 0x20
    assert state[0x80] == 0x20
    state[0x200] = 1 << 5
    state[0x110] = 1
    assert state.irr == [5]
    assert state.isr == [32]
    with pytest.raises(KeyError, match="no APIC register 'nope'"):
        state["nope"]
    with pytest.raises(KeyError, match="16 bytes apart"):
        state[0x81]
    with pytest.raises(ValueError, match="1024 bytes"):
        LapicState(b"")
    assert LapicState(state.data) == state
    assert "irr=[5]" in repr(state)


def test_cpuid_tables() -> None:
    entry = CpuidEntry(1, eax=0x600, ecx=1 << 31)
    table = pack_cpuid([entry], "KVM_SET_CPUID2")
    assert table.nent == 1
    assert CpuidEntry.from_c(table.entries[0]) == entry
    with pytest.raises(InvalidArgument, match="at most 256"):
        pack_cpuid([entry] * 257, "KVM_SET_CPUID2")


def test_ioapic_state_needs_all_pins() -> None:
    with pytest.raises(ValueError, match="24 entries, not 1"):
        IoapicState(0, 0, 0, 0, (0,))._to_chip(ffi.new("struct kvm_irqchip *"))


def test_default_routes_are_the_kernels() -> None:
    routes = default_routes()
    assert len(routes) == 40
    assert {route.gsi for route in routes} == set(range(24))
