"""Each entry preset is entered on /dev/kvm and runs code that leans on what the preset built."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from pykvm.arch.bits import CR0, CR4, PTE, SystemType
from pykvm.arch.checker import check
from pykvm.arch.descriptors import Gate
from pykvm.arch.limits import CpuLimits
from pykvm.arch.presets import (
    KERNEL_CODE,
    KERNEL_DATA,
    PRESETS,
    USER_CODE64,
    USER_DATA,
    long64,
    pae32,
    paged32,
    protected32,
    real_mode,
    ring3_64,
)
from pykvm.arch.state import CpuState
from pykvm.kvm import Kvm, KvmError, Vcpu
from pykvm.memory import GuestMemory

ENTRY = 0x1000
HANDLERS = 0x3000
PORT = 0x10
OUT_EAX = bytes((0xE7, PORT))
HLT = b"\xf4"
PROTECTED = [name for name in PRESETS if name != "real_mode"]
RING0 = [name for name in PROTECTED if name != "ring3_64"]


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    with Kvm() as kvm:
        yield kvm


class Guest:
    """One vCPU in 2 MiB of memory, entered in a given state."""

    def __init__(self, kvm: Kvm, state: CpuState, code: bytes, at: int = ENTRY) -> None:
        self.kvm = kvm
        self.state = state
        self.vm = kvm.create_vm()
        self.vm.add_memory(0, 2 << 20)
        self.memory = GuestMemory(self.vm.regions)
        self.vcpu: Vcpu = self.vm.create_vcpu(0)
        self.vcpu.set_cpuid(kvm.supported_cpuid())
        self.memory.write(at, code)
        self.started = False

    def run(self) -> Any:
        """The next exit."""
        if not self.started:
            self.started = True
            self.state.apply(self.vcpu, self.memory)
        return self.vcpu.run()

    def lacks_paging32(self) -> bool:
        """The host's KVM has no paging outside long mode, and this guest was to use it.

        Such a KVM (one without VMX and SVM) shuts the guest down before its first instruction and
        clears CR0.PG. That is asserted here; any other way to fail is left to the caller.
        """
        if self.state.mode != "protected" or not self.state.paging:
            return False
        probe = Guest(self.kvm, self.state, HLT)
        exit = probe.run()
        name, rip, cr0 = exit.name, probe.vcpu.regs.rip, probe.vcpu.sregs.cr0
        probe.close()
        if name == "KVM_EXIT_HLT":
            return False
        assert (name, rip) == ("KVM_EXIT_SHUTDOWN", ENTRY)
        assert not cr0 & CR0.PG
        return True

    def outs(self) -> list[int]:
        """What the guest writes to `PORT` until it halts."""
        values = []
        while True:
            exit = self.run()
            if exit.name == "KVM_EXIT_HLT":
                return values
            assert exit.name == "KVM_EXIT_IO", str(exit)
            assert (exit.port, exit.is_write) == (PORT, True)
            values.append(exit.value)

    def close(self) -> None:
        self.vm.close()


@pytest.fixture
def guest(kvm: Kvm) -> Iterator[Any]:
    made: list[Guest] = []

    def make(state: CpuState, code: bytes, at: int = ENTRY) -> Guest:
        made.append(Guest(kvm, state, code, at))
        return made[-1]

    yield make
    for each in made:
        each.close()


def exception_handlers(memory_writer: Any) -> None:
    """32 handlers, 16 bytes apart: pop what the CPU pushed and write it, then the vector."""
    for vector in range(32):
        code = b"\x58" + OUT_EAX + b"\xb8" + struct.pack("<I", vector) + OUT_EAX + HLT
        memory_writer(HANDLERS + 16 * vector, code)


HANDLER_TABLE = {vector: HANDLERS + 16 * vector for vector in range(32)}


def test_real_mode_runs(guest: Any) -> None:
    # mov ax, cs; out; mov ax, ss; out; push/pop through the stack; out; hlt
    code = b"\x8c\xc8\xe7\x10\x8c\xd0\xe7\x10\x68\x34\x12\x58\xe7\x10\xf4"
    assert guest(real_mode(ENTRY), code).outs() == [0, 0, 0x1234]
    high = real_mode(0x12345, stack=0x20100)
    run = guest(high, code, at=0x12345)
    assert run.outs() == [0x1000, 0x2000, 0x1234]
    assert run.memory.read_u16(0x200FE) == 0x1234


def test_real_mode_interrupts_go_through_the_ivt(guest: Any) -> None:
    run = guest(real_mode(ENTRY), b"\x0f\x0b")
    run.memory.write(6 * 4, struct.pack("<HH", HANDLERS, 0))
    run.memory.write(HANDLERS, b"\xb8\x06\x00" + OUT_EAX + HLT)
    assert run.outs() == [6]


@pytest.mark.parametrize("name", RING0)
def test_ring0_presets_run(guest: Any, name: str) -> None:
    # mov eax, imm32; out; push it, pop it; out; mov eax, cs; out; hlt
    value = 0x12345678
    code = b"\xb8" + struct.pack("<I", value) + OUT_EAX + b"\x50\x31\xc0\x58" + OUT_EAX
    code += b"\x8c\xc8" + OUT_EAX + HLT
    run = guest(PRESETS[name](ENTRY, stack=0x8000), code)
    if run.lacks_paging32():
        return
    assert run.outs() == [value, value, KERNEL_CODE]
    slot = 8 if name == "long64" else 4
    assert run.memory.read_u32(0x8000 - slot) == value


@pytest.mark.parametrize("name", RING0)
def test_the_gdt_in_memory_serves_segment_loads(guest: Any, name: str) -> None:
    # mov eax, KERNEL_DATA; mov ds, eax; mov es, eax; mov ss, eax; far return to KERNEL_CODE.
    load = b"\xb8" + struct.pack("<I", KERNEL_DATA) + b"\x8e\xd8\x8e\xc0\x8e\xd0"
    target = ENTRY + 0x40
    far = b"\x6a" + bytes([KERNEL_CODE]) + b"\x68" + struct.pack("<I", target)
    far += b"\x48\xcb" if name == "long64" else b"\xcb"
    run = guest(PRESETS[name](ENTRY, stack=0x8000), load + far)
    run.memory.write(target, b"\xb8\x2a\x00\x00\x00" + OUT_EAX + HLT)
    if run.lacks_paging32():
        return
    assert run.outs() == [0x2A]
    assert run.vcpu.sregs.cs.selector == KERNEL_CODE
    assert run.vcpu.sregs.ds.limit == 0xFFFFFFFF


@pytest.mark.parametrize("name", RING0)
def test_exceptions_reach_the_handlers(guest: Any, name: str) -> None:
    run = guest(PRESETS[name](ENTRY, stack=0x8000, handlers=HANDLER_TABLE), b"\x0f\x0b")
    exception_handlers(run.memory.write)
    if run.lacks_paging32():
        return
    # #UD pushes no error code: the first thing on the stack is the faulting RIP.
    assert run.outs() == [ENTRY, 6]


@pytest.mark.parametrize("name", [n for n in RING0 if n != "protected32"])
def test_page_faults_are_those_of_the_tables(guest: Any, name: str) -> None:
    hole, read_only = 0x10_0000, 0x10_1000
    state = PRESETS[name](
        *(ENTRY,),
        stack=0x8000,
        handlers=HANDLER_TABLE,
        identity=0x10_0000,
        page_size=4096,
        map=[(read_only, read_only, 0x1000, 0)],
    )
    store = b"\xa3" + struct.pack("<I", hole)
    load = b"\xa1" + struct.pack("<I", read_only)
    if name == "long64":  # mov [disp32], eax has a SIB byte there
        store = b"\x89\x04\x25" + struct.pack("<I", hole)
        load = b"\x8b\x04\x25" + struct.pack("<I", read_only)
    run = guest(state, load + OUT_EAX + store)
    exception_handlers(run.memory.write)
    run.memory.write_u32(read_only, 0xCAFE)
    if run.lacks_paging32():
        return
    assert run.outs() == [0xCAFE, 2, 14]  # write, not present
    assert run.vcpu.sregs.cr2 == hole
    run = guest(state, store.replace(struct.pack("<I", hole), struct.pack("<I", read_only)))
    exception_handlers(run.memory.write)
    assert run.outs() == [3, 14]  # write, protection: CR0.WP binds ring 0
    assert run.vcpu.sregs.cr2 == read_only


def test_long64_runs_a_higher_half_kernel(guest: Any) -> None:
    base, at = 0xFFFF_FFFF_8010_0000, 0x5000
    # lea rax, [rip]; out the high half of it; hlt
    code = b"\x48\x8d\x05\x00\x00\x00\x00\x48\xc1\xe8\x20" + OUT_EAX + HLT
    state = long64(base, stack=base + 0x1000, map=[(base, at, 0x1000)])
    run = guest(state, code, at=at)
    assert run.outs() == [0xFFFFFFFF]
    assert run.vcpu.regs.rip == base + len(code)


def test_long64_no_execute(guest: Any) -> None:
    state = long64(
        *(0x20_0000,),
        stack=0x8000,
        handlers=HANDLER_TABLE,
        map=[(0x20_0000, 0x5000, 0x1000, PTE.RW | PTE.XD)],
    )
    run = guest(state, HLT, at=0x5000)
    exception_handlers(run.memory.write)
    assert run.outs() == [0x11, 14]  # fetch, protection
    assert run.vcpu.sregs.cr2 == 0x20_0000


def test_long64_interrupt_stack_table(guest: Any) -> None:
    handlers = HANDLER_TABLE | {6: Gate(HANDLERS + 16 * 6, ist=2)}
    run = guest(long64(ENTRY, stack=0x8000, ist=[0x6000, 0x7000], handlers=handlers), b"\x0f\x0b")
    exception_handlers(run.memory.write)
    assert run.outs() == [ENTRY, 6]
    assert run.vcpu.regs.rsp == 0x7000 - 40 + 8  # five words pushed, one popped
    assert run.memory.read_u64(0x7000 - 16) == 0x8000  # the interrupted RSP


def test_five_levels_run_or_are_refused_by_name(kvm: Kvm, guest: Any) -> None:
    allowed = CpuLimits.from_cpuid(kvm.supported_cpuid())
    state = long64(ENTRY, levels=5)
    run = guest(state, b"\xb8\x05\x00\x00\x00" + OUT_EAX + HLT)
    if allowed.cr4 & CR4.LA57:
        assert run.outs() == [5]
        return
    assert [p.field for p in check(state, limits=allowed, refusers=("kvm",))] == ["cr4"]
    with pytest.raises(KvmError, match="LA57"):
        run.run()


# ---- ring 3

FRAME = struct.Struct("<5Q")  # RIP, CS, RFLAGS, RSP, SS
USER_STACK, KERNEL_STACK = 0x9000, 0x7000


def ring3(**options: Any) -> CpuState:
    return ring3_64(
        ENTRY, stack=USER_STACK, kernel_stack=KERNEL_STACK, handlers=HANDLER_TABLE, **options
    )


def test_ring3_calls_ring0_through_the_idt(guest: Any) -> None:
    state = ring3_64(
        ENTRY,
        stack=USER_STACK,
        kernel_stack=KERNEL_STACK,
        handlers={3: Gate(HANDLERS, type=SystemType.TRAP_GATE, dpl=3)},
    )
    run = guest(state, b"\xb8\x2a\x00\x00\x00\xcc")
    run.memory.write(HANDLERS, OUT_EAX + HLT)
    assert run.outs() == [0x2A]
    assert run.vcpu.sregs.cs.selector == KERNEL_CODE
    assert run.vcpu.regs.rsp == KERNEL_STACK - FRAME.size
    frame = FRAME.unpack(run.memory.read(KERNEL_STACK - FRAME.size, FRAME.size))
    assert (frame[0], frame[1], frame[3], frame[4]) == (
        *(ENTRY + 6, USER_CODE64, USER_STACK, USER_DATA),
    )


def test_ring3_comes_back_with_iretq(guest: Any) -> None:
    # int3; mov ebx, 1; int3 — the handler adds, and halts the second time.
    state = ring3_64(
        ENTRY, stack=USER_STACK, kernel_stack=KERNEL_STACK, handlers={3: Gate(HANDLERS, dpl=3)}
    )
    run = guest(state, b"\x31\xdb\xcc\xbb\x07\x00\x00\x00\xcc")
    # mov eax, ebx; out; test ebx, ebx; jnz +2; iretq; hlt
    run.memory.write(HANDLERS, b"\x89\xd8" + OUT_EAX + b"\x85\xdb\x75\x02\x48\xcf\xf4")
    assert run.outs() == [0, 7]


def test_ring3_may_not_halt(guest: Any) -> None:
    run = guest(ring3(), HLT)
    exception_handlers(run.memory.write)
    assert run.outs() == [0, 13]


def test_ring3_io_bitmap(guest: Any) -> None:
    code = b"\xb8\x07\x00\x00\x00" + OUT_EAX + b"\xe7\x30"
    run = guest(ring3(io_ports=range(PORT, PORT + 4)), code)
    exception_handlers(run.memory.write)
    assert run.outs() == [7, 0, 13]
    assert run.memory.read_u64(KERNEL_STACK - 40) == ENTRY + 7  # RIP of the refused OUT


def test_ring3_sees_only_user_pages(guest: Any) -> None:
    secret = 0x2000
    state = ring3(user=[(ENTRY, 0x1000), (USER_STACK - 0x1000, 0x1000)])
    run = guest(state, b"\x50\x58\x8b\x04\x25" + struct.pack("<I", secret))
    exception_handlers(run.memory.write)
    assert run.outs() == [5, 14]  # read by ring 3, protection
    assert run.vcpu.sregs.cr2 == secret


# ---- all of them


@pytest.mark.parametrize("name", PRESETS)
def test_kvm_keeps_every_register_of_the_state(guest: Any, name: str) -> None:
    state = PRESETS[name](ENTRY, regs={"rbx": 0x1122334455667788, "r15": 7})
    run = guest(state, HLT)
    state.apply(run.vcpu, run.memory)
    run.vcpu.flush()
    back = CpuState.capture(run.vcpu)
    expected = state.copy()
    expected.memory = []
    for register, segment in expected.segments.items():
        if segment.unusable:  # VMX keeps nothing else of a segment that is not usable
            expected.segments[register] = back.segments[register]
            assert back.segments[register].unusable
    assert back == expected


def test_msrs_of_a_state_are_written(guest: Any) -> None:
    run = guest(long64(ENTRY, syscall=0x5000), HLT)
    run.state.apply(run.vcpu, run.memory)
    assert run.vcpu.get_msrs([0xC0000082]) == {0xC0000082: 0x5000}
    captured = CpuState.capture(run.vcpu, [0xC0000081, 0xC0000084])
    assert captured.msrs == {n: run.state.msrs[n] for n in (0xC0000081, 0xC0000084)}


def test_the_presets_are_all_covered() -> None:
    assert {real_mode, protected32, paged32, pae32, long64, ring3_64} == set(PRESETS.values())
