"""What a machine is made of, as far as a snapshot of it needs the same: plain values to compare."""

from __future__ import annotations

import base64

import pykvm
from pykvm.machine.snapshot.errors import SnapshotError
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine
    from pykvm.machine.snapshot.vcpu import VcpuKind

_WHAT = {
    "pykvm": "version of pykvm", "board": "board", "irqchip": "interrupt controller",
    "cpus": "number of vCPUs", "memory": "memory size in bytes", "msrs": "list of MSRs",
    "xsave": "size of the XSAVE area", "tsc_offset": "way of setting the TSC",
    "has_lapic": "local APIC", "has_xcrs": "XCR0", "xsave2": "form of the XSAVE area",
}  # fmt: skip
# CPUID bits that follow the guest's own registers (SDM vol. 2A, CPUID): OSXSAVE, OSPKE; and the
# size of the XSAVE area for the XCR0 of the moment.
_MOVING = {(1, "ecx"): 1 << 27, (7, "ecx"): 1 << 4, (0xD, "ebx"): 0xFFFFFFFF}
_REGISTERS = ("eax", "ebx", "ecx", "edx")


def describe(machine: Machine, kind: VcpuKind) -> dict[str, Any]:
    """For the file, and for comparing."""
    model, topology = machine.cpu_spec
    return {
        "pykvm": pykvm.__version__,
        "board": machine.board.name,
        "irqchip": machine.irqchip,
        "cpus": len(machine.vcpus),
        "memory": machine.memory_size,
        "cpu": [model, topology, machine.cpus is not None],
        "devices": machine.standard is not None,
        "acpi": machine.acpi,
        "triple_fault": machine.triple_fault,
        "assist": machine.assist_mode,
        "has_lapic": kind.has_lapic,
        "has_xcrs": kind.has_xcrs,
        "xsave2": kind.xsave2,
        "xsave": machine.vcpus[0].xsave_size,
        "tsc_offset": kind.tsc_offset,
        "msrs": kind.msrs,
        "cpuid": [_cpuid(vcpu) for vcpu in machine.vcpus],
    }


def _cpuid(vcpu: Any) -> list[list[int]]:
    rows = []
    for entry in vcpu.get_cpuid():
        values = [
            getattr(entry, name) & ~_MOVING.get((entry.function, name), 0) for name in _REGISTERS
        ]
        rows.append([entry.function, entry.index, *values])
    return sorted(rows)


def check(saved: dict[str, Any], here: dict[str, Any], path: str) -> None:
    """Raises `SnapshotError` naming the first thing in which machine and file differ."""
    for name, what in _WHAT.items():
        if saved.get(name) != here[name]:
            theirs, ours = (str(x.get(name))[:60] for x in (saved, here))
            raise SnapshotError(
                f"{path} does not fit this machine: the {what} is {theirs} there and {ours} here"
            )
    for number, (theirs_, ours_) in enumerate(
        zip(_tables(saved, path), _tables(here, path), strict=True)
    ):
        for leaf in sorted(theirs_.keys() | ours_.keys()):
            if theirs_.get(leaf) != ours_.get(leaf):
                raise SnapshotError(
                    f"{path} does not fit this machine: CPUID leaf {leaf[0]:#x}.{leaf[1]} of vCPU "
                    f"{number} is {_hex(theirs_.get(leaf))} there and {_hex(ours_.get(leaf))} "
                    'here; make the machine with the same cpu= (cpu="portable" fits most hosts)'
                )


def _tables(config: dict[str, Any], path: str) -> list[dict[tuple[int, int], list[int]]]:
    tables = config.get("cpuid")
    try:
        assert isinstance(tables, list)
        assert len(tables) == config["cpus"]
        return [{(int(r[0]), int(r[1])): [int(v) for v in r[2:6]] for r in rows} for rows in tables]
    except (AssertionError, TypeError, ValueError, IndexError, OverflowError):
        raise SnapshotError(f"{path} is not usable as a snapshot: its CPUID is none") from None


def _hex(values: list[int] | None) -> str:
    return "absent" if values is None else " ".join(f"{value:#x}" for value in values)


def packed(data: bytes) -> str:
    """Bytes as text for JSON."""
    return base64.b64encode(data).decode("ascii")


def unpacked(text: object, size: int | None, what: str, path: str) -> bytes:
    """The opposite; `size` bytes, unless it is None. Raises `SnapshotError`."""
    try:
        assert isinstance(text, str)
        data = base64.b64decode(text, validate=True)
    except (AssertionError, ValueError):
        raise SnapshotError(f"{path} is not usable as a snapshot: its {what} is no data") from None
    if size is not None and len(data) != size:
        raise SnapshotError(
            f"{path} is not usable as a snapshot: its {what} has {len(data)} bytes, not {size}"
        )
    return data
