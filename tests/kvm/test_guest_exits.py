"""Typed exits from real guests: the numbers, the answers, and the instruction each one shows."""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from pykvm.arch import presets
from pykvm.arch.state import CpuState
from pykvm.kvm import HardwareBreakpoint, Kvm, KvmError, Vcpu, exit_locate
from pykvm.kvm.exits import (
    DebugExit,
    Exit,
    ExitError,
    HltExit,
    InternalErrorExit,
    IoExit,
    MemoryFaultExit,
    MmioExit,
    RdmsrExit,
    ShutdownExit,
    WrmsrExit,
)
from pykvm.kvm.region import MemoryRegion

CODE, TABLES, HIGH = 0x1000, 0x10_0000, 0xFFFF_8000_0000_0000
MEMORY = 4 << 20
MMIO = 0xD000_0000

Start = Callable[[Vcpu, bytes], None]


@pytest.fixture
def vcpu() -> Iterator[Vcpu]:
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.add_memory(0, MEMORY)
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid(kvm.supported_cpuid())
        yield vcpu


def real(entry: int = CODE) -> CpuState:
    state = presets.real_mode(entry)
    state.segments["ds"] = state.segments["ds"].replace(selector=0xD000, base=0xD0000)
    return state


def real_elsewhere() -> CpuState:
    """CS base is not 0: addresses are linear."""
    return presets.real_mode(CODE, segment=CODE >> 4)


def protected() -> CpuState:
    return presets.protected32(CODE, tables=TABLES)


def long() -> CpuState:
    return presets.long64(CODE, tables=TABLES)


def long_high() -> CpuState:
    """The code runs where it is not: guest-virtual and guest-physical differ."""
    return presets.long64(HIGH + CODE, tables=TABLES, map=[(HIGH, 0, MEMORY)])


def ring3() -> CpuState:
    """Ports by the I/O bitmap and by IOPL 3: each is what one of the software CPUs honours."""
    state = presets.ring3_64(CODE, tables=TABLES, io_ports=range(0x400))
    state.regs["rflags"] |= 3 << 12
    return state


MODES: dict[str, tuple[Callable[[], CpuState], int]] = {
    "real": (real, 16),
    "real, CS 0x100": (real_elsewhere, 16),
    "protected": (protected, 32),
    "long": (long, 64),
    "long, high half": (long_high, 64),
    "ring 3": (ring3, 64),
}


@dataclass
class Program:
    """Machine code, and which exits each instruction makes."""

    code: bytes = b""
    exits: list[tuple[int, str]] = field(default_factory=list)

    def add(self, code: str, *texts: str) -> None:
        """An instruction; one text for each exit that it makes."""
        self.exits += [(len(self.code), text) for text in texts]
        self.code += bytes.fromhex(code)

    def run(self, vcpu: Vcpu, state: CpuState) -> list[Exit]:
        memory = vcpu.vm.regions[0]
        memory.write(CODE, self.code + b"\xf4")
        state.apply(vcpu, memory)
        return [vcpu.run() for _ in self.exits]


def start_of(state: CpuState) -> int:
    return state.segments["cs"].base + state.regs["rip"]


def port_program(bits: int) -> Program:
    p = Program()
    p.add("ba0003" if bits == 16 else "ba00030000")  # mov dx, 0x300
    p.add("b064")  # mov al, 0x64: a prefix byte at its end
    word, long_ = ("ef", "66ef") if bits == 16 else ("66ef", "ef")
    p.add("ee", "out dx, al")
    p.add("ee", "out dx, al")
    p.add("ee", "out dx, al")
    p.add(word, "out dx, ax")
    p.add(long_, "out dx, eax")
    p.add("e680", "out 0x80, al")
    p.add("e67e", "out 0x7e, al")
    p.add("e67e", "out 0x7e, al")
    p.add("e780", f"out 0x80, {'ax' if bits == 16 else 'eax'}")
    p.add("ee", "out dx, al")
    p.add("ec", "in al, dx")
    p.add("ec", "in al, dx")
    word, long_ = word.replace("ef", "ed"), long_.replace("ef", "ed")
    p.add(word, "in ax, dx")
    p.add(long_, "in eax, dx")
    p.add("e460", "in al, 0x60")
    return p


@pytest.mark.parametrize("mode", MODES)
def test_port_exits_show_their_instruction(vcpu: Vcpu, mode: str) -> None:
    make, bits = MODES[mode]
    state = make()
    program = port_program(bits)
    memory = vcpu.vm.regions[0]
    memory.write(CODE, program.code)
    state.apply(vcpu, memory)
    for offset, text in program.exits:
        exit_ = vcpu.run()
        assert isinstance(exit_, IoExit), str(exit_)
        assert exit_.instruction == text
        assert exit_.address == start_of(state) + offset
        assert str(exit_).endswith(f" at {start_of(state) + offset:#x}: {text}")
        assert exit_.direction == text[: len(exit_.direction)]
        if not exit_.is_write:
            exit_.value = 0x55


@pytest.mark.parametrize("mode", MODES)
def test_exits_that_are_kept_tell_the_same_later(vcpu: Vcpu, mode: str) -> None:
    """Nothing is asked of an exit before the guest has gone on, twice: memory is the same."""
    make, bits = MODES[mode]
    state = make()
    program = port_program(bits)
    for _ in range(2):
        kept = program.run(vcpu, state)
        vcpu.vm.regions[0].fill(0, 0x3000, 0xCC)
        for exit_, (offset, text) in zip(kept[:-1], program.exits, strict=False):
            assert exit_.detached
            assert exit_.address == start_of(state) + offset
            assert exit_.instruction == text


def memory_program(bits: int) -> Program:
    """Stores and loads at DS:BX (or EBX, RBX), which is 0xd0000 (0xd0000000)."""
    p = Program()
    if bits == 16:
        base, wide, narrow, small = "bx", "66", "", "word"
        p.add("bb0000")  # mov bx, 0
        p.add("66b844332211")  # mov eax, 0x11223344
        store, load, edge_store, edge_load = "8907", "8b07", "8987fd0f", "8b87fd0f"
        byte, byte_load, immediate = "8807", "8a07", "c60755"
        increment, exchange = "ff07", "8707"
    else:
        base, wide, narrow, small = ("ebx" if bits == 32 else "rbx"), "", "66", "dword"
        p.add("bb000000d0")  # mov ebx, 0xd0000000
        p.add("b844332211")
        store, load = "8903", "8b03"
        edge_store, edge_load = "8983fd0f0000", "8b83fd0f0000"
        byte, byte_load, immediate = "8803", "8a03", "c60355"
        increment, exchange = "ff03", "8703"
    at, edge = f"[{base}]", f"[{base} + 0xffd]"
    p.add(byte, f"mov byte ptr {at}, al")
    p.add(byte, f"mov byte ptr {at}, al")
    p.add(immediate, f"mov byte ptr {at}, 0x55")
    p.add(narrow + store, f"mov word ptr {at}, ax")
    p.add(wide + store, f"mov dword ptr {at}, eax")
    p.add(wide + edge_store, *[f"mov dword ptr {edge}, eax"] * 2)
    p.add(byte_load, f"mov al, byte ptr {at}")
    p.add(narrow + load, f"mov ax, word ptr {at}")
    p.add(wide + load, f"mov eax, dword ptr {at}")
    p.add(wide + edge_load, *[f"mov eax, dword ptr {edge}"] * 2)
    p.add(increment, *[f"inc {small} ptr {at}"] * 2)
    p.add(exchange, *[f"xchg {small} ptr {at}, {'ax' if bits == 16 else 'eax'}"] * 2)
    if bits == 64:
        p.add("488903", "mov qword ptr [rbx], rax")
        p.add("4889431a", "mov qword ptr [rbx + 0x1a], rax")
        p.add("488983fb0f0000", *["mov qword ptr [rbx + 0xffb], rax"] * 2)
        p.add("488b83f90f0000", *["mov rax, qword ptr [rbx + 0xff9]"] * 2)
        p.add("488b03", "mov rax, qword ptr [rbx]")
        p.add("4889df")  # mov rdi, rbx
        p.add("b903000000")
        p.add("f3ab", *["rep stosd dword ptr [rdi], eax"] * 3)
        p.add("b902000000")
        p.add("f3ab", *["rep stosd dword ptr [rdi], eax"] * 2)
        p.add("48ab", "stosq qword ptr [rdi], rax")
        p.add("be00200000")
        p.add("a4", "movsb byte ptr [rdi], byte ptr [rsi]")
    return p


@pytest.mark.parametrize("mode", ["real", "protected", "long", "long, high half"])
def test_mmio_exits_show_their_instruction(vcpu: Vcpu, mode: str) -> None:
    make, bits = MODES[mode]
    state = make()
    program = memory_program(bits)
    memory = vcpu.vm.regions[0]
    if mode == "real":  # the hole below 1 MiB that real mode can reach
        vcpu.vm.remove_memory(memory)
        memory = vcpu.vm.add_memory(0, 0xD0000)
    memory.write(CODE, program.code)
    state.apply(vcpu, memory)
    device: dict[int, int] = {}
    kept = []
    for offset, text in program.exits:
        exit_ = vcpu.run()
        assert isinstance(exit_, MmioExit), str(exit_)
        assert str(exit_).endswith(f" at {start_of(state) + offset:#x}: {text}"), str(exit_)
        for i in range(exit_.size):
            if exit_.is_write:
                device[exit_.gpa + i] = exit_.data[i]
        if not exit_.is_write:
            answer = bytes(device.get(exit_.gpa + i, 0xEE) for i in range(exit_.size))
            exit_.value = int.from_bytes(answer, "little")
        kept.append((exit_, str(exit_)))
    for exit_, text in kept:
        assert str(exit_) == text


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_mmio_exits_that_are_kept_tell_the_same_later(vcpu: Vcpu, mode: str) -> None:
    make, bits = MODES[mode]
    state = make()
    program = memory_program(bits)
    kept = program.run(vcpu, state)
    for exit_, (offset, text) in zip(kept, program.exits, strict=True):
        assert (exit_.address, exit_.instruction) == (start_of(state) + offset, text)


@pytest.mark.parametrize("count", [1, 3, 4096])
@pytest.mark.parametrize(("opcode", "size"), [("6e", 1), ("666f", 2), ("6f", 4)])
def test_rep_outs_brings_every_element(vcpu: Vcpu, opcode: str, size: int, count: int) -> None:
    data = bytes((n * 7 + n // 256) & 0xFF for n in range(size * count))
    memory = vcpu.vm.regions[0]
    memory.write(0x8000, data)
    setup = "be00800000 ba10000000 b9" + count.to_bytes(4, "little").hex()
    code = f"{setup} f3{opcode} f3{opcode} {setup} f3{opcode}"
    memory.write(CODE, bytes.fromhex(code) + b"\xf4")
    long().apply(vcpu, memory)
    got = b""
    texts = set()
    while isinstance(exit_ := vcpu.run(), IoExit):
        assert (exit_.port, exit_.size, exit_.is_write) == (0x10, size, True)
        assert len(exit_.data) == size * exit_.count
        got += bytes(exit_.data)
        if len(got) in (size, len(data), len(data) + size, 2 * len(data)):
            texts.add(str(exit_).split(" at ")[1])
    assert isinstance(exit_, HltExit)
    assert got == data * 2
    letter = {1: "b", 2: "w", 4: "d"}[size]
    name = {1: "byte", 2: "word", 4: "dword"}[size]
    second = 0x100F + len(bytes.fromhex(f"f3{opcode} f3{opcode} {setup}"))
    assert texts == {f"{at:#x}: rep outs{letter} dx, {name} ptr [rsi]" for at in (0x100F, second)}


@pytest.mark.parametrize("count", [1, 3, 4096])
@pytest.mark.parametrize(("opcode", "size"), [("6c", 1), ("666d", 2), ("6d", 4)])
def test_rep_ins_takes_every_element(vcpu: Vcpu, opcode: str, size: int, count: int) -> None:
    data = bytes((n * 11 + n // 256) & 0xFF for n in range(size * count))
    code = "bf00800000 ba10000000 b9" + count.to_bytes(4, "little").hex() + f"f3{opcode}"
    memory = vcpu.vm.regions[0]
    memory.write(CODE, bytes.fromhex(code) + b"\xf4")
    long().apply(vcpu, memory)
    given = 0
    while isinstance(exit_ := vcpu.run(), IoExit):
        assert (exit_.port, exit_.size, exit_.is_write) == (0x10, size, False)
        part = data[given : given + size * exit_.count]
        given += len(part)
        if given % 3:
            exit_.data[:] = part
        else:
            exit_.elements = [
                int.from_bytes(part[i : i + size], "little") for i in range(0, len(part), size)
            ]
        if given == len(part):
            assert str(exit_).endswith("at 0x100f: " + exit_.instruction)
            assert exit_.instruction.startswith("rep ins")
    assert isinstance(exit_, HltExit)
    assert given == len(data)
    assert memory.read(0x8000, len(data) + 8) == data + bytes(8)


def test_an_exit_keeps_its_place_when_registers_are_set(vcpu: Vcpu) -> None:
    vcpu.vm.regions[0].write(CODE, b"\xe6\x80\xe6\x81\xec\xf4")
    long_high().apply(vcpu, vcpu.vm.regions[0])
    first = vcpu.run()
    vcpu.regs.rip = HIGH + CODE + 4
    vcpu.regs.rdx = 0x99
    assert str(first) == f"out 0x80 ← 0x0 (1 byte) at {HIGH + CODE:#x}: out 0x80, al"
    second = vcpu.run()
    assert isinstance(second, IoExit)
    assert (second.port, second.is_write) == (0x99, False)
    vcpu.regs.rbx = 5  # to be written with the next entry
    assert str(second).endswith("in al, dx")  # printing completes nothing
    second.value = 0x42
    assert isinstance(vcpu.run(), HltExit)
    assert (vcpu.regs.rax & 0xFF, vcpu.regs.rbx) == (0x42, 5)
    with pytest.raises(ExitError, match="too late"):
        second.value = 1


def test_the_host_is_measured_where_the_first_exit_is_ambiguous(
    vcpu: Vcpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three equal OUTs: each fits both sides of RIP."""
    facts: dict[tuple[int, bool, bool], bool] = {}
    monkeypatch.setattr(exit_locate, "_rip_is_behind", facts)
    vcpu.vm.regions[0].write(CODE, b"\xe6\x80" * 5)
    presets.real_mode(CODE + 4).apply(vcpu)
    assert vcpu.run().address == CODE + 4
    assert exit_locate._measure() == facts[16, False, False] == (vcpu.regs.rip == CODE + 6)
    assert vcpu.run().address == CODE + 6


def test_hlt_is_shown_where_it_is(vcpu: Vcpu) -> None:
    vcpu.vm.regions[0].write(CODE, b"\xf4\xf4")
    long_high().apply(vcpu, vcpu.vm.regions[0])
    assert str(vcpu.run()) == f"halted at {HIGH + CODE:#x}: hlt"
    assert str(vcpu.run()) == f"halted at {HIGH + CODE + 1:#x}: hlt"


def test_code_that_cannot_be_fetched_is_an_internal_error_or_a_fault(vcpu: Vcpu) -> None:
    """A jump to where no memory is: KVM has nothing to emulate there."""
    vcpu.vm.regions[0].write(CODE, bytes.fromhex("b8000000d0 ffe0"))
    long().apply(vcpu, vcpu.vm.regions[0])
    exit_ = vcpu.run()
    assert isinstance(exit_, InternalErrorExit), str(exit_)
    assert (exit_.suberror, exit_.meaning) == (1, "emulation failed")
    assert exit_.address == MMIO
    assert str(exit_) == "KVM internal error: it cannot emulate the instruction at 0xd0000000"
    assert exit_.instruction_bytes == b""


def test_an_instruction_that_the_emulator_refuses_is_shown(vcpu: Vcpu) -> None:
    """POPCNT: run by processors, refused where KVM emulates ring 0."""
    vcpu.vm.regions[0].write(CODE, bytes.fromhex("bb0f000000 f30fb8c3 f4"))
    long().apply(vcpu, vcpu.vm.regions[0])
    exit_ = vcpu.run()
    if isinstance(exit_, HltExit):
        assert vcpu.regs.rax == 4
        return
    assert isinstance(exit_, InternalErrorExit)
    assert exit_.instruction_bytes.startswith(b"\xf3\x0f\xb8\xc3")
    assert exit_.data
    assert str(exit_) == (
        "KVM internal error: it cannot emulate the instruction at 0x1005: popcnt eax, ebx"
    )


def test_a_triple_fault(vcpu: Vcpu) -> None:
    vcpu.vm.regions[0].write(CODE, bytes.fromhex("90 0f0b"))
    long().apply(vcpu, vcpu.vm.regions[0])
    exit_ = vcpu.run()
    assert isinstance(exit_, ShutdownExit)
    assert str(exit_).startswith("shutdown (triple fault)")
    if "already reset" not in str(exit_):
        assert str(exit_).endswith("at 0x1001: ud2")


def test_single_steps_and_breakpoints(vcpu: Vcpu) -> None:
    vcpu.vm.regions[0].write(CODE, bytes.fromhex("90 40 41 42 f4"))
    real_elsewhere().apply(vcpu, vcpu.vm.regions[0])
    vcpu.set_guest_debug(singlestep=True)
    exit_ = vcpu.run()
    assert isinstance(exit_, DebugExit)
    assert (exit_.exception, exit_.single_step, exit_.pc) == (1, True, CODE + 1)
    assert str(exit_) == "debug: single step (#DB) at 0x1001: inc ax"
    vcpu.set_guest_debug(hardware_breakpoints=[HardwareBreakpoint(CODE + 3)])
    exit_ = vcpu.run()
    assert isinstance(exit_, DebugExit)
    assert exit_.breakpoints == [0]
    assert str(exit_) == "debug: breakpoint 0 (DR0) (#DB) at 0x1003: inc dx"


def test_msr_exits_are_answered(vcpu: Vcpu) -> None:
    vm = vcpu.vm
    vm.enable_msr_exits(unknown=True)
    # mov ecx, 0x12345; rdmsr; mov ecx, 0x12346; wrmsr; rdmsr (which gets a #GP: triple fault)
    vm.regions[0].write(CODE, bytes.fromhex("b945230100 0f32 b946230100 0f30 0f32 f4"))
    long().apply(vcpu, vm.regions[0])
    exit_ = vcpu.run()
    assert isinstance(exit_, RdmsrExit)
    assert exit_.index == 0x12345
    assert str(exit_) == "rdmsr MSR 0x12345 (an unknown MSR) at 0x1005: rdmsr"
    exit_.value = 0x1122334455667788
    written = vcpu.run()
    assert str(exit_).startswith("rdmsr MSR 0x12345 → 0x1122334455667788")
    assert isinstance(written, WrmsrExit)
    assert (written.index, written.value) == (0x12346, 0x1122334455667788)
    assert str(written).endswith("at 0x100c: wrmsr")
    refused = vcpu.run()
    assert isinstance(refused, RdmsrExit)
    refused.error = True
    assert isinstance(vcpu.run(), ShutdownExit)


def test_memory_that_the_host_takes_away(vcpu: Vcpu, tmp_path: pathlib.Path) -> None:
    """The file under a slot is cut: KVM_RUN fails with EFAULT, with or without a memory fault."""
    path = tmp_path / "ram"
    path.write_bytes(bytes(0x4000))
    with path.open("r+b") as file:
        region = MemoryRegion(0x1000_0000, 0x4000, fd=file.fileno())
        vcpu.vm.add_memory(0x1000_0000, 0x4000, region=region)
        os.ftruncate(file.fileno(), 0)
    vcpu.vm.regions[0].write(CODE, bytes.fromhex("bb00000010 8a03 f4"))
    ring3().apply(vcpu, vcpu.vm.regions[0])
    found: Exit | KvmError
    try:
        found = vcpu.run()
    except KvmError as error:
        found = error
    assert isinstance(found, (KvmError, MemoryFaultExit))
    assert found.errno == errno.EFAULT
    if isinstance(found, MemoryFaultExit):
        assert found.gpa & ~0xFFF == 0x1000_0000


def test_exit_data_outlives_the_vm() -> None:
    """Nothing dangles: neither the exit object nor a view of its bytes."""
    with Kvm() as kvm, kvm.create_vm() as vm:
        memory = vm.add_memory(0, 1 << 20)
        memory.write(CODE, b"\xb0\x41\xe6\x80\xf4")
        vcpu = vm.create_vcpu(0)
        presets.real_mode(CODE).apply(vcpu)
        exit_ = vcpu.run()
        assert isinstance(exit_, IoExit)
        view = exit_.data
    assert bytes(view) == b"A"
    assert exit_.value == 0x41
    assert str(exit_) == "out 0x80 ← 'A' (1 byte) at 0x1002: out 0x80, al"
