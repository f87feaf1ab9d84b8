"""One vCPU's loop: packed exit codes from C, to the bus, and back in.

This is the hot path of every Python device: no object is made for a port or MMIO exit that one
device takes whole. Everything else goes through the typed exit.
"""

from __future__ import annotations

from pykvm._native import lib
from pykvm.bus import NO_SPAN
from pykvm.machine.result import MachineError, Outcome, Stop, StopReason
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.bus import Range
    from pykvm.kvm import Vcpu, exits
    from pykvm.machine.machine import Machine

_KICKED = lib.PYKVM_KICKED
_SIGNAL = lib.PYKVM_SIGNAL
_TICK = lib.PYKVM_TICK
_TIMEOUT = lib.PYKVM_TIMEOUT
_IDLE = lib.PYKVM_IDLE
_TRACE_FULL = lib.PYKVM_TRACE_FULL
_ERROR = lib.PYKVM_ERROR
_COALESCED = 0x80


def drive(machine: Machine, vcpu: Vcpu) -> Outcome:
    """Runs a vCPU until the machine stops, and says why this vCPU left its loop."""
    try:
        if machine.debugger is not None:
            from pykvm.machine.debugging import drive_debugged

            return drive_debugged(machine, vcpu, machine.debugger)
        return _drive(machine, vcpu)
    except Stop as stop:
        return Outcome(stop.reason, vcpu.id, stop.value, stop.detail)
    except Exception as error:
        exit_ = _attach_exit(vcpu, error)
        return Outcome(
            StopReason.HANDLER_ERROR, vcpu.id, detail=f"{type(error).__name__}: {error}",
            exit=exit_, exception=error,
        )  # fmt: skip


def _attach_exit(vcpu: Vcpu, error: Exception) -> exits.Exit | None:
    """The exit that was being handled stays with the exception, as `error.exit`."""
    try:
        from pykvm.kvm import exits

        exit_ = exits.make_exit(vcpu, 0)
        exit_._detach()
        error.exit = exit_  # type: ignore[attr-defined]
        error.add_note(f"while vCPU {vcpu.id} handled: {exit_}")
    except Exception:  # the handler's own error is what matters
        return None
    return exit_


def _drive(machine: Machine, vcpu: Vcpu) -> Outcome:
    native = vcpu._native
    run = lib.pykvm_run
    ports = machine.pio.table
    mmio = machine.mmio
    index = mmio.index
    first, end, start, read, write, sizes = NO_SPAN  # where the last MMIO access went
    answer = 0
    while True:
        code = run(native, answer)
        kind = code & 0xFF
        if kind == 1:  # PYKVM_PIO_OUT
            claim = ports[code >> 16 & 0xFFFF]
            size = code >> 8 & 0xFF
            if claim is not None and size <= claim[2]:
                claim[1](claim[3], size, code >> 32)
            else:
                machine.pio.write(code >> 16 & 0xFFFF, size, code >> 32)
        elif kind == 2:  # PYKVM_PIO_IN
            claim = ports[code >> 16 & 0xFFFF]
            size = code >> 8 & 0xFF
            if claim is not None and size <= claim[2]:
                answer = claim[0](claim[3], size)
            else:
                answer = machine.pio.read(code >> 16 & 0xFFFF, size)
        elif kind == 3:  # PYKVM_MMIO_WRITE
            size = code >> 8 & 0xFF
            gpa = native.mmio_gpa
            if not first <= gpa < end or mmio.index is not index:
                index = mmio.index
                first, end, start, read, write, sizes = mmio.span(gpa)
            if gpa + size <= end and size in sizes:
                write(gpa - start, size, native.mmio_value)
            else:
                mmio.write(gpa, size, native.mmio_value)
        elif kind == 4:  # PYKVM_MMIO_READ
            size = code >> 8 & 0xFF
            gpa = native.mmio_gpa
            if not first <= gpa < end or mmio.index is not index:
                index = mmio.index
                first, end, start, read, write, sizes = mmio.span(gpa)
            if gpa + size <= end and size in sizes:
                answer = read(gpa - start, size)
            else:
                answer = mmio.read(gpa, size)
        else:
            outcome, answer = _rare(machine, vcpu, code)
            if outcome is not None:
                return outcome


def _rare(machine: Machine, vcpu: Vcpu, code: int) -> tuple[Outcome | None, int]:
    """Every other code; returns the outcome that ends the loop, and the answer to re-enter with."""
    answer = 0
    if code & _COALESCED:
        machine.drain_coalesced()
        kind = code & 0x7F
        size, port = code >> 8 & 0xFF, code >> 16 & 0xFFFF
        native = vcpu._native
        if kind == 1:
            machine.pio.write(port, size, code >> 32)
        elif kind == 2:
            answer = machine.pio.read(port, size)
        elif kind == 3:
            machine.mmio.write(native.mmio_gpa, size, native.mmio_value)
        elif kind == 4:
            answer = machine.mmio.read(native.mmio_gpa, size)
        else:
            return _event(machine, vcpu, kind, code >> 32), 0
        return None, answer
    return _event(machine, vcpu, code & 0x7F, code >> 32), 0


def _event(machine: Machine, vcpu: Vcpu, kind: int, high: int) -> Outcome | None:
    if kind == 0:
        return _typed(machine, vcpu, high)
    if kind in (_SIGNAL, _TICK):
        if machine.assist is not None:
            machine.assist.traps.visit(vcpu)
        return None  # Python's signal handlers run between the calls
    if kind == _KICKED:
        if machine.chips is not None:
            machine.chips.inject(vcpu)
        if machine.windows is not None:
            machine.windows.at_kick(vcpu)
        return machine.control.at_kick(vcpu.id)
    if kind == _TIMEOUT:
        return Outcome(StopReason.TIMEOUT, vcpu.id)
    if kind == _IDLE:
        return machine.control.at_idle(vcpu.id)
    if kind == _TRACE_FULL:
        machine.drain_trace(vcpu)
        return None
    if kind == _ERROR:
        try:
            vcpu._refused(high, "KVM_RUN")
        except Exception as error:
            return Outcome(StopReason.HOST_ERROR, vcpu.id, detail=str(error), exception=error)
    raise MachineError(f"the C loop returned the unknown code {kind}; rebuild pykvm._native")


def _typed(machine: Machine, vcpu: Vcpu, error: int) -> Outcome | None:
    """An exit that is more than one element moved: decide by its class."""
    from pykvm.kvm import exits  # not at the top: the guest's first output need not wait for it

    return handle(machine, vcpu, exits.make_exit(vcpu, error))


def handle(machine: Machine, vcpu: Vcpu, exit_: exits.Exit) -> Outcome | None:
    """Answers any typed exit, as the loop does; returns what ends the run, if it does."""
    from pykvm.kvm import exits

    handler = machine.exit_handlers.get(exit_.reason)
    if handler is not None and handler(exit_):
        return None
    if isinstance(exit_, exits.IoExit):
        _repeat(machine, exit_)
        return None
    if isinstance(exit_, exits.MmioExit):
        _element(machine, exit_)
        return None
    vcpu_id = vcpu.id
    if isinstance(exit_, exits.HltExit):
        exit_._detach()  # it may be looked at when the machine is closed
        return Outcome(StopReason.HALTED, vcpu_id, exit=exit_)
    if isinstance(exit_, exits.DebugExit):
        if machine.assist is not None and machine.assist.traps.trapped(vcpu):
            return None
        exit_._detach()
        return Outcome(StopReason.STOPPED, vcpu_id, detail="debug exit", exit=exit_)
    if isinstance(exit_, (exits.IrqWindowOpenExit, exits.IntrExit)):
        if machine.chips is not None:
            machine.chips.inject(vcpu)
        return None
    if isinstance(exit_, exits.IoapicEoiExit):
        if machine.chips is not None:
            machine.chips.missed_eoi.reported(exit_.vector)
        return None
    detail = ""
    if isinstance(exit_, exits.RdmsrExit) and machine.cpus is not None:
        machine.cpus.read(exit_)
        return None
    if isinstance(exit_, exits.WrmsrExit) and machine.cpus is not None:
        machine.cpus.write(exit_)
        return None
    if isinstance(exit_, exits.InternalErrorExit) and machine.assist_mode != "off":
        from pykvm.machine.assist import finish

        why = finish(machine, vcpu, exit_)
        if why is None:
            return None
        detail = f"; the assist cannot finish it because {why}" if why else ""
    reason = {
        exits.ShutdownExit: StopReason.SHUTDOWN,
        exits.FailEntryExit: StopReason.FAIL_ENTRY,
        exits.InternalErrorExit: StopReason.INTERNAL_ERROR,
    }.get(type(exit_), StopReason.UNHANDLED)
    exit_._detach()
    return Outcome(reason, vcpu_id, detail=f"{exit_}{detail}", exit=exit_)


def _element(machine: Machine, exit_: exits.MmioExit) -> None:
    """One access to memory that is a device's."""
    if exit_.is_write:
        machine.mmio.write(exit_.gpa, exit_.size, exit_.value)
    else:
        exit_.value = machine.mmio.read(exit_.gpa, exit_.size) & (1 << 8 * exit_.size) - 1


def _repeat(machine: Machine, exit_: exits.IoExit) -> None:
    """REP INS/OUTS: one exit, `count` elements to the same port, in order (KVM API, 5)."""
    bus, port, size = machine.pio, exit_.port, exit_.size
    data = exit_.data
    found = bus.find(port)
    if found is not None and hasattr(found[0].device, "read_block"):
        _block(machine, exit_, found[0])
        return
    claim = bus.table[port]
    whole = claim is not None and size <= claim.limit
    if exit_.is_write:
        for at in range(0, exit_.count * size, size):
            value = int.from_bytes(data[at : at + size], "little")
            if whole:
                claim.write(claim.offset, size, value)  # type: ignore[union-attr]
            else:
                bus.write(port, size, value)
        return
    mask = (1 << 8 * size) - 1
    for at in range(0, exit_.count * size, size):
        value = claim.read(claim.offset, size) if whole else bus.read(port, size)  # type: ignore[union-attr]
        data[at : at + size] = (value & mask).to_bytes(size, "little")


def _block(machine: Machine, exit_: exits.IoExit, owner: Range) -> None:
    """The same for a device that takes many elements at once, as disks do."""
    device, offset = owner.device, exit_.port - owner.start
    with machine.pio.lock:
        if exit_.is_write:
            device.write_block(offset, exit_.size, bytes(exit_.data))
        else:
            exit_.data[:] = device.read_block(offset, exit_.size, exit_.count)
