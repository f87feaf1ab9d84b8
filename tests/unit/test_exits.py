"""Typed exits over made-up `kvm_run` contents: every reason, every field, every text."""

from __future__ import annotations

import errno
import types
from collections.abc import Iterator
from typing import Any

import pytest

from pykvm._native import ffi, lib
from pykvm.errors import register_explainer
from pykvm.kvm import exit_locate, exits
from pykvm.kvm.constants import exit_reasons
from pykvm.kvm.errors import ClosedError, KvmError
from pykvm.kvm.region import MemoryRegion

DATA_PAGE = 4096
IN, OUT = lib.KVM_EXIT_IO_IN, lib.KVM_EXIT_IO_OUT


class FakeVcpu:
    """What an exit needs of a vCPU, without KVM: real mode, CS base 0, some memory."""

    def __init__(self) -> None:
        self._mapping = bytearray(3 * 4096)
        self._run: Any = ffi.cast("struct kvm_run *", ffi.from_buffer(self._mapping))
        self.memory = MemoryRegion(0, 1 << 20)
        self.vm = types.SimpleNamespace(regions=[self.memory])
        self.regs = self._run.s.regs.regs
        self.sregs = self._run.s.regs.sregs
        self.fd = -1
        self._exit_sites: dict[int, Any] = {}
        self.regs.rip = 0x1000
        self.regs.rsp = 0x800

    def code(self, text: str, rip: int = 0x1000) -> None:
        """Put code at 0x1000 and RIP somewhere."""
        self.memory.write(0x1000, bytes.fromhex(text))
        self.regs.rip = rip

    def io(self, direction: int, port: int, size: int, count: int, data: bytes = b"") -> Any:
        run = self._run
        run.exit_reason = exit_reasons()["KVM_EXIT_IO"]
        run.io.direction, run.io.port, run.io.size, run.io.count = direction, port, size, count
        run.io.data_offset = DATA_PAGE
        self._mapping[DATA_PAGE : DATA_PAGE + len(data)] = data
        return exits.make_exit(self)  # type: ignore[arg-type]

    def mmio(self, gpa: int, size: int, data: bytes | None = None) -> Any:
        run = self._run
        run.exit_reason = exit_reasons()["KVM_EXIT_MMIO"]
        run.mmio.phys_addr, run.mmio.len, run.mmio.is_write = gpa, size, data is not None
        run.mmio.data[0:8] = (data or b"").ljust(8, b"\xee")
        return exits.make_exit(self)  # type: ignore[arg-type]

    def other(self, name: str, error: int = 0) -> Any:
        self._run.exit_reason = exit_reasons()[name]
        return exits.make_exit(self, error)  # type: ignore[arg-type]

    def overwrite(self) -> None:
        """As the next exit would."""
        self._mapping[:] = b"\xff" * len(self._mapping)


@pytest.fixture(autouse=True)
def no_lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    """What made-up exits teach of the host's KVM is not true."""
    monkeypatch.setattr(exit_locate, "_rip_is_behind", {})


@pytest.fixture
def vcpu() -> Iterator[FakeVcpu]:
    vcpu = FakeVcpu()
    yield vcpu
    vcpu.memory.close()


@pytest.mark.parametrize(("name", "number"), exit_reasons().items())
def test_every_reason_of_the_headers_has_its_own_class(
    vcpu: FakeVcpu, name: str, number: int
) -> None:
    exit_ = vcpu.other(name)
    assert (exit_.name, exit_.reason) == (name, number)
    assert type(exit_).__name__ in exits.__all__
    assert [c.name for c in exits.Exit.classes.values()].count(name) == 1
    assert type(exit_).__doc__
    text = str(exit_)
    assert text
    assert "\n" not in text
    assert name in repr(exit_)
    exit_._detach()
    text = str(exit_)
    vcpu.overwrite()
    assert str(exit_) == text
    assert exit_.detached


def test_an_unknown_reason_keeps_number_and_bytes(vcpu: FakeVcpu) -> None:
    vcpu._run.exit_reason = 77
    ffi.buffer(ffi.addressof(vcpu._run, "padding"))[0:9] = b"\1\2\3\4\5\6\7\x08\x09"
    exit_ = exits.make_exit(vcpu)  # type: ignore[arg-type]
    assert isinstance(exit_, exits.UnknownExit)
    assert exit_.reason == 77
    assert len(exit_.raw) == 256
    assert exit_.raw.startswith(b"\1\2\3\4")
    exit_._detach()
    vcpu.overwrite()
    assert exit_.reason == 77
    assert str(exit_).startswith("unknown exit reason 77, data 01 0203040506070809 at")


def test_kvm_exit_unknown_names_the_hardware_reason(vcpu: FakeVcpu) -> None:
    vcpu._run.hw.hardware_exit_reason = 0x30
    exit_ = vcpu.other("KVM_EXIT_UNKNOWN")
    assert str(exit_).startswith("KVM does not know the hardware exit reason 0x30")


# -- ports -----------------------------------------------------------------------------------------


def test_out(vcpu: FakeVcpu) -> None:
    vcpu.regs.rdx = 0x3F8
    vcpu.code("ee f4")
    exit_ = vcpu.io(OUT, 0x3F8, 1, 1, b"H")
    assert (exit_.direction, exit_.is_write, exit_.port) == ("out", True, 0x3F8)
    assert (exit_.size, exit_.count, exit_.value, exit_.elements) == (1, 1, ord("H"), [ord("H")])
    assert bytes(exit_.data) == b"H"
    assert str(exit_) == "out 0x3f8 ← 'H' (1 byte) at 0x1000: out dx, al"
    assert repr(exit_) == "<IoExit KVM_EXIT_IO direction='out' port=0x3f8 size=1 count=1>"
    with pytest.raises(exits.ExitError, match="writes to port 0x3f8"):
        exit_.value = 1
    with pytest.raises(exits.ExitError, match="nothing to answer"):
        exit_.elements = [1]
    assert bytes(exit_.data) == b"H"


@pytest.mark.parametrize(
    ("data", "shown"),
    [(b"~", "'~'"), (b"\n", "0xa"), (b"\x80", "0x80"), (b"AB", "0x4241"), (b"ABCD", "0x44434241")],
)
def test_values_are_shown_as_a_character_or_in_hexadecimal(
    vcpu: FakeVcpu, data: bytes, shown: str
) -> None:
    assert f"← {shown} ({len(data)} byte" in str(vcpu.io(OUT, 0x10, len(data), 1, data))


def test_in_is_answered_through_value(vcpu: FakeVcpu) -> None:
    vcpu.code("e4 60")
    exit_ = vcpu.io(IN, 0x60, 1, 1, b"\xee")
    assert str(exit_) == "in 0x60 (1 byte) at 0x1000: in al, 0x60"
    exit_.value = 0x1C
    assert vcpu._mapping[DATA_PAGE : DATA_PAGE + 2] == b"\x1c\0"
    assert exit_.value == 0x1C
    assert str(exit_) == "in 0x60 → 0x1c (1 byte) at 0x1000: in al, 0x60"
    for wrong in (256, -1):
        with pytest.raises(exits.ExitError, match="does not fit the 1 byte"):
            exit_.value = wrong
    exit_._detach()
    vcpu.overwrite()
    assert exit_.value == 0x1C
    with pytest.raises(exits.ExitError, match="too late"):
        exit_.value = 2
    with pytest.raises(TypeError):
        exit_.data[0] = 1
    assert str(exit_) == "in 0x60 → 0x1c (1 byte) at 0x1000: in al, 0x60"


def test_string_input_is_answered_through_elements_or_data(vcpu: FakeVcpu) -> None:
    vcpu.regs.rdx = 0x10
    vcpu.regs.rcx = 3
    vcpu.code("f3 6d")
    exit_ = vcpu.io(IN, 0x10, 2, 3)
    assert str(exit_) == "ins 0x10, 3 × 2 bytes at 0x1000: rep insw word ptr es:[di], dx"
    exit_.elements = [0x1122, 0x3344, 0xFFFF]
    assert vcpu._mapping[DATA_PAGE : DATA_PAGE + 7] == b"\x22\x11\x44\x33\xff\xff\0"
    assert exit_.elements == [0x1122, 0x3344, 0xFFFF]
    assert str(exit_).startswith("ins 0x10 → 3 × 2 bytes at 0x1000")
    for wrong in ([1, 2], [1, 2, 3, 4]):
        with pytest.raises(exits.ExitError, match="reads 3 elements"):
            exit_.elements = wrong
    with pytest.raises(exits.ExitError, match="does not fit"):
        exit_.elements = [0, 0x10000, 0]
    assert exit_.elements == [0x1122, 0x3344, 0xFFFF]
    exit_.data[2:4] = b"\x01\x02"
    assert exit_.elements == [0x1122, 0x0201, 0xFFFF]
    exit_.value = 7
    assert exit_.elements == [7, 7, 7]


def test_string_output_of_a_page(vcpu: FakeVcpu) -> None:
    vcpu.regs.rdx = 0x10
    vcpu.code("f3 6e 90", rip=0x1002)
    exit_ = vcpu.io(OUT, 0x10, 1, 4096, bytes(range(256)) * 16)
    assert exit_.elements == list(range(256)) * 16
    assert exit_.value == 0
    exit_._detach()
    vcpu.overwrite()
    assert bytes(exit_.data) == bytes(range(256)) * 16
    assert str(exit_) == "outs 0x10 ← 4096 × 1 byte at 0x1000: rep outsb dx, byte ptr [si]"


@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 5), (4, 1024)])
def test_elements_have_their_size(vcpu: FakeVcpu, size: int, count: int) -> None:
    numbers = [(n * 0x01030507) & ((1 << 8 * size) - 1) for n in range(count)]
    data = b"".join(n.to_bytes(size, "little") for n in numbers)
    assert vcpu.io(OUT, 1, size, count, data).elements == numbers


# -- memory-mapped I/O -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 9))
def test_mmio_of_every_size(vcpu: FakeVcpu, size: int) -> None:
    data = bytes(range(0xA1, 0xA1 + size))
    write = vcpu.mmio(0xD0000000, size, data)
    assert (write.is_write, write.gpa, write.size) == (True, 0xD0000000, size)
    assert write.value == int.from_bytes(data, "little")
    assert bytes(write.data) == data
    with pytest.raises(exits.ExitError, match="nothing to answer"):
        write.value = 0
    write._detach()
    read = vcpu.mmio(0xD0000000, size)
    assert f"mmio read 0xd0000000 ({size} byte" in str(read)
    read.value = int.from_bytes(data, "little")
    assert bytes(read.data) == data
    assert bytes(vcpu._run.mmio.data) == data.ljust(8, b"\xee")
    read.data[:1] = b"\x01"
    assert read.value & 0xFF == 1
    with pytest.raises(exits.ExitError, match="does not fit"):
        read.value = 1 << 8 * size
    read._detach()
    vcpu.overwrite()
    assert bytes(write.data) == data
    assert bytes(read.data) == b"\x01" + data[1:]
    with pytest.raises(exits.ExitError, match="too late"):
        read.value = 0
    assert f"mmio read 0xd0000000 → {read.value:#x}" in str(read)


def test_mmio_text(vcpu: FakeVcpu) -> None:
    vcpu.regs.rax = 0x1234
    vcpu.sregs.ds.base = 0xD0000
    vcpu.code("a3 00 10 90", rip=0x1003)  # the emulator has gone on already
    exit_ = vcpu.mmio(0xD1000, 2, b"\x34\x12")
    assert str(exit_) == (
        "mmio write 0xd1000 ← 0x1234 (2 bytes) at 0x1000: mov word ptr [0x1000], ax"
    )
    vcpu.code("a1 00 10 90")
    exit_ = vcpu.mmio(0xD1000, 2)
    assert str(exit_) == "mmio read 0xd1000 (2 bytes) at 0x1000: mov ax, word ptr [0x1000]"


# -- where the instruction is ----------------------------------------------------------------------


def test_an_address_without_bytes_ends_the_text(vcpu: FakeVcpu) -> None:
    vcpu.regs.rip = 0xFFFF
    vcpu.sregs.cs.base = 0xFFFF0000
    exit_ = vcpu.io(OUT, 0x80, 1, 1, b"x")
    assert str(exit_) == "out 0x80 ← 'x' (1 byte) at 0xffffffff"
    assert exit_.address == 0xFFFFFFFF
    assert exit_.instruction == ""


def test_code_that_does_not_fit_the_exit_is_not_shown(vcpu: FakeVcpu) -> None:
    vcpu.code("90 90 90", rip=0x1001)
    assert str(vcpu.io(OUT, 0x80, 1, 1, b"x")) == "out 0x80 ← 'x' (1 byte) near 0x1001"
    assert str(vcpu.mmio(0xD0000, 1, b"x")) == "mmio write 0xd0000 ← 0x78 (1 byte) near 0x1001"
    assert str(vcpu.other("KVM_EXIT_HLT")) == "halted near 0x1001"


def test_a_closed_vcpu_leaves_the_address_out() -> None:
    vcpu = FakeVcpu()

    class Closed:
        @property
        def rip(self) -> int:
            raise ClosedError("vCPU 0 is closed")

    exit_ = vcpu.io(OUT, 0x80, 1, 1, b"x")
    vcpu.regs = Closed()
    exit_._detach()
    vcpu.overwrite()
    assert str(exit_) == "out 0x80 ← 'x' (1 byte)"
    assert exit_.address is None
    vcpu.memory.close()


def test_a_detached_exit_remembers_code_that_is_overwritten(vcpu: FakeVcpu) -> None:
    vcpu.code("e6 80 f4")
    exit_ = vcpu.io(OUT, 0x80, 1, 1, b"x")
    exit_._detach()
    vcpu.overwrite()
    vcpu.code("00 00 00", rip=5)
    assert str(exit_) == "out 0x80 ← 'x' (1 byte) at 0x1000: out 0x80, al"


def test_sites_are_taken_again_when_the_code_has_changed(vcpu: FakeVcpu) -> None:
    texts = []
    for code, port in (("e6 80", 0x80), ("e6 81", 0x81), ("e6 82", 0x82)):
        vcpu.code(code)
        exit_ = vcpu.io(OUT, port, 1, 1, b"x")
        exit_._detach()
        texts.append(exit_.instruction)
    assert texts == ["out 0x80, al", "out 0x81, al", "out 0x82, al"]
    assert len(vcpu._exit_sites) == 1


def test_remembered_sites_are_bounded(vcpu: FakeVcpu) -> None:
    for rip in range(0x1000, 0x4000):
        vcpu.regs.rip = rip
        vcpu.other("KVM_EXIT_INTR")._detach()
    assert len(vcpu._exit_sites) <= 1024


def test_an_exit_keeps_its_registers_when_the_user_changes_them(vcpu: FakeVcpu) -> None:
    vcpu.regs.rdx = 0x3F8
    vcpu.code("ee")
    exit_ = vcpu.io(OUT, 0x3F8, 1, 1, b"H")
    exit_._pin()
    vcpu.regs.rdx = 0
    vcpu.regs.rip = 0x5000
    assert str(exit_).endswith("at 0x1000: out dx, al")
    exit_._detach()
    assert str(exit_).endswith("at 0x1000: out dx, al")


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "meaning"),
    [
        (0x80000021, "VMX VM-entry failure due to invalid guest state"),
        (0x80000022, "VMX VM-entry failure due to MSR loading"),
        (0x80000029, "VMX VM-entry failure due to machine-check event"),
        (0x80000030, "VMX VM-entry failure, basic reason 48"),
        (7, "VMX instruction error 7: VM entry with invalid control field(s)"),
        (8, "VMX instruction error 8: VM entry with invalid host-state field(s)"),
        ((1 << 64) - 1, "SVM VMEXIT_INVALID"),
        ((1 << 32) - 1, "SVM VMEXIT_INVALID"),
        (0x1234567, "neither"),
    ],
)
def test_a_failed_entry_names_the_hardware_reason(
    vcpu: FakeVcpu, reason: int, meaning: str
) -> None:
    vcpu._run.fail_entry.hardware_entry_failure_reason = reason
    vcpu._run.fail_entry.cpu = 3
    exit_ = vcpu.other("KVM_EXIT_FAIL_ENTRY")
    assert (exit_.hardware_entry_failure_reason, exit_.cpu) == (reason, 3)
    assert meaning in exit_.meaning
    assert str(exit_).startswith(f"failed entry, hardware reason {reason:#x}: {exit_.meaning}")


def test_a_failed_entry_says_which_field(vcpu: FakeVcpu, monkeypatch: pytest.MonkeyPatch) -> None:
    from pykvm import errors

    monkeypatch.setattr(errors, "_explainers", {})
    register_explainer("KVM_SET_SREGS", lambda subject: "tr.type must be 11")
    vcpu._run.fail_entry.hardware_entry_failure_reason = 0x80000021
    exit_ = vcpu.other("KVM_EXIT_FAIL_ENTRY")
    exit_._detach()
    assert "(tr.type must be 11)" in str(exit_)


def test_a_refused_instruction_as_kvm_fetched_it(vcpu: FakeVcpu) -> None:
    failure = vcpu._run.emulation_failure
    failure.suberror, failure.ndata, failure.flags = 1, 4, 1
    failure.insn_size = 15
    code = bytes.fromhex("f30fb8c3") + b"\x90" * 11
    ffi.buffer(failure.insn_bytes)[0:15] = code
    exit_ = vcpu.other("KVM_EXIT_INTERNAL_ERROR")
    assert (exit_.suberror, exit_.meaning) == (1, "emulation failed")
    assert exit_.instruction_bytes == code
    assert len(exit_.data) == 4
    text = "KVM internal error: it cannot emulate the instruction at 0x1000: popcnt ax, bx"
    assert str(exit_) == text
    exit_._detach()
    vcpu.overwrite()
    assert str(exit_) == text
    assert exit_.instruction_bytes == code


@pytest.mark.parametrize(("ndata", "flags", "size"), [(0, 1, 4), (3, 0, 4), (3, 1, 0), (3, 1, 99)])
def test_a_refused_instruction_fetched_from_memory(
    vcpu: FakeVcpu, ndata: int, flags: int, size: int
) -> None:
    vcpu.code("0f 77 90")
    failure = vcpu._run.emulation_failure
    failure.suberror, failure.ndata, failure.flags, failure.insn_size = 1, ndata, flags, size
    exit_ = vcpu.other("KVM_EXIT_INTERNAL_ERROR")
    assert exit_.instruction_bytes[:3] == b"\x0f\x77\x90"
    assert str(exit_).endswith("at 0x1000: emms")


def test_other_internal_errors_show_their_data(vcpu: FakeVcpu) -> None:
    internal = vcpu._run.internal
    internal.suberror, internal.ndata = 3, 99
    internal.data[0:2] = [0x80000B0E, 0x30]
    exit_ = vcpu.other("KVM_EXIT_INTERNAL_ERROR")
    assert exit_.data == [0x80000B0E, 0x30, *[0] * 14]
    internal.ndata = 2
    assert str(exit_).startswith(
        "KVM internal error 3: unexpected VM exit while an event was delivered, "
        "data 0x80000b0e 0x30"
    )


def test_a_memory_fault_needs_its_errno(vcpu: FakeVcpu) -> None:
    fault = ffi.cast("union pykvm_exit_extra *", ffi.addressof(vcpu._run, "padding")).memory_fault
    fault.gpa, fault.size, fault.flags = 0x8000, 0x1000, lib.KVM_MEMORY_EXIT_FLAG_PRIVATE
    for error in (errno.EFAULT, 133):
        exit_ = vcpu.other("KVM_EXIT_MEMORY_FAULT", error)
        assert isinstance(exit_, exits.MemoryFaultExit)
        assert (exit_.gpa, exit_.size, exit_.private) == (0x8000, 0x1000, True)
        assert exit_.errno == error
    assert "no private memory for 0x8000..0x8fff" in str(exit_)


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOEXEC, errno.EIO, errno.EINTR])
def test_a_stale_reason_is_not_believed(vcpu: FakeVcpu, error: int) -> None:
    for name in ("KVM_EXIT_MEMORY_FAULT", "KVM_EXIT_IO"):
        with pytest.raises(KvmError) as caught:
            vcpu.other(name, error)
        assert caught.value.errno == error
    with pytest.raises(KvmError, match="cannot give"):
        vcpu.other("KVM_EXIT_IO", errno.EFAULT)
    assert isinstance(vcpu.other("KVM_EXIT_INTR", errno.EINTR), exits.IntrExit)


def test_shutdown(vcpu: FakeVcpu) -> None:
    vcpu.code("0f 0b")
    assert str(vcpu.other("KVM_EXIT_SHUTDOWN")) == "shutdown (triple fault) at 0x1000: ud2"
    vcpu.regs.rip, vcpu.regs.rsp, vcpu.sregs.cs.base = 0xFFF0, 0, 0xFFFF0000
    exit_ = vcpu.other("KVM_EXIT_SHUTDOWN")
    assert str(exit_) == "shutdown (triple fault), registers already reset by the host"


# -- everything else -------------------------------------------------------------------------------


def test_debug(vcpu: FakeVcpu) -> None:
    vcpu.code("90 f4")
    arch = vcpu._run.debug.arch
    arch.exception, arch.pc, arch.dr6, arch.dr7 = 1, 0x1001, 0xFFFF4FF0, 0x400
    exit_ = vcpu.other("KVM_EXIT_DEBUG")
    assert (exit_.exception, exit_.pc, exit_.dr6, exit_.dr7) == (1, 0x1001, 0xFFFF4FF0, 0x400)
    assert exit_.single_step
    assert exit_.breakpoints == []
    assert str(exit_) == "debug: single step (#DB) at 0x1001: hlt"
    arch.dr6 = 0xFFFF0FF0 | 1 << 15 | 1 << 13 | 0b1010
    assert exit_.breakpoints == [1, 3]
    assert exit_.causes == [
        "breakpoint 1 (DR1)",
        "breakpoint 3 (DR3)",
        "access to a debug register (BD)",
        "task switch (BT)",
    ]
    arch.exception, arch.dr6 = 3, 0
    assert exit_.causes == ["breakpoint instruction"]
    assert exit_.breakpoints == []
    assert not exit_.single_step


def test_hlt(vcpu: FakeVcpu) -> None:
    vcpu.code("f4 f4 90", rip=0x1001)
    assert str(vcpu.other("KVM_EXIT_HLT")) == "halted at 0x1000: hlt"


def test_hypercall(vcpu: FakeVcpu) -> None:
    vcpu.code("0f 01 d9")
    call = vcpu._run.hypercall
    call.nr, call.longmode, call.args[0:3] = 12, 1, [0x1000, 2, 3]
    exit_ = vcpu.other("KVM_EXIT_HYPERCALL")
    assert (exit_.nr, exit_.call, exit_.long_mode) == (12, "KVM_HC_MAP_GPA_RANGE", True)
    assert exit_.args == [0x1000, 2, 3, 0, 0, 0]
    exit_.ret = -22
    assert call.ret == (1 << 64) - 22 == exit_.ret
    assert str(exit_) == (
        "KVM_HC_MAP_GPA_RANGE(0x1000, 0x2, 0x3, 0x0, 0x0, 0x0) at 0x1000: vmmcall"
    )
    with pytest.raises(exits.ExitError, match="64 bits"):
        exit_.ret = 1 << 64
    exit_._detach()
    with pytest.raises(exits.ExitError, match="too late"):
        exit_.ret = 0


def test_msrs(vcpu: FakeVcpu) -> None:
    msr = vcpu._run.msr
    vcpu.code("0f 32 0f 30")
    msr.index, msr.reason, msr.data = 0xC0000080, 4, 0
    exit_ = vcpu.other("KVM_EXIT_X86_RDMSR")
    assert (exit_.index, exit_.cause, exit_.error) == (0xC0000080, 4, False)
    start = "rdmsr IA32_EFER (0xc0000080)"
    assert str(exit_) == f"{start} (denied by the MSR filter) at 0x1000: rdmsr"
    exit_.value = 0xD01
    assert msr.data == 0xD01
    assert str(exit_).startswith(f"{start} → 0xd01 (denied")
    exit_.error = True
    assert msr.error == 1
    assert str(exit_).startswith(f"{start} → #GP (denied")
    vcpu.regs.rip = 0x1002
    msr.index, msr.reason, msr.data, msr.error = 0x99, 2, 5, 0
    exit_ = vcpu.other("KVM_EXIT_X86_WRMSR")
    assert str(exit_) == "wrmsr MSR 0x99 ← 0x5 (an unknown MSR) at 0x1002: wrmsr"
    with pytest.raises(AttributeError):
        exit_.value = 1
    exit_.error = True
    assert msr.error == 1
    exit_._detach()
    with pytest.raises(exits.ExitError, match="too late"):
        exit_.error = False


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0x10, "IA32_TIME_STAMP_COUNTER (0x10)"),
        (0x201, "IA32_MTRR_PHYSMASK0 (0x201)"),
        (0x405, "IA32_MC1_STATUS (0x405)"),
        (0x830, "x2APIC register (0x830)"),
        (0xC0000082, "IA32_LSTAR (0xc0000082)"),
        (0x12345, "MSR 0x12345"),
    ],
)
def test_msr_names(vcpu: FakeVcpu, index: int, name: str) -> None:
    vcpu._run.msr.index = index
    assert vcpu.other("KVM_EXIT_X86_RDMSR").msr == name


@pytest.mark.parametrize(
    ("number", "name"),
    [(1, "shutdown"), (2, "reset"), (3, "crash"), (5, "suspend"), (99, "event 99")],
)
def test_system_events(vcpu: FakeVcpu, number: int, name: str) -> None:
    event = vcpu._run.system_event
    event.type, event.ndata, event.data[0] = number, 1, 0x42
    exit_ = vcpu.other("KVM_EXIT_SYSTEM_EVENT")
    assert (exit_.type, exit_.event, exit_.data) == (number, name, [0x42])
    assert str(exit_).startswith(f"system event: {name}, data 0x42")
    event.ndata = 1000
    assert len(exit_.data) == 16


def test_small_ones(vcpu: FakeVcpu) -> None:
    run = vcpu._run
    run.eoi.vector = 0x31
    assert str(vcpu.other("KVM_EXIT_IOAPIC_EOI")).startswith("end of interrupt, vector 0x31")
    run.cr8 = 5
    assert vcpu.other("KVM_EXIT_SET_TPR").cr8 == 5
    run.tpr_access.rip, run.tpr_access.is_write = 0x1234, 1
    access = vcpu.other("KVM_EXIT_TPR_ACCESS")
    assert (access.rip, access.is_write) == (0x1234, True)
    run.ex.exception, run.ex.error_code = 14, 2
    assert str(vcpu.other("KVM_EXIT_EXCEPTION")).startswith("exception #PF, error code 0x2")
    run.notify.flags = 1
    assert vcpu.other("KVM_EXIT_NOTIFY").context_invalid
    run.flags = 3
    assert vcpu.other("KVM_EXIT_X86_BUS_LOCK").flags == 3


def test_paravirtual_interfaces(vcpu: FakeVcpu) -> None:
    run = vcpu._run
    run.hyperv.type, run.hyperv.u.hcall.input = lib.KVM_EXIT_HYPERV_HCALL, 0x5C
    exit_ = vcpu.other("KVM_EXIT_HYPERV")
    assert exit_.details == {"input": 0x5C, "result": 0, "params": [0, 0]}
    exit_.result = 7
    assert run.hyperv.u.hcall.result == 7
    assert str(exit_).startswith("Hyper-V hcall: input 0x5c, result 0x7, params [0x0, 0x0]")
    run.hyperv.type = lib.KVM_EXIT_HYPERV_SYNIC
    assert set(exit_.details) == {"msr", "control", "evt_page", "msg_page"}
    with pytest.raises(exits.ExitError, match="has no result"):
        exit_.result = 1
    run.hyperv.type = 9
    assert exit_.details == {}
    run.xen.type, run.xen.u.hcall.input = lib.KVM_EXIT_XEN_HCALL, 0x1D
    exit_ = vcpu.other("KVM_EXIT_XEN")
    exit_.result = 3
    assert (exit_.input, exit_.result, run.xen.u.hcall.result) == (0x1D, 3, 3)
    exit_ = vcpu.other("KVM_EXIT_TDX")
    exit_.ret = 1
    assert exit_.ret == 1


def test_other_architectures_read_their_fields(vcpu: FakeVcpu) -> None:
    union = ffi.buffer(ffi.addressof(vcpu._run, "padding"))
    union[0:32] = bytes(range(32))
    exit_ = vcpu.other("KVM_EXIT_S390_SIEIC")
    assert (exit_.icptcode, exit_.ipa, exit_.ipb) == (0, 0x0302, 0x07060504)
    assert vcpu.other("KVM_EXIT_ARM_NISV").fault_ipa == 0x0F0E0D0C0B0A0908
    assert len(vcpu.other("KVM_EXIT_RISCV_SBI").args) == 6
    assert "icptcode=0" in str(exit_)
