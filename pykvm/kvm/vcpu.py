"""`Vcpu`: one virtual CPU, its registers, and running it (KVM API, section 4 "vcpu ioctls", 5).

The run loop is C (`native/src/run.c`). `Vcpu.run()` is the scripted interface: it returns every
exit that no native rule finished as a typed object. `pykvm.machine` drives the same C loop through
its packed return codes instead, and makes typed exits only where it needs one.
"""

from __future__ import annotations

import functools
import mmap
import os
import sys

from pykvm._native import ffi, lib
from pykvm.errors import explain
from pykvm.kvm.errors import KvmError
from pykvm.kvm.fd import FdOwner
from pykvm.kvm.registers import SYNC_REGS, SYNC_SREGS, Regs, Sregs
from pykvm.kvm.vcpu_state import VcpuState
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm import accounting
    from pykvm.kvm.exit_site import Site
    from pykvm.kvm.exits import Exit
    from pykvm.kvm.vm import Vm

_COALESCED_PAGE = 4096


def _release(native: Any, mapping: mmap.mmap) -> None:
    lib.pykvm_vcpu_free(native)
    try:
        mapping.close()
    except BufferError:
        pass  # somebody still holds a view of an exit's data; it goes with the view


class Vcpu(VcpuState, FdOwner):
    """A virtual CPU; made by `Vm.create_vcpu(id)`. Use it from one thread at a time.

    Only `kick()` may be called from other threads. `regs` and `sregs` are read when first asked
    for and written back before the next entry.
    """

    def __init__(self, vm: Vm, vcpu_id: int, fd: int, run_size: int, sync_supported: int) -> None:
        self.vm = vm
        self.id = vcpu_id
        self._native: Any = None
        super().__init__(fd, f"vCPU {vcpu_id}")
        try:
            self._mapping = mmap.mmap(fd, run_size)
            self._run: Any = ffi.cast("struct kvm_run *", ffi.from_buffer(self._mapping))
            native = lib.pykvm_vcpu_new(fd, self._run, run_size, sync_supported)
            if native == ffi.NULL:
                raise MemoryError(f"no memory for the state of vCPU {vcpu_id}")
            self._at_close(functools.partial(_release, native, self._mapping))
            if not lib.pykvm_kick_signal():
                _install_kick_signal()
        except BaseException:
            self.close()
            raise
        self._native = native
        native.rules = vm.rules._native
        self._exit: Exit | None = None
        self._exit_sites: dict[int, Site] = {}
        sync = self._run.s.regs
        self._regs = Regs(self, sync.regs, SYNC_REGS)
        self._sregs = Sregs(self, sync.sregs)

    def _before_ioctl(self, name: str) -> None:
        # Every other ioctl must see what the user wrote; a setter makes our copy stale.
        native = self._native
        if native is None:
            return
        if native.sync_dirty:
            self.flush()
        if not name.startswith("KVM_GET"):
            self._pin_exit()
            native.sync_valid = 0

    # -- registers ---------------------------------------------------------------------------

    @property
    def regs(self) -> Regs:
        """General registers, RIP and RFLAGS. `vcpu.regs.rip = 0x1000` takes effect on entry."""
        return self._regs

    @property
    def sregs(self) -> Sregs:
        """Segment, control and table registers, EFER and the APIC base."""
        return self._sregs

    def _fetch(self, part: int) -> None:
        result = lib.pykvm_fetch(self._native, part)
        if result < 0:
            raise KvmError("KVM_GET_REGS" if part == SYNC_REGS else "KVM_GET_SREGS", -result)

    def _touch(self, part: int) -> None:
        self._pin_exit()
        lib.pykvm_touch(self._native, part)

    def flush(self) -> None:
        """Writes changed registers to the kernel now. Raises `KvmError` naming the bad field."""
        if self._native is None:
            raise self._closed_error()
        if self._native.pending and self._native.sync_dirty:
            self._detach_exit()  # what is pending is completed first: kvm_run changes
        result = lib.pykvm_flush(self._native)
        if result < 0:
            self._refused(-result, "KVM_SET_SREGS")

    def _refused(self, error: int, name: str) -> None:
        """The kernel said EINVAL (or worse): say which field, if it can be known."""
        dirty = self._native.sync_dirty
        why = ""
        if dirty & SYNC_SREGS:
            name = "KVM_SET_SREGS"
            # What was refused must not be tried again behind the user's back; it is looked at by
            # the explainer, then forgotten.
            self._native.sync_dirty = dirty & ~SYNC_SREGS
            why = explain(name, self)
            self._native.sync_valid &= ~SYNC_SREGS
        raise KvmError(name, error, hint=why)

    @property
    def entry_regs(self) -> dict[str, int] | None:
        """General registers as they were at the last entry; None if the host does not sync them.

        On AMD hosts a triple fault resets the vCPU before user space sees it (APM vol. 2, 15.14.3):
        then this is all that is known of the guest.
        """
        native = self._native
        if not native.entry_valid:
            return None
        return {name: getattr(native.entry_regs, name) for name in Regs._fields}

    # -- running -----------------------------------------------------------------------------

    @property
    def native_sync(self) -> int:
        """`KVM_SYNC_X86_*` bits that every exit brings along (REGS where the host can)."""
        return int(self._native.sync_want)

    @native_sync.setter
    def native_sync(self, bits: int) -> None:
        self._native.sync_want = bits & self._native.sync_supported

    def run(self) -> Exit:
        """Runs the guest until an exit that no native rule finishes, and returns it.

        Returns an `IntrExit` after `kick()`. Other signals run their Python handlers (Ctrl-C
        raises `KeyboardInterrupt`) and the guest goes on. An exit that reads (IN, MMIO read,
        RDMSR) is answered through the exit object before the next `run()`. Raises `KvmError`
        when KVM refuses, naming the field if it can be known.
        """
        native = self._native
        if native is None:
            raise self._closed_error()
        if self._exit is not None:
            self._detach_exit()
        while True:
            code = lib.pykvm_resume(native)
            kind = code & 0x7F
            if kind <= _LAST_EXIT:
                pass
            elif kind in _SILENT:
                continue
            elif kind == lib.PYKVM_KICKED:
                self._run.exit_reason = 10  # KVM_EXIT_INTR: what KVM itself reports
            elif kind == lib.PYKVM_ERROR:
                self._refused(code >> 32, "KVM_RUN")
            elif kind == lib.PYKVM_TRACE_FULL:
                raise KvmError(
                    "KVM_RUN", 105, hint="the lossless trace ring is full; call trace_records()"
                )
            exit_: Exit = _make_exit(self, code >> 32 if kind == lib.PYKVM_EXIT else 0)
            self._exit = exit_
            return exit_

    def _detach_exit(self) -> None:
        # The exit object reads kvm_run lazily; whoever kept it gets a copy before it changes.
        if self._exit is not None:
            if sys.getrefcount(self._exit) > 2:
                self._exit._detach()
            self._exit = None

    def _pin_exit(self) -> None:
        # Registers are about to be changed: an exit that somebody holds keeps those it came with.
        if self._exit is not None and sys.getrefcount(self._exit) > 2:
            self._exit._pin()

    def complete(self) -> Exit | None:
        """Finishes a pending IN, MMIO read, RDMSR or hypercall without running the guest.

        KVM completes such an instruction when the vCPU is entered again (KVM API, 5); state must
        not be saved before. Returns None, or the next exit if the same instruction caused one.
        """
        if self._native is None:
            raise self._closed_error()
        self._detach_exit()
        result = lib.pykvm_complete(self._native)
        if result < 0:
            self._refused(-result, "KVM_RUN")
        if result == 0:
            return None
        self._exit = _make_exit(self, 0)
        return self._exit

    @property
    def pending(self) -> bool:
        """Whether the last exit is still to be completed by re-entering."""
        return bool(self._native.pending)

    def kick(self) -> None:
        """Makes a running `run()` return (or the next one, if none is running). Any thread."""
        native = self._native
        if native is not None:
            lib.pykvm_kick(native)

    # -- statistics and trace ------------------------------------------------------------------

    def stats(self) -> accounting.ExitStats:
        """Exit counts and times by reason, port and MMIO page, kept by the C loop."""
        from pykvm.kvm.accounting import read_stats

        return read_stats(self._native)

    def exit_counts(self) -> dict[str, int]:
        """Exits by `KVM_EXIT_*` name."""
        from pykvm.kvm.accounting import exit_counts

        return exit_counts(self._native)

    def reset_stats(self) -> None:
        """Sets the counters to zero."""
        from pykvm.kvm.accounting import clear_stats

        clear_stats(self._native)

    def enable_trace(self, entries: int = 4096, *, lossless: bool = False) -> None:
        """Records every exit in a ring of `entries` (a power of two, 64 bytes each).

        A full ring overwrites its oldest records, or, with `lossless`, stops the loop until
        `trace_records()` has drained it. `entries=0` switches tracing off.
        """
        if entries == 0:
            lib.pykvm_trace_stop(self._native)
            return
        result = lib.pykvm_trace_start(self._native, entries, lossless)
        if result < 0:
            raise ValueError(
                f"a trace ring of {entries} entries is not possible; use a power of two up to 2**26"
            )

    def trace_records(self, limit: int | None = None) -> list[accounting.TraceRecord]:
        """Takes new trace records, oldest first."""
        from pykvm.kvm.accounting import drain_trace

        return drain_trace(self._native, self.id, limit)

    def last_exits(self, n: int = 16) -> list[accounting.TraceRecord]:
        """The last `n` records of the trace ring, left where they are."""
        from pykvm.kvm.accounting import last_records

        return last_records(self._native, self.id, n)

    # -- coalesced I/O ---------------------------------------------------------------------------

    def _use_coalesced_ring(self) -> None:
        """Tells the loop where the VM's coalesced ring is (KVM API 4.116): called by `Vm`."""
        page = self.vm.coalesced_page
        self._native.coalesced = ffi.cast(
            "struct kvm_coalesced_mmio_ring *",
            ffi.cast("char *", self._run) + page * _COALESCED_PAGE,
        )

    # -- life ------------------------------------------------------------------------------------

    def _before_close(self) -> None:
        if self._native is not None:
            if self._native.tid:  # its state must not go from under the loop
                raise KvmError(
                    "close", 16, f"vCPU {self.id}", "it runs in another thread; kick() it first"
                )
            self._detach_exit()
            self._native = None
        super()._before_close()

    def __repr__(self) -> str:
        state = "closed" if self._native is None else f"rip={self.regs.rip:#x}"
        return f"<Vcpu {self.id} {state}>"


def _first_exit(vcpu: Vcpu, error: int) -> Exit:
    """Loads the exit classes when the first one is met, not when guests start."""
    global _make_exit
    from pykvm.kvm.exits import make_exit

    _make_exit = make_exit
    return make_exit(vcpu, error)


_make_exit: Any = _first_exit
_LAST_EXIT = lib.PYKVM_MMIO_READ  # kinds up to this one are exits, decoded or not
_SILENT = (lib.PYKVM_SIGNAL, lib.PYKVM_TICK)


def _install_kick_signal() -> None:
    """Takes one real-time signal for kicks; the first from SIGRTMIN+4 that nobody handles."""
    wanted = os.environ.get("PYKVM_KICK_SIGNAL", "0")
    if not wanted.isdecimal() or lib.pykvm_signals_init(int(wanted)) < 0:
        raise KvmError(
            "sigaction",
            16,
            hint="no real-time signal is free for kicks; set PYKVM_KICK_SIGNAL to one's number",
        )
