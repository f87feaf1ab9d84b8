"""In-place reset: µs by the number of dirty pages, against plain C and against copying everything.

    python benchmarks/reset.py [--json] [--pages 0 3 30 ...] [--turns N]

One guest writes a byte into each of N pages and halts; then its machine is put back, again and
again: by `Machine.restore`, by a C loop with the same ioctls for the same state on the same machine
(`c log`: the floor), by copying all memory, and by a C loop over a dirty ring on a VM that has one.
Medians; all in one run, in turns.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import pathlib
import statistics
import struct
import subprocess
import tempfile
from time import perf_counter_ns
from typing import Any

from pykvm import Machine
from pykvm._native import ffi
from pykvm.kvm import Kvm
from pykvm.kvm.constants import header_ioctls
from pykvm.kvm.errors import KvmError
from pykvm.machine.snapshot import Snapshot

MEMORY = 256 << 20
FIRST = 16 << 20  # guest-physical: the pages that are written
PAGES = [0, 3, 30, 300, 3000, 30000]
# next: test ecx, ecx; jz end; mov [rdi], al; add rdi, 4096; dec ecx; jmp next; end: hlt
CODE = bytes.fromhex("85c9 740d 8807 4881c700100000 ffc9 ebef fa f4")
ENTRY = 0x100000


class Op(ctypes.Structure):
    """One ioctl."""

    _fields_ = (
        ("fd", ctypes.c_int), ("request", ctypes.c_ulong), ("argument", ctypes.c_void_p),
    )  # fmt: skip


def build(folder: str) -> ctypes.CDLL:
    """The floor, compiled here."""
    source = pathlib.Path(__file__).with_name("reset_floor.c")
    target = f"{folder}/floor.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", target, source], check=True)
    library = ctypes.CDLL(target)
    for name in ("floor_log", "floor_ring", "floor_full"):
        getattr(library, name).restype = ctypes.c_uint64
    return library


def address(data: Any) -> int:
    """Where cffi data lies."""
    return int(ffi.cast("uintptr_t", data))


def operations(machine: Machine, snapshot: Snapshot) -> list[tuple[int, int, int]]:
    """What putting back the registers and chips of a snapshot takes: (fd, request, argument)."""
    numbers, found = header_ioctls(), []
    for vcpu, image in zip(machine.vcpus, snapshot.vcpus, strict=True):
        names = ["SREGS", "REGS", "XCRS", "LAPIC", "MP_STATE", "DEBUGREGS"]
        for name in names:
            part = ffi.addressof(getattr(image.c, name.lower()))
            found.append((vcpu.fd, numbers[f"KVM_SET_{name}"], address(part)))
        found.append((vcpu.fd, numbers["KVM_SET_XSAVE"], address(image.xsave)))
        found.append((vcpu.fd, numbers["KVM_SET_MSRS"], address(image.msrs)))
        tsc = ffi.new("struct kvm_msrs *", {"nmsrs": 1, "entries": 1})
        tsc.entries[0].index, tsc.entries[0].data = 0x10, image.c.tsc
        KEPT.append(tsc)
        found.append((vcpu.fd, numbers["KVM_SET_MSRS"], address(tsc)))
        events = ffi.addressof(image.c.events)
        found.append((vcpu.fd, numbers["KVM_SET_VCPU_EVENTS"], address(events)))
    vm, chips = machine.vm, snapshot.chips
    for chip in chips.chips:
        found.append((vm.fd, numbers["KVM_SET_IRQCHIP"], address(chip)))
    if chips.pit is not None:
        found.append((vm.fd, numbers["KVM_SET_PIT2"], address(chips.pit)))
    found.append((vm.fd, numbers["KVM_SET_CLOCK"], address(chips.clock)))
    return found


KEPT: list[Any] = []


def as_ops(rows: list[tuple[int, int, int]]) -> Any:
    """An array for the floor."""
    return (Op * max(1, len(rows)))(*[Op(*row) for row in rows])


class InPlace:
    """The machine that is measured, with the state of before."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self.machine = Machine(memory=MEMORY, devices=False)
        self.machine.load(CODE, load=ENTRY, entry=ENTRY, mode="long")
        for page in range(0, MEMORY, 4096):  # all of it exists
            self.machine.memory.write_u8(page + 8, 1) if page >= 4 << 20 else None
        self.snapshot = self.machine.snapshot()
        self.ops = operations(self.machine, self.snapshot)
        self.array = as_ops(self.ops)
        region = self.machine.memory.regions[0]
        self.region = region
        self.shadow = (ctypes.c_uint8 * region.size).from_buffer_copy(region.view)
        self.pages = region.size // 4096
        self.bitmap = (ctypes.c_uint64 * (self.pages // 64))()

    def dirty(self, pages: int) -> None:
        """The guest writes."""
        regs = self.machine.vcpus[0].regs
        regs.rcx, regs.rdi, regs.rax = pages, FIRST, 0x55
        self.machine.run(timeout=60)

    def restore(self) -> tuple[int, int]:
        """By pykvm: (ns, pages)."""
        start = perf_counter_ns()
        self.machine.restore(self.snapshot)
        passed = perf_counter_ns() - start
        assert self.machine.last_restore is not None
        return passed, self.machine.last_restore.pages

    def floor(self) -> tuple[int, int]:
        """By plain C."""
        copied = ctypes.c_uint64()
        passed = self.library.floor_log(
            self.machine.vm.fd, self.region.slot, ctypes.c_uint64(self.pages),
            ctypes.c_void_p(self.region.host_address), self.shadow, self.bitmap, self.array,
            len(self.ops), ctypes.byref(copied),
        )  # fmt: skip
        assert passed, "an ioctl of the floor failed"
        self._forget()
        return passed, copied.value

    def full(self) -> tuple[int, int]:
        """By copying everything."""
        passed = self.library.floor_full(
            ctypes.c_uint64(self.pages), ctypes.c_void_p(self.region.host_address), self.shadow,
            self.array, len(self.ops),
        )  # fmt: skip
        assert passed, "an ioctl of the floor failed"
        self.machine.restore(self.snapshot)
        return passed, self.pages

    def _forget(self) -> None:
        self.machine.restore(self.snapshot)  # our copy of the registers is stale, too


class Ring:
    """The same guest on a VM with a dirty ring, driven without a machine."""

    SIZE = 65536

    def __init__(self, library: ctypes.CDLL, like: InPlace) -> None:
        self.library, self.like = library, like
        self.kvm = Kvm()
        vm = self.vm = self.kvm.create_vm()
        vm.enable_dirty_ring(self.SIZE)
        region = self.region = vm.add_memory(0, MEMORY)
        region.view[:] = like.region.view
        vcpu = self.vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid(like.machine.vcpus[0].get_cpuid())
        self.ring = vcpu.dirty_ring
        self.next = ctypes.c_uint32()
        vm.set_log_dirty(region, True)
        image = like.snapshot.vcpus[0]
        numbers = header_ioctls()
        self.rows = [
            (vcpu.fd, numbers[f"KVM_SET_{name}"], address(ffi.addressof(getattr(image.c, part))))
            for name, part in (("SREGS", "sregs"), ("REGS", "regs"))
        ]
        self.array = as_ops(self.rows)
        self.restore()
        vcpu.set_sregs(like.machine.vcpus[0].get_sregs())

    def dirty(self, pages: int) -> None:
        """The guest writes."""
        image = self.like.snapshot.vcpus[0].c.regs
        regs = self.vcpu.regs
        regs.rip, regs.rflags, regs.rsp = image.rip, image.rflags, image.rsp
        regs.rcx, regs.rdi, regs.rax = pages, FIRST, 0x55
        while type(self.vcpu.run()).__name__ != "HltExit":
            pass

    def restore(self) -> tuple[int, int]:
        """By plain C."""
        copied = ctypes.c_uint64()
        ring = ctypes.c_void_p(address(self.ring._buffer))
        passed = self.library.floor_ring(
            self.vm.fd, ring, self.SIZE, ctypes.byref(self.next),
            ctypes.c_void_p(self.region.host_address), self.like.shadow, self.array,
            len(self.rows), ctypes.byref(copied),
        )  # fmt: skip
        assert passed, "an ioctl of the floor failed"
        return passed, copied.value


def measure(pages: int, turns: int, here: InPlace, ring: Ring | None) -> dict[str, Any]:
    """Medians in µs for one number of pages."""
    ways: list[tuple[str, Any, Any]] = [
        ("pykvm", here, here.restore), ("c log", here, here.floor), ("full copy", here, here.full),
    ]  # fmt: skip
    if ring is not None:
        ways.append(("c ring, two ioctls", ring, ring.restore))
    times: dict[str, list[int]] = {name: [] for name, _, _ in ways}
    found: dict[str, int] = {}
    for _ in range(turns):
        for name, where, way in ways:
            where.dirty(pages)
            ns, found[name] = way()
            times[name].append(ns)
    row: dict[str, Any] = {"dirty": pages, "copied": found}
    row |= {name: statistics.median(values) / 1000 for name, values in times.items()}
    row["ratio"] = row["pykvm"] / row["c log"]
    return row


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pages", type=int, nargs="*", default=PAGES)
    parser.add_argument("--turns", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        library = build(folder)
        here = InPlace(library)
        try:
            ring: Ring | None = Ring(library, here)
        except KvmError as error:
            print(f"no dirty ring here: {error}")
            ring = None
        rows = [
            measure(n, options.turns or max(5, min(300, 3000 // (n + 1))), here, ring)
            for n in options.pages
        ]
        phases = here.machine.last_restore
        here.machine.close()
    if options.json:
        print(json.dumps(rows))
        return
    names = [name for name in rows[0] if name not in ("dirty", "copied", "ratio")]
    print("dirty pages", *[f"{name:>20}" for name in names], "  pykvm / c log")
    for row in rows:
        cells = [f"{row[name]:17.1f} µs" for name in names]
        print(f"{row['dirty']:11}", *cells, f"{row['ratio']:10.2f}", row["copied"])
    print(f"last restore: {phases}")


assert struct.calcsize("P") == 8

if __name__ == "__main__":
    main()
