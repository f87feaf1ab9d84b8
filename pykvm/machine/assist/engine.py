"""One instruction on the real CPU: a second, tiny VM whose ring 3 is the engine.

Every KVM runs 64-bit ring 3 on the processor itself, also where ring 0 is software. So a refused
instruction is executed there: at one fixed place, with the guest's registers, and with its memory
operand moved to a window whose page-table entries lead to the guest's own memory. Results, flags
and exceptions are the processor's; LOCK is the processor's lock on the same memory. Nothing that
the guest chooses runs in this process.

The small VM lies at guest-physical 0, the guest's memory above it at `SHIFT`. An INT3 follows the
instruction; each vector of the IDT leads to a HLT, which exits and says by RIP which vector it was.
"""

from __future__ import annotations

import struct
from threading import get_ident

from pykvm._native import ffi, lib
from pykvm.arch import presets
from pykvm.arch.bits import CR4, PTE
from pykvm.arch.descriptors import Gate
from pykvm.arch.pagewalk import walk
from pykvm.kvm import Kvm
from pykvm.kvm.errors import KvmError
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pykvm.kvm import Vm

CODE = 0x1000  # one user page: the instruction and an INT3
EDIT = 0x2000  # ring-0 code that changes the window's page-table entries
STUBS = 0x3000  # a HLT every 4 bytes, one a vector
TABLES = 0x8000
STACK = 0x7F000
KERNEL_STACK = 0x7E000
MEMORY = 0x80000  # bytes
MAPPED = 1 << 21
WINDOW = 0x4000_0000  # linear; within RIP-relative reach of CODE
PAGES = 8  # of the window: an XSAVE area with everything has less than 12 KiB
SHIFT = 1 << 32  # the guest's memory in the engine's physical addresses
SCRATCH = 0x70000  # operands that are no memory: PAGES pages

_HLT = 5  # KVM_EXIT_HLT
_BREAKPOINT, _PAGE_FAULT = 3, 14
_WITH_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17, 21))
_FRAME = struct.Struct("<5Q")
_USER = int(PTE.P | PTE.US | PTE.A)
_WRITABLE = int(PTE.RW | PTE.D)
_STATUS = 0x8D5 | 0x400  # OF SF ZF AF PF CF, and DF
GENERAL = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
)  # fmt: skip


class EngineError(Exception):
    """The engine cannot run the instruction: why, in words. Nothing was changed."""


class Trap(NamedTuple):
    """The exception that the instruction raised. `address` is CR2 of a #PF, an engine address."""

    vector: int
    error: int
    address: int


class Frame(NamedTuple):
    """A page behind the window: of the guest's memory (guest-physical), or scratch."""

    gpa: int
    writable: bool
    scratch: int | None = None
    """Index of a scratch page instead of guest memory."""

    @property
    def entry(self) -> int:
        """The page-table entry."""
        where = self.gpa + SHIFT if self.scratch is None else SCRATCH + self.scratch * 4096
        return where | _USER | (_WRITABLE if self.writable else 0)


class Engine:
    """The small VM. Used by one thread at a time: each vCPU has its own."""

    def __init__(self, kvm: Kvm, guest: Vm) -> None:
        self._guest = guest
        self._slots: tuple[tuple[int, int, int], ...] = ()
        self.vm = kvm.create_vm()
        try:
            self._build(kvm)
        except BaseException:
            self.vm.close()
            raise

    def _build(self, kvm: Kvm) -> None:
        self.memory = self.vm.add_memory(0, MEMORY)
        self.vcpu = self.vm.create_vcpu(0)
        self.vcpu.set_cpuid(kvm.supported_cpuid())
        handlers: dict[int, int | Gate] = {n: STUBS + 4 * n for n in range(256)}
        handlers[_BREAKPOINT] = Gate(STUBS + 4 * _BREAKPOINT, presets.KERNEL_CODE, dpl=3)
        window = [(WINDOW, SCRATCH, PAGES * 4096, PTE.RW | PTE.US)]
        state = presets.ring3_64(
            CODE, stack=STACK, tables=TABLES, handlers=handlers, kernel_stack=KERNEL_STACK,
            identity=MAPPED, user=[(CODE, 4096)], map=window, page_size=4096,
        )  # fmt: skip
        state.cr4 |= int(CR4.OSXSAVE | CR4.FSGSBASE)
        self._user = (state.segments["cs"], state.segments["ss"])
        self._kernel = presets.long64(EDIT, tables=TABLES, identity=MAPPED, page_size=4096)
        self.memory.write(STUBS, b"\xf4\x90\x90\x90" * 256)
        try:
            state.apply(self.vcpu, self.memory)
            self.vcpu.flush()
        except KvmError:  # a CPU without XSAVE or FSGSBASE
            state.cr4 &= ~int(CR4.OSXSAVE | CR4.FSGSBASE)
            state.apply(self.vcpu, self.memory)
            self.vcpu.flush()
        s = self.vcpu.sregs
        levels = walk(
            self.memory, WINDOW, cr0=s.cr0, cr3=s.cr3, cr4=s.cr4, efer=s.efer
        ).levels  # fmt: skip
        self._table = levels[-1].entry_gpa
        # mov [rdi + 8i], register i; mov rax, cr3; mov cr3, rax; hlt
        self._editors = (
            "48 89 07", "48 89 5f 08", "48 89 4f 10", "48 89 57 18", "48 89 77 20", "48 89 6f 28",
            "4c 89 47 30", "4c 89 4f 38",
        )  # fmt: skip
        self._mapped: tuple[Frame | None, ...] = ()
        self.memory.write(EDIT, bytes.fromhex("".join(self._editors) + "0f20d8 0f22d8 f4"))
        self._code = b""
        self._thread = 0

    # -- the guest's memory ------------------------------------------------------------------------

    def follow_memory(self) -> None:
        """Takes over the guest's memory slots where they have changed."""
        wanted = tuple((r.gpa, r.size, r.host_address) for r in self._guest.regions)
        if wanted == self._slots:
            return
        request: Any = ffi.new("struct kvm_userspace_memory_region *")
        for index, (gpa, size, address) in enumerate(self._slots):
            if index >= len(wanted) or wanted[index] != (gpa, size, address):
                request.slot, request.guest_phys_addr = index + 1, gpa + SHIFT
                request.memory_size, request.userspace_addr = 0, address
                self.vm.ioctl("KVM_SET_USER_MEMORY_REGION", request)
        for index, (gpa, size, address) in enumerate(wanted):
            if index < len(self._slots) and self._slots[index] == (gpa, size, address):
                continue
            request.slot, request.guest_phys_addr = index + 1, gpa + SHIFT
            request.memory_size, request.userspace_addr = size, address
            self.vm.ioctl("KVM_SET_USER_MEMORY_REGION", request)
        self._slots = wanted

    def map(self, frames: Sequence[Frame | None]) -> None:
        """Puts frames behind the window, from its start; None and the rest: not present."""
        wanted = tuple(frames)
        self.follow_memory()
        if wanted == self._mapped:
            return
        entries = [frame.entry if frame is not None else 0 for frame in wanted]
        entries += [0] * (PAGES - len(entries))
        regs = self.vcpu.regs._writable()
        names = ("rax", "rbx", "rcx", "rdx", "rsi", "rbp", "r8", "r9")
        for name, entry in zip(names, entries, strict=True):
            setattr(regs, name, entry)
        regs.rdi = self._table
        regs.rip = EDIT
        regs.rsp = STACK
        regs.rflags = 2
        self._segments(0)
        self._mapped = ()
        vector = self._run()
        if vector is not None:
            raise EngineError(f"the engine's page tables could not be changed (vector {vector})")
        self._mapped = wanted

    # -- running -----------------------------------------------------------------------------------

    def execute(self, code: bytes, regs: dict[str, int], flags: int) -> tuple[int, Trap | None]:
        """Runs one instruction. `regs` are updated; returns the flags and what it raised."""
        if code != self._code:
            self.memory.write(CODE, code + b"\xcc")
            self._code = code
        target = self.vcpu.regs._writable()
        for name in GENERAL:
            setattr(target, name, regs[name])
        target.rip = CODE
        target.rflags = flags & _STATUS | 0x202
        self._segments(3)
        vector = self._run()
        if vector is None:
            raise EngineError("the engine stopped in an unexpected place")
        stack = self.vcpu.regs._readable()
        sp, trap = int(stack.rsp), None
        error = 0
        if vector in _WITH_ERROR_CODE:
            error = (
                self.memory.read_u64(sp)
                if hasattr(self.memory, "read_u64")
                else (int.from_bytes(self.memory.read(sp, 8), "little"))
            )
            sp += 8
        rip, _, rflags, rsp, _ = _FRAME.unpack(self.memory.read(sp, _FRAME.size))
        if vector == _BREAKPOINT and rip == CODE + len(code) + 1:
            for name in GENERAL:
                regs[name] = getattr(stack, name)
            regs["rsp"] = rsp
        else:
            if rip != CODE:
                raise EngineError(f"vector {vector} at {rip:#x} in the engine")
            address = int(self.vcpu.sregs.cr2) if vector == _PAGE_FAULT else 0
            trap = Trap(vector, error, address)
        return flags & ~_STATUS | rflags & _STATUS, trap

    def _segments(self, ring: int) -> None:
        sregs = self.vcpu.sregs._writable()
        if ring:
            wanted = self._user
        else:
            wanted = (self._kernel.segments["cs"], self._kernel.segments["ss"])
        for segment, now in ((sregs.cs, wanted[0]), (sregs.ss, wanted[1])):
            segment.selector = now.selector
            segment.type = now.type
            segment.dpl = now.dpl
            segment.l = now.l
            segment.db = now.db
            segment.base = 0
            segment.limit = now.limit
            segment.g, segment.s, segment.present, segment.unusable = now.g, 1, 1, 0

    def _run(self) -> int | None:
        """Until a HLT: the vector whose stub it is in, None for the end of EDIT's code."""
        native, run = self.vcpu._native, self.vcpu._run
        if self._thread != get_ident():
            # A timer of its own: the thread's signals find this vCPU running, and the C loop then
            # sets the timer of the vCPU it finds. The guest's repeats until its turn comes.
            lib.pykvm_watch(native, 0, 0)
            self._thread = get_ident()
        while True:
            code = lib.pykvm_resume(native)
            kind = code & 0x7F
            if kind in (lib.PYKVM_SIGNAL, lib.PYKVM_TICK, lib.PYKVM_KICKED):
                continue
            break
        if kind == lib.PYKVM_ERROR:
            self.vcpu._refused(code >> 32, "KVM_RUN")
        rip = int(self.vcpu.regs.rip)
        if kind == lib.PYKVM_EXIT and run.exit_reason == _HLT:
            if STUBS <= rip < STUBS + 0x400:
                return rip - STUBS >> 2
            if EDIT <= rip < EDIT + 0x100:
                return None
        raise EngineError(f"the engine left with exit reason {run.exit_reason} at {rip:#x}")

    def close(self) -> None:
        """Gives the small VM back."""
        self.vm.close()
