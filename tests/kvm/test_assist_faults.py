"""Exceptions of instructions that the assist completes, and events: held against ring 3, or the
manual where ring 3 cannot show them."""

from __future__ import annotations

import pathlib
import struct
from collections.abc import Iterator

import pytest
from assist_oracle import (
    CODE,
    CODE_GPA,
    DATA,
    DONE,
    DONE_PORT,
    FRAMES,
    STUBS,
    VECTOR_PORT,
    Ring0,
    State,
    assemble,
    usable_xcr0,
)

from pykvm import Machine
from pykvm.arch import presets
from pykvm.arch.bits import CR0, CR4, PTE
from pykvm.arch.descriptors import Gate
from pykvm.arch.pagewalk import paging_registers, walk
from pykvm.machine.result import Stop, StopReason

XCR0 = usable_xcr0()
READ_ONLY, ABSENT = DATA + 0x3000, DATA + 0x4000

# Case, and the vector that the SDM gives it.
FAULTS = {
    "popcnt rax, [rdi]": 14,
    "movdqu xmm1, [rdi - 5]": 14,
    "movdqu [rdi - 5], xmm1": 14,
    "movups [rsi + 8], xmm1": 14,
    "cmpxchg16b [rsi]": 14,
    "lock cmpxchg16b [rsi]": 14,
    "fnstcw [rdi - 1]": 14,
    "fstp qword ptr [rdi - 3]": 16,
    "stmxcsr [rdi]": 14,
    "movaps xmm1, [rbx + 8]": 13,
    "paddd xmm1, [rbx + 8]": 13,
    "pshufb xmm1, [rbx + 4]": 13,
    "xrstor [rbx + 0x100]": 13,
    "movdqa [rbx + 4], xmm1": 13,
    "cmpxchg16b [rbx + 8]": 13,
    "ldmxcsr [rbx]": 13,
    "xsave [rbx + 8]": 13,
    "fxch st(1); fwait": 16,
    "divps xmm1, xmm2": 19,
    "ud2": 6,
    "ud1 eax, ecx": 6,
    "popcnt rax, [r8]": 13,
    "movq xmm1, [rbp + r8]": 12,
}


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder: pathlib.Path = tmp_path_factory.mktemp("faults")
    return dict(zip(FAULTS, assemble(list(FAULTS), folder), strict=True))


def make(ring: int) -> Ring0:
    """A CPU whose fourth data page is read-only, with nothing after it."""
    cpu = Ring0(XCR0, ring=ring)
    cpu.state.cr0 |= int(CR0.WP)
    found = walk(cpu.machine.memory, READ_ONLY, **paging_registers(cpu.vcpu.sregs))  # type: ignore[arg-type]
    entry = found.levels[-1]
    cpu.machine.memory.write_u64(entry.entry_gpa, entry.raw & ~int(PTE.RW))
    return cpu


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Ring0, Ring0]]:
    cpus = make(0), make(3)
    yield cpus
    for cpu in cpus:
        cpu.close()


def faulty() -> State:
    area = bytearray(4096)
    area[0:2] = b"\x60\x03"  # x87 exceptions are not masked
    area[2:4] = b"\x81\x80"  # and one is pending: IE, ES, B
    area[24:28] = (0x1F80 & ~0x200).to_bytes(4, "little")  # division by zero is not masked
    area[160 + 16 : 176 + 16] = struct.pack("<4f", 1, 2, 3, 4)
    area[512] = 3
    data = bytearray(b"\xff" * 0x4000)
    regs = {"rdi": ABSENT, "rsi": READ_ONLY, "rbx": DATA + 0x100, "rax": 1, "rdx": 0,
            "rbp": DATA, "r8": 1 << 50, "rcx": 0}  # fmt: skip
    return State(regs, 0x246, bytes(area), bytes(data))


@pytest.mark.parametrize("line", FAULTS)
def test_exceptions_are_those_of_ring_3(
    pair: tuple[Ring0, Ring0], codes: dict[str, bytes], line: str
) -> None:
    ours, real = (cpu.run(codes[line], faulty()) for cpu in pair)
    assert ours.vector == FAULTS[line]
    if real.vector == 6 and ours.vector == 13:
        # kvm_pvm gives ring 3 #UD for a #GP of an instruction that its emulator does not know.
        assert (ours.error, ours.data) == (0, real.data)
        return
    user = 4 if real.vector == 14 else 0  # the error code says that ring 3 did it
    assert (ours.vector, ours.error | user, ours.cr2) == (real.vector, real.error, real.cr2)
    assert ours.regs == real.regs
    assert ours.data == real.data


@pytest.mark.parametrize(
    ("line", "cr0", "cr4", "vector"),
    [
        ("popcnt rax, [rdi]", CR0.TS, 0, 14),
        ("fst dword ptr [rdi]", CR0.TS, 0, 7),
    ],
)
def test_control_registers(
    pair: tuple[Ring0, Ring0], line: str, cr0: int, cr4: int, vector: int, tmp_path: pathlib.Path
) -> None:
    cpu = pair[0]
    before = cpu.state
    try:
        cpu.state = before.copy()
        cpu.state.cr0 |= int(cr0)
        assert cpu.run(assemble([line], tmp_path)[0], faulty()).vector == vector
    finally:
        cpu.state = before


class Kernel:
    """A machine with handlers that end the run, and what they found on the stack."""

    def __init__(self, **options: object) -> None:
        self.machine = Machine("1M", board="bare", devices=False, irqchip="none", **options)  # type: ignore[arg-type]
        self.vcpu = self.machine.vcpus[0]
        self.machine.on_pio(DONE_PORT)(self._end)
        self.machine.on_pio(VECTOR_PORT)(self._end)
        stubs = b"".join(bytes((0xE6, VECTOR_PORT, 0x90, 0x90)) for _ in range(256))
        self.machine.memory.write(STUBS, stubs)

    def _end(self, access: object) -> None:
        raise Stop(StopReason.STOPPED)

    @property
    def vector(self) -> int:
        return (self.vcpu.regs.rip - STUBS) >> 2

    def frame(self, layout: str = "<5Q", skip: int = 0) -> tuple[int, ...]:
        base = 0 if self.vcpu.sregs.cr0 & 1 else self.vcpu.sregs.ss.base
        at = base + self.vcpu.regs.rsp + skip
        return self.machine.memory.read_struct(layout, at)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.machine.close()


def long_state(ring: int = 0, **options: object) -> presets.CpuState:
    handlers: dict[int, int | Gate] = {n: STUBS + 4 * n for n in range(256)}
    for vector in (3, 4, 0x80):
        handlers[vector] = Gate(STUBS + 4 * vector, presets.KERNEL_CODE, dpl=3)
    make = presets.ring3_64 if ring else presets.long64
    extra = {"user": [(CODE_GPA, 4096), (0x47000, 4096)]} if ring else {}
    return make(
        CODE_GPA, stack=0x48000, tables=0x10000, identity=1 << 20, page_size=4096,
        handlers=handlers, kernel_stack=0x46000, **extra, **options,
    )  # type: ignore[arg-type]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "vector", "length"), [("cc", 3, 1), ("cd03", 3, 2), ("cd80", 0x80, 2), ("cd0d", 13, 2)]
)
def test_software_interrupts_in_long_mode(
    kernel: Kernel, code: str, vector: int, length: int
) -> None:
    """RIP behind the instruction, no error code, flags without RF; also on an interrupt stack."""
    kernel.machine.memory.write(CODE_GPA, bytes.fromhex(code))
    long_state().apply(kernel.vcpu, kernel.machine.memory)
    kernel.machine.run(timeout=5)
    assert kernel.vector == vector
    rip, cs, rflags, rsp, ss = kernel.frame()
    assert (rip, cs, rflags, rsp, ss) == (CODE_GPA + length, 8, 2, 0x48000, 0x10)


def test_a_software_interrupt_takes_its_interrupt_stack(kernel: Kernel) -> None:
    state = long_state(ist=(0x44000,))
    state.apply(kernel.vcpu, kernel.machine.memory)
    gate = Gate(STUBS + 12, presets.KERNEL_CODE, ist=1).encode(64)
    kernel.machine.memory.write(state.idt.base + 3 * 16, gate)
    kernel.machine.memory.write(CODE_GPA, b"\xcc")
    kernel.machine.run(timeout=5)
    assert kernel.vector == 3
    assert kernel.vcpu.regs.rsp == 0x44000 - 40
    assert kernel.frame()[3] == 0x48000


@pytest.mark.parametrize(("present", "vector"), [(1, 13), (0, 11)])
def test_gates_that_are_none(kernel: Kernel, present: int, vector: int) -> None:
    """Beyond the IDT's limit, or of no gate type: #GP; not present: #NP; RIP on the instruction."""
    state = long_state()
    state.apply(kernel.vcpu, kernel.machine.memory)
    if present:
        kernel.vcpu.sregs.idt.limit = 0x40 * 16 + 14
    else:
        gate = Gate(STUBS, presets.KERNEL_CODE, present=0).encode(64)
        kernel.machine.memory.write(state.idt.base + 0x40 * 16, gate)
    kernel.machine.memory.write(CODE_GPA, b"\xcd\x40")
    kernel.machine.run(timeout=5)
    assert kernel.vector == vector
    error, rip = kernel.frame("<2Q")
    assert (error, rip) == (0x40 * 8 + 2, CODE_GPA)


@pytest.mark.parametrize(("code", "length", "vector"), [("cc", 1, 3), ("cd50", 2, 0x50)])
def test_real_mode_goes_through_the_vector_table(
    kernel: Kernel, code: str, length: int, vector: int
) -> None:
    memory = kernel.machine.memory
    memory.write(0, b"".join((STUBS + 4 * n).to_bytes(4, "little") for n in range(256)))
    memory.write(0x1000, bytes.fromhex(code))
    presets.real_mode(0x1000, stack=0x7000).apply(kernel.vcpu)
    kernel.machine.run(timeout=5)
    assert kernel.vector == vector
    assert kernel.frame("<3H")[:2] == (0x1000 + length, 0)


def test_into_and_iret_in_protected_mode(kernel: Kernel) -> None:
    """INTO with OF is vector 4; its handler returns with IRET, and the code goes on."""
    memory = kernel.machine.memory
    handlers = {n: STUBS + 4 * n for n in range(256)} | {4: 0x7000}
    memory.write(0x7000, b"\x43\xcf")  # inc ebx; iret
    # mov eax, 0x7fffffff; inc eax; into; xor eax, eax; into
    memory.write(CODE_GPA, bytes.fromhex("b8ffffff7f 40 ce 31c0 ce") + DONE)
    presets.protected32(
        CODE_GPA, stack=0x48000, tables=0x10000, handlers=handlers, kernel_stack=0x46000
    ).apply(kernel.vcpu, memory)
    kernel.machine.run(timeout=5)
    assert kernel.vcpu.regs.rbx == 1
    assert kernel.vcpu.regs.rip >= CODE_GPA


@pytest.mark.parametrize("code", ["66c5f9efc1", "c4ff7800", "f00f58c1"])
def test_encodings_that_no_cpu_has(kernel: Kernel, code: str) -> None:
    """66 before VEX, an opcode map that does not exist, LOCK where there is none: #UD."""
    kernel.machine.memory.write(CODE_GPA, bytes.fromhex(code))
    state = long_state()
    state.cr4 |= int(CR4.OSXSAVE)
    state.apply(kernel.vcpu, kernel.machine.memory)
    kernel.machine.run(timeout=5)
    assert kernel.vector == 6
    assert kernel.frame()[0] == CODE_GPA


def test_single_step_trap_after_a_completed_instruction(kernel: Kernel) -> None:
    """TF: #DB behind the instruction, with DR6.BS."""
    state = long_state(regs={"rflags": 0x102})
    state.apply(kernel.vcpu, kernel.machine.memory)
    kernel.machine.memory.write(CODE_GPA, bytes.fromhex("f30fb8c1") + DONE)
    kernel.machine.run(timeout=5)
    assert kernel.vector == 1
    assert kernel.frame()[0] == CODE_GPA + 4
    assert kernel.vcpu.debugregs.dr6 & 0x4000


@pytest.mark.parametrize(("size", "code"), [(8, "660fd607"), (4, "660f7e07")])
def test_device_registers_as_operands(kernel: Kernel, size: int, code: str) -> None:
    """SSE stores and loads of MMIO reach the bus with their size."""
    seen = []

    @kernel.machine.on_mmio(0x8000_0000, 0x1000)
    def device(access: object) -> None:
        seen.append((access.offset, access.size, access.value if access.is_write else None))  # type: ignore[attr-defined]
        if not access.is_write:  # type: ignore[attr-defined]
            access.value = 0x1122334455667788 & (1 << 8 * access.size) - 1  # type: ignore[attr-defined]

    state = long_state(map=[(0x8000_0000, 0x8000_0000, 0x1000)], regs={"rdi": 0x8000_0010})
    state.apply(kernel.vcpu, kernel.machine.memory)
    load = {8: "f30f7e07", 4: "660f6e07"}[size]
    kernel.machine.memory.write(CODE_GPA, bytes.fromhex(load + code) + DONE)
    kernel.machine.run(timeout=5)
    value = 0x1122334455667788 & (1 << 8 * size) - 1
    assert seen == [(0x10, size, None), (0x10, size, value)]


def test_accessed_and_dirty(kernel: Kernel) -> None:
    memory = kernel.machine.memory
    state = long_state(regs={"rdi": 0x60000})
    state.apply(kernel.vcpu, memory)
    found = walk(memory, 0x60000, **paging_registers(kernel.vcpu.sregs))  # type: ignore[arg-type]
    entry = found.levels[-1].entry_gpa
    clean = found.levels[-1].raw & ~int(PTE.A | PTE.D)
    for code, expected in (("f30fb80f", PTE.A), ("0fc30f", PTE.A | PTE.D)):  # popcnt, movnti
        memory.write_u64(entry, clean)
        state.apply(kernel.vcpu)
        memory.write(CODE_GPA, bytes.fromhex(code) + DONE)
        kernel.machine.run(timeout=5)
        assert memory.read_u64(entry) == clean | int(expected)


def test_smap(kernel: Kernel) -> None:
    """A user page is out of reach of ring 0 without AC, and within it after STAC."""
    memory = kernel.machine.memory
    state = long_state(map=[(0x60000, 0x60000, 0x1000, PTE.RW | PTE.US)], regs={"rdi": 0x60000})
    state.cr4 |= int(CR4.SMAP)
    memory.write(CODE_GPA, bytes.fromhex("0f01cb f30fb807 0f01ca f30fb807"))
    state.apply(kernel.vcpu, memory)
    kernel.machine.run(timeout=5)
    assert kernel.vector == 14
    error, rip = kernel.frame("<2Q")
    assert (error, rip) == (1, CODE_GPA + 10)


def test_ring_3_calls_the_kernel(kernel: Kernel) -> None:
    """INT 0x80, and SYSCALL, from 64-bit ring 3: also where a software KVM makes #UD and #PF of
    them (`assist="on"` watches for that from the start)."""
    for code, entry in (("cd80", STUBS + 4 * 0x80), ("0f05", STUBS + 4 * 0x99)):
        state = long_state(3, syscall=STUBS + 4 * 0x99, regs={"rflags": 0x202})
        kernel.machine.memory.write(CODE_GPA, bytes.fromhex(code))
        state.apply(kernel.vcpu, kernel.machine.memory)
        watch(kernel)
        kernel.machine.run(timeout=5)
        assert kernel.vcpu.regs.rip - 2 in (entry, entry - 2)
        assert kernel.vcpu.sregs.cs.selector & 3 == 0
        if code == "0f05":
            regs = kernel.vcpu.regs
            assert (regs.rcx, regs.r11 & ~0x10000, regs.rflags & 0x200) == (CODE_GPA + 2, 0x202, 0)
        else:
            assert kernel.frame()[:2] == (CODE_GPA + 2, presets.USER_CODE64)


def watch(kernel: Kernel) -> None:
    """As after the first completed instruction, or with assist="on"."""
    from pykvm.machine.assist import Assist

    machine = kernel.machine
    if machine.assist is None:
        machine.assist = Assist(machine)
    machine.assist.traps.visit(kernel.vcpu)


def test_what_really_is_undefined_stays_so(kernel: Kernel) -> None:
    state = long_state(3)
    kernel.machine.memory.write(CODE_GPA, b"\x0f\x0b")
    state.apply(kernel.vcpu, kernel.machine.memory)
    watch(kernel)
    kernel.machine.run(timeout=5)
    assert kernel.vector == 6
    assert kernel.frame()[:2] == (CODE_GPA, presets.USER_CODE64)


def test_off_ends_the_run_and_on_says_what_is_missing() -> None:
    if not refuses():
        pytest.skip("this host's KVM refuses no instruction")
    made = Kernel(assist="off")
    with made.machine:
        made.machine.memory.write(CODE_GPA, b"\xcc")
        long_state().apply(made.vcpu, made.machine.memory)
        result = made.machine.run(timeout=5)
        assert result.reason is StopReason.INTERNAL_ERROR
        assert "assist" not in result.detail
    made = Kernel()
    with made.machine:
        made.machine.memory.write(CODE_GPA, bytes.fromhex("c4e27590 0c17"))  # a gather
        state = long_state()
        state.cr4 |= int(CR4.OSXSAVE)
        made.vcpu.set_xcrs({0: 7})
        state.apply(made.vcpu, made.machine.memory)
        result = made.machine.run(timeout=5)
        assert result.reason is StopReason.INTERNAL_ERROR
        assert "the assist cannot finish it because a gather or scatter" in result.detail


def refuses() -> bool:
    """Whether this host's KVM refuses INT3 in ring 0."""
    made = Kernel(assist="off")
    with made.machine:
        made.machine.memory.write(CODE_GPA, b"\xcc")
        long_state().apply(made.vcpu, made.machine.memory)
        return made.machine.run(timeout=5).reason is StopReason.INTERNAL_ERROR


_ = (CODE, FRAMES)
