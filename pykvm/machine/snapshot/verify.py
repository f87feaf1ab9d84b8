"""The first difference between a machine and a snapshot: everything is read anew and compared."""

from __future__ import annotations

from collections.abc import Iterator

from pykvm._native import ffi
from pykvm.kvm.exit_names import msr
from pykvm.kvm.vcpu_lapic import REGISTERS
from pykvm.machine.snapshot import parts
from pykvm.machine.snapshot.chips import CHIPS, ChipImage
from pykvm.machine.snapshot.operate import at_rest, keeper_of
from pykvm.machine.snapshot.vcpu import VcpuImage
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine
    from pykvm.machine.snapshot.snapshot import Snapshot

# What goes on with time, whatever is put back.
_TIMES_LAPIC = {REGISTERS["timer_current"]}
_TIME_FIELDS = ("elapsed_ns", "_in_ns", "_ns", "age")
_TIME_MSRS = {0xE7, 0xE8, 0x6E0, 0x40000020, 0x40000010}
_PIT_PASSED = 4  # in the state of one of our PIT's counters: ns since it was loaded
_NOT_IN_PIT = {"count_load_time"}


def difference(snapshot: Snapshot, machine: Machine) -> str | None:
    """One sentence about the first difference, None if there is none."""
    with at_rest(machine):
        return compare(snapshot, machine)


def compare(snapshot: Snapshot, machine: Machine) -> str | None:
    """As `difference`, for a machine at rest."""
    return next(_all(snapshot, machine), None)


def _all(snapshot: Snapshot, machine: Machine) -> Iterator[str]:
    keeper = keeper_of(machine)
    place = keeper.ram.difference(snapshot.ram)
    if place is not None:
        gpa, then, now = place
        yield (
            f"memory at guest-physical {gpa:#x} (page {gpa & -4096:#x}, offset {gpa % 4096:#x}) "
            f"has {now:#04x}, not {then:#04x}"
        )
    for index, (vcpu, image) in enumerate(zip(machine.vcpus, snapshot.vcpus, strict=True)):
        for text in _vcpu(image, VcpuImage.take(vcpu, keeper.kind)):
            yield f"vCPU {index}: {text}"
    yield from _chips(snapshot.chips, ChipImage.take(machine))
    states = parts.save_devices(machine)
    for name, state in snapshot.devices.items():
        if name not in states:
            yield f"the device {name} is missing"
        yield from _device(name, state, states.get(name, {}))


def _vcpu(then: VcpuImage, now: VcpuImage) -> Iterator[str]:
    for part in ("regs", "sregs", "debugregs", "events", "mp_state"):
        for name, was, is_ in _fields(getattr(then.c, part), getattr(now.c, part), ""):
            yield f"{name} is {is_:#x}, not {was:#x}"
    for i in range(then.c.xcrs.nr_xcrs if then.c.has_xcrs else 0):
        was, is_ = then.c.xcrs.xcrs[i].value, now.c.xcrs.xcrs[i].value
        if was != is_:
            yield f"XCR{then.c.xcrs.xcrs[i].xcr} is {is_:#x}, not {was:#x}"
    was_area, is_area = bytes(ffi.buffer(then.xsave)), bytes(ffi.buffer(now.xsave))
    if was_area != is_area:
        at = next(
            i for i, pair in enumerate(zip(was_area, is_area, strict=True)) if len(set(pair)) > 1
        )
        yield f"the XSAVE area at {at:#x} has {is_area[at]:#04x}, not {was_area[at]:#04x}"
    for before, after in zip(then.msrs.entries, now.msrs.entries, strict=True):
        if before.data != after.data and before.index not in _TIME_MSRS:
            yield f"MSR {msr(before.index)} is {after.data:#x}, not {before.data:#x}"
    if then.c.has_lapic:
        was_page, is_page = (bytes(ffi.buffer(v.c.lapic.regs)) for v in (then, now))
        names = {offset: name for name, offset in REGISTERS.items()}
        for at in range(0, len(was_page), 16):
            old, new = was_page[at : at + 4], is_page[at : at + 4]
            if old != new and at not in _TIMES_LAPIC:
                yield (
                    f"APIC register {names.get(at, hex(at))} is "
                    f"{int.from_bytes(new, 'little'):#x}, not {int.from_bytes(old, 'little'):#x}"
                )


def _fields(then: Any, now: Any, prefix: str) -> Iterator[tuple[str, int, int]]:
    """(name, value then, value now) of each integer of a structure that differs."""
    for name, field in ffi.typeof(then).fields:
        was, is_ = getattr(then, name), getattr(now, name)
        if field.type.kind == "struct":
            yield from _fields(was, is_, f"{prefix}{name}.")
        elif field.type.kind == "array":
            for i, pair in enumerate(zip(was, is_, strict=True)):
                if ffi.typeof(was).item.kind == "struct":
                    yield from _fields(*pair, f"{prefix}{name}[{i}].")
                elif pair[0] != pair[1]:
                    yield f"{prefix}{name}[{i}]", int(pair[0]), int(pair[1])
        elif was != is_:
            yield f"{prefix}{name}", int(was), int(is_)


def _chips(then: ChipImage, now: ChipImage) -> Iterator[str]:
    for number, (old, new) in enumerate(zip(then.chips, now.chips, strict=True)):
        kind = "ioapic" if number == 2 else "pic"
        if kind == "ioapic":
            for i in range(24):
                was, is_ = old.chip.ioapic.redirtbl[i].bits, new.chip.ioapic.redirtbl[i].bits
                if was != is_:
                    yield f"{CHIPS[number]}: redirection entry {i} is {is_:#x}, not {was:#x}"
            names = ["base_address", "ioregsel", "id", "irr"]
        else:
            names = [n for n, _ in ffi.typeof(old.chip.pic).fields]
        for name in names:
            was, is_ = (
                getattr(getattr(old.chip, kind), name),
                getattr(getattr(new.chip, kind), name),
            )
            if was != is_:
                yield f"{CHIPS[number]}: {name} is {is_:#x}, not {was:#x}"
    if then.pit is not None:
        for name, was, is_ in _fields(then.pit[0], now.pit[0], ""):
            if name.rpartition(".")[2] not in _NOT_IN_PIT:
                yield f"PIT: {name} is {is_:#x}, not {was:#x}"


def _but(values: list[object], index: int) -> list[object]:
    return [value for at, value in enumerate(values) if at != index]


def _device(name: str, then: dict[str, object], now: dict[str, object]) -> Iterator[str]:
    for field in [*then, *(f for f in now if f not in then)]:
        was, is_ = then.get(field), now.get(field)
        if name.startswith("pit") and isinstance(was, list) and isinstance(is_, list):
            was, is_ = _but(was, _PIT_PASSED), _but(is_, _PIT_PASSED)
        if was != is_ and not field.endswith(_TIME_FIELDS):
            yield f"{name}: {field} is {str(is_)[:60]}, not {str(was)[:60]}"
