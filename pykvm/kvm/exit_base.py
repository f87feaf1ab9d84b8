"""`Exit`: what every typed exit has. The classes register themselves by the kernel's reason names.

An exit is a window on the vCPU's mmapped `kvm_run` (KVM API, section 5): nothing is copied before
it is asked for. The next entry overwrites `kvm_run`; the `Vcpu` calls `_detach()` before that if
somebody still holds the exit, which then lives on its own copy, read-only.
"""

from __future__ import annotations

from pykvm._native import ffi
from pykvm.errors import PykvmError
from pykvm.kvm import exit_site
from pykvm.kvm.constants import exit_reasons
from pykvm.typed import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from pykvm.kvm.exit_site import Site
    from pykvm.kvm.vcpu import Vcpu

# What an exit keeps of `struct kvm_run`: all up to the synced general and segment registers.
_KEPT_SIZE = ffi.offsetof("struct kvm_run", "s") + ffi.offsetof("struct kvm_sync_regs", "events")
_new_run = ffi.new_allocator(should_clear_after_alloc=False)
_RUN_TYPE = ffi.typeof("struct kvm_run *")
_REGS_TYPE = ffi.typeof("struct kvm_regs *")
_REGS_SIZE = ffi.sizeof("struct kvm_regs")
EXIT_DATA = ffi.offsetof("struct kvm_run", "padding")
"""Where the 256 bytes of the exit union begin in `struct kvm_run`."""


class ExitError(PykvmError):
    """An exit was asked for something it does not have, or answered when it cannot be any more."""


class Where(NamedTuple):
    """The place of the guest's instruction that made the exit."""

    address: int
    """Linear address (guest-virtual, CS base included)."""
    certain: bool
    """False: this is where RIP was, and the instruction was not recognised there."""
    code: bytes
    """The instruction's bytes and some that follow; empty if they could not be fetched."""
    bits: int
    """Size of the code segment: 16, 32 or 64."""

    @property
    def text(self) -> str:
        """The instruction disassembled, "" if its bytes are not known."""
        if not self.code:
            return ""
        from pykvm.kvm.decode import disassemble

        return disassemble(self.code, self.address, self.bits)


class Exit:
    """Why `Vcpu.run()` returned. `print(exit)` says in one line what the guest did.

    Numbers are read from `kvm_run` when asked for. Views of its data (`data`) must not be used
    after the next `run()`; the exit object itself may be kept.
    """

    __slots__ = ("__weakref__", "_detached", "_kept", "_run", "_site", "_where", "vcpu")

    name: ClassVar[str] = ""
    """The kernel's name of the reason ("KVM_EXIT_IO")."""
    classes: ClassVar[dict[int, type[Exit]]] = {}
    """The class for each reason number of the kernel's headers."""
    _number: ClassVar[int] = -1
    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, kvm: str = "") -> None:
        super().__init_subclass__()
        if kvm:
            cls.name = kvm
            cls._number = exit_reasons()[kvm]
            Exit.classes[cls._number] = cls

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self._run: Any = vcpu._run
        self._detached = False
        self._kept: Any = None
        self._where: Where | None = None
        self._site: Site | None = None

    @property
    def reason(self) -> int:
        """The number of the reason (`kvm_run->exit_reason`)."""
        return self._number

    @property
    def raw(self) -> bytes:
        """The exit's part of `kvm_run` (the union, 256 bytes) as it is."""
        return bytes(ffi.buffer(ffi.addressof(self._run, "padding")))

    @property
    def flags(self) -> int:
        """`kvm_run->flags`: KVM_RUN_X86_* bits (1: in SMM, 2: bus lock, 4: nested guest)."""
        return int(self._run.flags)

    @property
    def detached(self) -> bool:
        """Whether the vCPU has gone on since: the exit is history and cannot be answered."""
        return self._detached

    @property
    def address(self) -> int | None:
        """The linear address of the instruction (CS base included), None if it is not known."""
        where = self._find()
        return where.address if where else None

    @property
    def instruction(self) -> str:
        """The instruction in Intel syntax ("out dx, al"), "" if it cannot be known."""
        where = self._find()
        return where.text if where else ""

    def _find(self) -> Where | None:
        if self._where is None:
            try:
                site = self._site or exit_site.capture(self.vcpu, self._run)
            except PykvmError:  # closed meanwhile: the rest of the exit can still be told
                return None
            self._where = self._locate(site)
        return self._where

    def _locate(self, site: Site) -> Where:
        """Where the instruction is; RIP, unless a subclass knows better."""
        return Where(site.address, True, site.after, site.bits)

    def _regs(self) -> Any:
        """The general registers at the exit (`struct kvm_regs`)."""
        return self._kept or self._run.s.regs.regs

    def _detach(self) -> None:
        """Called by the vCPU before it enters again: keep what the next exit would overwrite."""
        if self._detached:
            return
        self._remember()
        copy = _new_run(_RUN_TYPE)
        ffi.memmove(copy, self._run, _KEPT_SIZE)
        self._run = copy
        self._detached = True

    def _pin(self) -> None:
        """Called by the vCPU before its registers are changed: keep those of the exit."""
        if self._kept is None and not self._detached:
            self._remember()
            self._kept = _new_run(_REGS_TYPE)
            ffi.memmove(self._kept, ffi.addressof(self._run.s.regs, "regs"), _REGS_SIZE)

    def _remember(self) -> None:
        if self._where is None and self._site is None:
            try:
                self._site = exit_site.remembered(self.vcpu, self._run)
            except PykvmError:
                pass  # a vCPU that is being closed: the address stays unknown

    def _answerable(self, what: str) -> None:
        if self._detached:
            raise ExitError(f"{what} comes too late: the vCPU has run on; answer before run()")

    def _what(self) -> str:
        """What the guest did, without the place."""
        return self.name.removeprefix("KVM_EXIT_").lower().replace("_", " ")

    def _at(self) -> str:
        where = self._find()
        if where is None:
            return ""
        if not where.certain:
            return f" near {where.address:#x}"
        text = where.text
        return f" at {where.address:#x}: {text}" if text else f" at {where.address:#x}"

    def __str__(self) -> str:
        return self._what() + self._at()

    def __repr__(self) -> str:
        fields = "".join(f" {name}={_shown(getattr(self, name))}" for name in self._fields)
        return f"<{type(self).__name__} {self.name}{fields}{' detached' if self._detached else ''}>"


class UnknownExit(Exit, kvm="KVM_EXIT_UNKNOWN"):
    """A reason that this pykvm does not know, or KVM_EXIT_UNKNOWN: one KVM does not know.

    `.reason` is its number, `.raw` its data. For KVM_EXIT_UNKNOWN `.hardware_exit_reason` is the
    processor's (VMX: SDM vol. 3C, appendix C; SVM: APM vol. 2, appendix C).
    """

    __slots__ = ("_exit_reason",)
    _fields = ("reason", "hardware_exit_reason")

    def __init__(self, vcpu: Vcpu) -> None:
        super().__init__(vcpu)
        self._exit_reason = int(self._run.exit_reason)

    @property
    def reason(self) -> int:
        """The number of the reason."""
        return self._exit_reason

    @property
    def hardware_exit_reason(self) -> int:
        """The first 8 bytes of the exit's data."""
        return int(self._run.hw.hardware_exit_reason)

    def _what(self) -> str:
        if self._exit_reason == self._number:
            return f"KVM does not know the hardware exit reason {self.hardware_exit_reason:#x}"
        data = self.raw.rstrip(b"\0")
        return f"unknown exit reason {self._exit_reason}, data {data.hex(' ', 8) or 'all zero'}"


class PlainExit(Exit):
    """An exit that says all by its reason."""

    __slots__ = ()
    _text: ClassVar[str] = ""

    def _what(self) -> str:
        return self._text or super()._what()


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:#x}" if abs(value) > 9 else str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_shown(v) for v in value) + "]"
    return repr(value)


__all__ = ["EXIT_DATA", "Exit", "ExitError", "PlainExit", "UnknownExit", "Where"]
