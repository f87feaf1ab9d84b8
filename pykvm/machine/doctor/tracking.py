"""What an exit costs, how registers travel, and how writes to memory are tracked."""

from __future__ import annotations

import time

from pykvm.kvm import Kvm, Vm
from pykvm.kvm.errors import KvmError
from pykvm.machine.doctor.probe import DONE, SCRATCH, Probe
from pykvm.machine.doctor.result import Section

_PORT = 0xE2
_EXITS = 400
_DIRTIED = SCRATCH + 0x1000  # a page that nobody else writes to
_WRITE = b"\xc6\x87\x00\x10\x00\x00\x01"  # mov byte ptr [rdi + 0x1000], 1


def examine_exits(kvm: Kvm, section: Section) -> None:
    """The cost of an exit to user space, in C and in Python, and the way of the registers."""
    code = b"\xe6" + bytes((_PORT,))
    with Probe(kvm) as probe:
        native_us = _round_trip(probe, code, native=True)
        python_us = _round_trip(probe, code, native=False)
        section.add(
            "exit_cost", "exit cost", None,
            f"{native_us:.1f} µs for OUT with its exit, answered in C; "
            f"{python_us:.1f} µs with a typed exit in Python",
            value={"native_us": round(native_us, 2), "python_us": round(python_us, 2)},
            brief=True,
        )  # fmt: skip
        _synced_registers(kvm, probe, section)
    immediate = kvm.check_extension("KVM_CAP_IMMEDIATE_EXIT")
    section.add(
        "immediate_exit", "immediate exit", bool(immediate),
        "a stop request cannot be missed" if immediate else "a stop may come one signal late",
        value=immediate,
    )  # fmt: skip


def _round_trip(probe: Probe, out: bytes, *, native: bool) -> float:
    """Microseconds an OUT in 64-bit ring 0, the instruction included."""
    rule = probe.vm.rules.pio(_PORT, write="drop") if native else None
    best = float("inf")
    for _ in range(3):
        probe.prepare("long", out * _EXITS + DONE)
        started = time.perf_counter_ns()
        probe.go(2.0)
        best = min(best, time.perf_counter_ns() - started)
    if rule is not None:
        rule.remove()
    return best / _EXITS / 1000


def _synced_registers(kvm: Kvm, probe: Probe, section: Section) -> None:
    supported = kvm.check_extension("KVM_CAP_SYNC_REGS")
    parts = [n for bit, n in enumerate(("registers", "segments", "events")) if supported >> bit & 1]
    probe.prepare("long", b"\x48\xff\xc0" + DONE, rax=41)  # inc rax
    probe.go()
    right = probe.vcpu.regs.rax == 42
    if not parts:
        section.add(
            "sync_regs", "synced registers", False,
            "each look at a register is an ioctl", "use a kernel from 4.17 on", value=0,
        )  # fmt: skip
        return
    text = f"{', '.join(parts)} travel through shared memory"
    if not right:
        text = "a register did not arrive as the guest left it"
    section.add("sync_regs", "synced registers", right, text, value=supported)


def examine_memory(kvm: Kvm, section: Section) -> None:
    """Dirty log and dirty ring, tried with a guest that writes to one page."""
    _dirty_log(kvm, section)
    _manual_log(kvm, section)
    _dirty_ring(kvm, section)


def _dirty_log(kvm: Kvm, section: Section) -> None:
    with Probe(kvm, log_dirty=True) as probe:
        found = _pages_written(probe)
    good = _DIRTIED in found
    text = "finds the page that a guest wrote" if good else "missed the page that a guest wrote"
    section.add("dirty_log", "dirty log", good, text, value=good)


def _pages_written(probe: Probe) -> list[int]:
    probe.prepare("long", DONE)
    probe.go()
    probe.vm.dirty_pages(probe.memory)  # what starting took
    probe.prepare("long", _WRITE + DONE)
    probe.go()
    return probe.vm.dirty_pages(probe.memory)


def _manual_log(kvm: Kvm, section: Section) -> None:
    key, title = "dirty_log_manual", "manual dirty log"
    try:
        with Probe(kvm, setup=Vm.enable_manual_dirty_log, log_dirty=True) as probe:
            probe.prepare("long", _WRITE + DONE)
            probe.go()
            first = probe.vm.dirty_pages(probe.memory)
            probe.vm.clear_dirty_log(probe.memory)
            second = probe.vm.dirty_pages(probe.memory)
    except KvmError as error:
        section.add(key, title, False, str(error), value=False)
        return
    good = _DIRTIED in first and _DIRTIED not in second
    text = "pages are protected again in parts, on demand" if good else "clearing did not work"
    section.add(key, title, good, text, value=good)


def _dirty_ring(kvm: Kvm, section: Section) -> None:
    key, title = "dirty_ring", "dirty ring"
    try:
        with Probe(kvm, setup=lambda vm: vm.enable_dirty_ring(1024), log_dirty=True) as probe:
            probe.prepare("long", _WRITE + DONE)
            probe.go()
            pages = {page * 4096 for _, page in probe.vm.harvest_dirty_rings()}
            probe.vm.reset_dirty_rings()
            probe.vcpu.complete()
    except KvmError as error:
        section.add(key, title, False, str(error), value=False)
        return
    good = _DIRTIED in pages
    text = "lists the page that a guest wrote" if good else "missed the page that a guest wrote"
    section.add(key, title, good, text, value=good)
