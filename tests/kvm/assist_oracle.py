"""The same instruction twice: by this process on the real CPU, and in ring 0 of a guest.

`Native` runs one instruction in this process, in ring 3, with every register loaded from a
`State`; `Ring0` runs it in 64-bit ring 0 of a machine. Code and data lie at the same linear
addresses in both, so that all registers and all of memory can be compared.
"""

from __future__ import annotations

import ctypes
import mmap
import pathlib
import subprocess
from dataclasses import dataclass, field

from pykvm import Machine
from pykvm.arch import presets
from pykvm.arch.bits import CR4, PTE
from pykvm.kvm import Kvm
from pykvm.machine.result import Stop, StopReason

CODE = 0x3000_0000
DATA = 0x2000_0000
PAGES = 4  # of data; in the guest they lie at scattered guest-physical addresses
FS_BASE, GS_BASE = DATA + 0x800, DATA + 0x1800
FRAMES = (0x62000, 0x60000, 0x64000, 0x61000)
CODE_GPA, TABLES, STACK, STUBS, CODE_SPAN = 0x50000, 0x10000, 0x48000, 0x8000, 4096
DONE_PORT, VECTOR_PORT = 0xE0, 0xE1
DONE = b"\xe6\xe0"
NAMES = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
)  # fmt: skip
STATUS = 0x8D5
AREA = 4096
COMPONENTS = 0xE7  # x87, SSE, AVX, AVX-512: what is compared, as far as the CPU has it

ORACLE = r"""
    .text
    .globl oracle
oracle:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rdi, kept(%rip)
    mov %rsp, stack(%rip)
    mov 136(%rdi), %rax
    mov %rax, target(%rip)
    mov 160(%rdi), %eax
    xor %edx, %edx
    mov 144(%rdi), %rcx
    xrstor64 (%rcx)
    pushq 128(%rdi)
    popfq
    mov 0(%rdi), %rax
    mov 8(%rdi), %rcx
    mov 16(%rdi), %rdx
    mov 24(%rdi), %rbx
    mov 40(%rdi), %rbp
    mov 48(%rdi), %rsi
    mov 64(%rdi), %r8
    mov 72(%rdi), %r9
    mov 80(%rdi), %r10
    mov 88(%rdi), %r11
    mov 96(%rdi), %r12
    mov 104(%rdi), %r13
    mov 112(%rdi), %r14
    mov 120(%rdi), %r15
    mov 56(%rdi), %rdi
    call *target(%rip)
    mov %rdi, spare(%rip)
    mov kept(%rip), %rdi
    mov %rax, 0(%rdi)
    pushfq
    popq 128(%rdi)
    cld
    mov %rcx, 8(%rdi)
    mov %rdx, 16(%rdi)
    mov %rbx, 24(%rdi)
    mov %rbp, 40(%rdi)
    mov %rsi, 48(%rdi)
    mov spare(%rip), %rax
    mov %rax, 56(%rdi)
    mov %r8, 64(%rdi)
    mov %r9, 72(%rdi)
    mov %r10, 80(%rdi)
    mov %r11, 88(%rdi)
    mov %r12, 96(%rdi)
    mov %r13, 104(%rdi)
    mov %r14, 112(%rdi)
    mov %r15, 120(%rdi)
    mov 152(%rdi), %rcx
    mov 160(%rdi), %eax
    xor %edx, %edx
    xsave64 (%rcx)
    mov 168(%rdi), %rcx
    xrstor64 (%rcx)
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret
    .bss
kept: .quad 0
stack: .quad 0
target: .quad 0
spare: .quad 0
    .section .note.GNU-stack,"",@progbits
"""


@dataclass
class State:
    """What an instruction sees: registers by name (no RSP), flags, an XSAVE area, data pages."""

    regs: dict[str, int] = field(default_factory=dict)
    flags: int = 0x2
    area: bytes = b""
    data: bytes = b""


@dataclass
class Result:
    """What it left. `vector` is the exception it raised instead."""

    regs: dict[str, int]
    flags: int
    area: bytes
    data: bytes
    vector: int | None = None
    error: int = 0
    cr2: int = 0


def assemble(lines: list[str], folder: pathlib.Path, bits: int = 64) -> list[bytes]:
    """The machine code of each line (Intel syntax), for code at `CODE`."""
    source = folder / f"cases{bits}.s"
    text = [f".intel_syntax noprefix\n.code{bits}\n.text"]
    for n, line in enumerate(lines):
        text.append(f'.section .c{n:04}, "ax"\n{line}\n')
    source.write_text("\n".join(text))
    target = folder / f"cases{bits}.o"
    subprocess.run(["as", "-o", target, source], check=True)
    codes = []
    from elftools.elf.elffile import ELFFile

    with target.open("rb") as file:
        elf = ELFFile(file)
        for n in range(len(lines)):
            codes.append(elf.get_section_by_name(f".c{n:04}").data())
    return codes


class Native:
    """This process as the real CPU."""

    _mapped = False  # the fixed addresses belong to this process's `Native`s

    def __init__(self, folder: pathlib.Path, xcr0: int) -> None:
        source = folder / "oracle.s"
        source.write_text(ORACLE)
        library = folder / "oracle.so"
        subprocess.run(["gcc", "-shared", "-nostdlib", "-o", library, source], check=True)
        self._call = ctypes.CDLL(str(library)).oracle
        self._call.argtypes = [ctypes.c_void_p]
        if not Native._mapped:
            self._map()
            Native._mapped = True
        self._arena = ctypes.create_string_buffer(4 * AREA + 64)
        self._base = ctypes.addressof(self._arena) + 63 & ~63
        self._rfbm = xcr0 & COMPONENTS
        clean = bytearray(AREA)
        clean[0:2], clean[24:28] = b"\x7f\x03", b"\x80\x1f\x00\x00"
        ctypes.memmove(self._base + 3 * AREA, bytes(clean), AREA)

    def _map(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        fixed = 0x100000 | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # MAP_FIXED_NOREPLACE
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        for address, size, more in ((CODE, 4096, mmap.PROT_EXEC), (DATA, PAGES * 4096, 0)):
            got = libc.mmap(address, size, rights | more, fixed, -1, 0)
            assert got == address, f"{address:#x} is taken in this process"

    def set_gs(self, base: int) -> None:
        """The GS base of this thread, which nothing else uses in 64-bit user space."""
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.syscall(158, 0x1001, ctypes.c_ulong(base)) == 0  # arch_prctl, ARCH_SET_GS

    def run(self, code: bytes, state: State) -> Result:
        """Runs `code`, which must not fault."""
        base = self._base
        ctypes.memmove(CODE, code + b"\xc3", len(code) + 1)
        ctypes.memmove(DATA, state.data, len(state.data))
        ctypes.memmove(base + AREA, state.area, AREA)
        ctypes.memset(base + 2 * AREA, 0, AREA)
        block = [state.regs.get(name, 0) for name in NAMES]
        block += [state.flags, CODE, base + AREA, base + 2 * AREA, self._rfbm, base + 3 * AREA]
        ctypes.memmove(base, (ctypes.c_uint64 * len(block))(*block), 8 * len(block))
        self._call(base)
        after = (ctypes.c_uint64 * 17).from_address(base)
        regs = {name: after[i] for i, name in enumerate(NAMES) if name != "rsp"}
        return Result(
            regs, after[16] & STATUS, ctypes.string_at(base + 2 * AREA, AREA),
            ctypes.string_at(DATA, PAGES * 4096),
        )  # fmt: skip


class Ring0:
    """A machine whose code runs in 64-bit ring 0 (`ring` 3: natively, for faults)."""

    def __init__(self, xcr0: int, *, ring: int = 0, **options: object) -> None:
        self.machine = Machine("1M", board="bare", devices=False, irqchip="none", **options)  # type: ignore[arg-type]
        self.vcpu = self.machine.vcpus[0]
        self.xcr0 = xcr0
        self._end: int | None = None
        self.machine.on_pio(DONE_PORT)(self._done)
        self.machine.on_pio(VECTOR_PORT)(self._vector)
        stubs = b"".join(bytes((0xE6, VECTOR_PORT, 0x90, 0x90)) for _ in range(256))
        self.machine.memory.write(STUBS, stubs)
        self.vcpu.set_xcrs({0: xcr0})
        maps = [(DATA + 4096 * i, gpa, 4096, PTE.RW | (PTE.US if ring else 0)) for i, gpa in
                enumerate(FRAMES)]  # fmt: skip
        maps.append((CODE, CODE_GPA, CODE_SPAN, PTE.RW | (PTE.US if ring else 0)))
        handlers = {n: STUBS + 4 * n for n in range(256)}
        make = presets.ring3_64 if ring else presets.long64
        extra = {"user": False, "io_ports": (DONE_PORT,)} if ring else {}
        self.state = make(
            CODE, stack=STACK, tables=TABLES, identity=1 << 20, map=maps, page_size=4096,
            handlers=handlers, kernel_stack=STACK, **extra,
        )  # type: ignore[arg-type]  # fmt: skip
        self.state.cr4 |= int(CR4.OSXSAVE | CR4.FSGSBASE)
        for name, base in (("fs", FS_BASE), ("gs", GS_BASE)):
            self.state.segments[name] = self.state.segments[name].replace(base=base)
        self.state.apply(self.vcpu, self.machine.memory)

    def _done(self, access: object) -> None:
        self._end = None
        raise Stop(StopReason.STOPPED)

    def _vector(self, access: object) -> None:
        self._end = (self.vcpu.regs.rip - STUBS) >> 2
        raise Stop(StopReason.STOPPED)

    def run(self, code: bytes, state: State) -> Result:
        """Runs `code` and says what it left, or which exception it raised."""
        memory, vcpu = self.machine.memory, self.vcpu
        vcpu.complete()
        memory.write(CODE_GPA, code + DONE)
        for i, gpa in enumerate(FRAMES):
            memory.write(gpa, state.data[4096 * i : 4096 * i + 4096])
        now = self.state.copy()
        now.regs.update({name: v for name, v in state.regs.items() if name != "rsp"})
        now.regs["rflags"] = state.flags
        now.apply(vcpu)
        area = bytearray(vcpu.xsave_size)
        area[: len(state.area)] = state.area
        vcpu.set_xsave(area)
        self._end = -1
        result = self.machine.run(timeout=5)
        assert self._end != -1, f"{result} {result.report}"
        regs = {name: getattr(vcpu.regs, name) for name in NAMES if name != "rsp"}
        left = Result(
            regs, vcpu.regs.rflags & STATUS, vcpu.get_xsave()[:AREA],
            b"".join(memory.read(gpa, 4096) for gpa in FRAMES), self._end,
        )  # fmt: skip
        if self._end is not None:
            self._read_frame(left)
        return left

    def _read_frame(self, left: Result) -> None:
        rsp = self.vcpu.regs.rsp
        if left.vector in (8, 10, 11, 12, 13, 14, 17):
            left.error = self.machine.memory.read_u64(rsp)
            rsp += 8
        left.regs["rip"] = self.machine.memory.read_u64(rsp)
        left.flags = self.machine.memory.read_u64(rsp + 16) & STATUS
        left.cr2 = self.vcpu.sregs.cr2 if left.vector == 14 else 0

    def close(self) -> None:
        self.machine.close()


def usable_xcr0() -> int:
    """The state components that a guest may have here, of those that are compared."""
    with Kvm() as kvm:
        for entry in kvm.supported_cpuid():
            if entry.function == 0xD and entry.index == 0:
                return entry.eax & COMPONENTS | 3
    return 3
