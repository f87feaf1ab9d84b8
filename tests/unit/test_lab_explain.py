"""Explanations over made-up exits: every reason has one, and it names what the exit holds."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import pytest

from pykvm._native import ffi
from pykvm.kvm import exit_locate, exits
from pykvm.kvm.constants import exit_reasons
from pykvm.kvm.exits import Exit
from pykvm.kvm.region import MemoryRegion
from pykvm.lab.explain import Explanation, explain
from pykvm.lab.explain.access import Access, explain_access
from pykvm.lab.explain.failures import _gate_problem
from pykvm.lab.explain.host import SOFTWARE_NOTE
from pykvm.lab.explain.texts import ARCHITECTURES, TEXTS

OWN = {
    "KVM_EXIT_IO", "KVM_EXIT_MMIO", "KVM_EXIT_FAIL_ENTRY", "KVM_EXIT_INTERNAL_ERROR",
}  # fmt: skip


class FakeVcpu:
    """What an exit needs of a vCPU: real mode, CS base 0, some memory."""

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

    def exit(self, name: str, code: str = "", rip: int = 0x1000) -> Exit:
        self.memory.write(0x1000, bytes.fromhex(code))
        self.regs.rip = rip
        self._run.exit_reason = exit_reasons()[name]
        return exits.make_exit(self)  # type: ignore[arg-type]


@pytest.fixture
def vcpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVcpu]:
    monkeypatch.setattr(exit_locate, "_rip_is_behind", {})
    vcpu = FakeVcpu()
    yield vcpu
    vcpu.memory.close()


@pytest.mark.parametrize("name", sorted({c.name for c in Exit.classes.values()}))
@pytest.mark.parametrize("host", ["vmx", "svm", "software", ""])
def test_every_reason_is_explained(vcpu: FakeVcpu, name: str, host: str) -> None:
    found = explain(vcpu.exit(name, "f4"), host=host)
    assert found.title
    assert found.why
    assert found.kernel
    assert found.user
    assert found.guest_next
    assert any("KVM API" in reference for reference in found.references)
    text = found.text(80)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "{" not in text
    assert set(found.as_dict()) == {
        "title", "instruction", "why", "kernel", "user", "guest_next", "references",
    }  # fmt: skip


def test_no_reason_is_forgotten_and_none_invented() -> None:
    names = set(exit_reasons())
    assert names - set(TEXTS) - set(ARCHITECTURES) - OWN <= {
        name for name in names if exit_reasons()[name] not in Exit.classes
    }
    assert set(TEXTS) | set(ARCHITECTURES) | OWN <= names


def test_a_detached_exit_is_explained_from_its_copy(vcpu: FakeVcpu) -> None:
    found = vcpu.exit("KVM_EXIT_HLT", "90f4", 0x1002)
    found._detach()
    vcpu._mapping[:] = b"\xff" * len(vcpu._mapping)
    told = explain(found, host="svm")
    assert told.instruction == "0x1001: hlt"
    assert "for good" in told.guest_next


def test_a_halt_with_interrupts_on_can_end(vcpu: FakeVcpu) -> None:
    vcpu.regs.rflags = 0x202
    assert "an interrupt would be delivered" in explain(vcpu.exit("KVM_EXIT_HLT")).guest_next


def test_what_emulates_ring_0_is_said_where_it_does(vcpu: FakeVcpu) -> None:
    found = vcpu.exit("KVM_EXIT_HLT", "f4", 0x1001)
    assert SOFTWARE_NOTE in explain(found, host="software").why
    assert SOFTWARE_NOTE not in explain(found, host="vmx").why
    kicked = vcpu.exit("KVM_EXIT_INTR")
    assert SOFTWARE_NOTE not in explain(kicked, host="software").why  # no instruction caused it


def test_msr_exits_name_register_and_cause(vcpu: FakeVcpu) -> None:
    vcpu._run.msr.index, vcpu._run.msr.reason = 0xC0000080, 4
    found = explain(vcpu.exit("KVM_EXIT_X86_RDMSR", "0f32"), host="vmx")
    assert found.title == "RDMSR of IA32_EFER (0xc0000080): denied by the MSR filter"
    assert found.instruction == "0x1000: rdmsr"
    assert "KVM_X86_SET_MSR_FILTER denies it" in found.why


def test_an_internal_error_has_bytes_instruction_and_advice(vcpu: FakeVcpu) -> None:
    vcpu._run.internal.suberror = 1
    found = explain(vcpu.exit("KVM_EXIT_INTERNAL_ERROR", "dbe2"), host="software")
    assert "db e2" in found.why
    assert "fnclex" in found.why
    assert "kvm_pvm" in found.why
    vcpu._run.internal.suberror, vcpu._run.internal.ndata = 3, 2
    vcpu._run.internal.data[0] = 0x80000B0E
    found = explain(vcpu.exit("KVM_EXIT_INTERNAL_ERROR"), host="vmx")
    assert "IDT-vectoring information" in found.why
    assert "0x80000b0e" in found.kernel


def test_a_failed_entry_names_the_field(vcpu: FakeVcpu) -> None:
    vcpu._run.fail_entry.hardware_entry_failure_reason = 0x80000021
    found = explain(vcpu.exit("KVM_EXIT_FAIL_ENTRY"), host="vmx")
    assert "invalid guest state" in found.title
    assert "Fields that the checks refuse" in found.why


PORT = Access(False, 0x3F8, True, 1, 1, 0x48, "COM1 THR", "0x1000: out dx, al")


def test_port_output() -> None:
    found = explain_access(PORT)
    assert found.title == "OUT to port 0x3f8 (COM1 THR): 0x48 ('H')"
    assert found.user == (
        "pykvm's bus found the device COM1 at port 0x3f8 and wrote 0x48 ('H') to its register THR."
    )


def test_the_general_text_has_no_value() -> None:
    text = explain_access(PORT._replace(value=None)).text()
    assert "0x48" not in text
    assert "wrote the value to its register THR" in " ".join(text.split())


def test_an_unclaimed_read_says_what_a_pc_has() -> None:
    found = explain_access(
        PORT._replace(address=0x60, is_write=False, value=0xFF, place="unclaimed (keyboard)")
    )
    assert "A PC has its keyboard there" in found.user
    assert "The answer 0xff in AL" in found.guest_next


def test_rep_and_native_rules() -> None:
    found = explain_access(PORT._replace(count=3, native=True))
    assert "OUTS with a REP prefix moves 3 elements of 1 byte" in found.why
    assert "native rule" in found.user
    one = explain_access(PORT._replace(instruction="0x1000 <a: b>: rep outsb dx, byte ptr [si]"))
    assert "OUTS with a REP prefix moves 1 byte" in one.why
    assert "OUTS moves" in explain_access(PORT._replace(instruction="0x10: outsb dx, [si]")).why
    assert "RCX" in found.guest_next


def test_mmio_on_no_memory_and_on_rom() -> None:
    mmio = Access(True, 0xD0000000, False, 4, 1, None, "", "")
    assert "belongs to no memory slot" in explain_access(mmio).why
    rom = explain_access(mmio._replace(is_write=True, backed=True))
    assert "KVM_MEM_READONLY" in rom.why


def test_guests_have_no_power_over_terminal_or_page() -> None:
    bad = Explanation("\x1b[2J<script>", "\x1b]0;x\x07<b>")
    assert "\x1b" not in bad.text()
    assert "\x07" not in bad.text()
    assert "<script>" not in bad._repr_html_()
    assert "<b>&" not in bad._repr_html_()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("0000 0800 008e 0000 00000000 00000000", ""),
        ("0000 0800 000e 0000 00000000 00000000", "not present"),
        ("0000 0800 0085 0000 00000000 00000000", "no gate"),
        ("0000 0000 008e 0000 00000000 00000000", "null code selector"),
        ("0000", "cannot be read"),
    ],
)
def test_idt_entries_are_judged(raw: str, said: str) -> None:
    found = _gate_problem(bytes.fromhex(raw), 16, "#DF", 0x5080)
    assert said in found
    assert bool(found) == bool(said)
