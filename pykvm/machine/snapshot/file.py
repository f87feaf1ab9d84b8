"""Snapshots to and from files: what is in them. The container is `format.py`."""

from __future__ import annotations

import os
from array import array

from pykvm._native import ffi
from pykvm.errors import PykvmError
from pykvm.machine.result import Status
from pykvm.machine.snapshot import describe, parts
from pykvm.machine.snapshot.chips import ChipImage
from pykvm.machine.snapshot.errors import SnapshotError
from pykvm.machine.snapshot.format import Reader, Writer
from pykvm.machine.snapshot.ram import PAGE, RamImage, Shape
from pykvm.machine.snapshot.vcpu import VcpuImage
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine
    from pykvm.machine.snapshot.operate import Keeper
    from pykvm.machine.snapshot.snapshot import Snapshot

_RUN_PAGES = 1024  # a checksum for each 4 MiB
_STRUCTS = ("regs", "sregs", "events", "debugregs", "xcrs", "mp_state", "lapic")
_STATUSES = {Status.EMPTY, Status.READY, Status.HALTED, Status.CRASHED}


def save(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """See `Snapshot.save`."""
    writer = Writer(path)
    try:
        writer.finish(
            {
                "machine": snapshot.config,
                "status": str(snapshot.status),
                "crash_reason": snapshot.crash_reason,
                "cmdline": snapshot.cmdline,
                "devices": snapshot.devices,
                "serial_input": None
                if snapshot.serial_input is None
                else describe.packed(snapshot.serial_input),
                "traps": [
                    [vcpu, *pair]
                    for vcpu, armed in snapshot.traps.items()
                    for pair in armed.items()
                ],
                "vcpus": [_vcpu(image) for image in snapshot.vcpus],
                "chips": _chips(snapshot.chips),
                "disks": [
                    [name, _disk(writer, backend.export_checkpoint(mark))]
                    for name, backend, mark in snapshot.disks
                ],
                "memory": _memory(writer, snapshot.ram),
            }
        )
    finally:
        writer.close()


def _raw(struct: Any) -> str:
    return describe.packed(bytes(ffi.buffer(ffi.addressof(struct))))


def _vcpu(image: VcpuImage) -> dict[str, Any]:
    return {
        **{name: _raw(getattr(image.c, name)) for name in _STRUCTS},
        "msrs": [entry.data for entry in image.msrs.entries],
        "xsave": describe.packed(bytes(ffi.buffer(image.xsave))),
        "tsc": image.c.tsc,
    }


def _chips(image: ChipImage) -> dict[str, Any]:
    return {
        "chips": [_raw(chip[0]) for chip in image.chips],
        "pit": None if image.pit is None else _raw(image.pit[0]),
        "clock": image.clock.clock,
    }


def _disk(writer: Writer, pieces: Any) -> list[list[int]] | None:
    return None if pieces is None else [[at, *writer.add(data).plain()] for at, data in pieces]


def _memory(writer: Writer, ram: RamImage) -> list[dict[str, Any]]:
    """Runs of pages that follow each other both in the guest and where their bytes are."""
    regions = []
    for (gpa, size), table in zip(ram.shape, ram.tables, strict=True):
        runs = []
        pointers = memoryview(ffi.buffer(table)).cast("Q")
        page, end = 0, len(pointers)
        while page < end:
            at = pointers[page]
            if not at:
                page += 1
                continue
            count = 1
            limit = min(end - page, _RUN_PAGES)
            while count < limit and pointers[page + count] == at + count * PAGE:
                count += 1
            data = ffi.buffer(table[page], count * PAGE)
            runs.append([page, *writer.add(data).plain()])
            page += count
        regions.append({"gpa": gpa, "size": size, "runs": runs})
    return regions


class Loaded:
    """What a file says, before there is a machine to say it to."""

    def __init__(self, path: str | os.PathLike[str], *, lazy: bool = False) -> None:
        self.reader = Reader(path, lazy=lazy)
        self.path = self.reader.path
        self.text = self.reader.description
        self.config = self.field("machine", dict)

    def field(self, name: str, kind: type[Any], of: Any = None) -> Any:
        """A field of the description (or of a part of it) that must be of a kind."""
        source = self.text if of is None else of
        value = source.get(name) if isinstance(source, dict) else None
        if type(value) is not kind:
            raise self.reader.refuse(f"its field {name!r} is no {kind.__name__}")
        return value

    def number(self, value: object, name: str, high: int) -> int:
        """An integer from 0 to `high`."""
        if type(value) is not int or not 0 <= value <= high:
            raise self.reader.refuse(f"its {name} is no number from 0 to {high:#x}")
        return value

    def check(self) -> None:
        """Looks at every checksum; all that needs no machine is checked then."""
        self.status(), self.traps(), self.serial_input()
        for region in self.field("memory", list):
            for run in self.field("runs", list, region):
                if not isinstance(run, list) or not run:
                    raise self.reader.refuse("a run of its memory is none")
                self.reader.data(run[1:], "its memory", PAGE)
        for row in self.field("disks", list):
            if not isinstance(row, list) or len(row) != 2:
                raise self.reader.refuse("a disk of it is none")
            if row[1] is not None:
                for _ in self._pieces(row[1]):
                    pass

    def status(self) -> Status:
        """The machine's."""
        try:
            status = Status(self.field("status", str))
        except ValueError:
            status = Status.RUNNING
        if status not in _STATUSES:
            raise self.reader.refuse("its status is none that a machine is saved in")
        return status

    def memory(self) -> RamImage:
        """The contents of memory; the pages lie in the file's bytes."""
        shape: list[tuple[int, int]] = []
        regions = self.field("memory", list)
        most = self.number(self.config.get("memory"), "memory size", 1 << 46)
        total = 0
        for region in regions:
            gpa = self.number(self.field("gpa", int, region), "address of memory", 1 << 52)
            size = self.number(self.field("size", int, region), "size of memory", 1 << 46)
            total += size
            if gpa % PAGE or size % PAGE or not size or total > 2 * most + (1 << 40):
                raise self.reader.refuse("its memory is not made of pages")
            shape.append((gpa, size))
        return self._fill(tuple(shape), regions)

    def _fill(self, shape: Shape, regions: list[Any]) -> RamImage:
        tables: list[Any] = []
        for (_, size), region in zip(shape, regions, strict=True):
            pages = size // PAGE
            table = ffi.new("const uint8_t *[]", pages)
            tables.append(table)
            last = 0
            for run in self.field("runs", list, region):
                if not isinstance(run, list) or not run:
                    raise self.reader.refuse("a run of its memory is none")
                first = self.number(run[0], "page number", pages)
                data = self.reader.data(run[1:], "its memory", PAGE)
                count = len(data) // PAGE
                if first < last or count > pages - first:
                    raise self.reader.refuse("its memory overlaps itself, or ends too late")
                last = first + count
                if count:
                    start = int(ffi.cast("uintptr_t", ffi.from_buffer(data)))
                    pointers = array("Q", range(start, start + count * PAGE, PAGE))
                    ffi.memmove(table + first, pointers, 8 * count)
        return RamImage(shape, tables, (self.reader._map,))

    def check_shape(self, machine: Machine) -> None:
        """Raises `SnapshotError` before anything is set aside for memory that is not there."""
        shape = [[r.get("gpa"), r.get("size")] if isinstance(r, dict) else r
                 for r in self.field("memory", list)]  # fmt: skip
        here = [[region.gpa, region.size] for region in machine.memory.regions]
        if shape != here:
            raise SnapshotError(
                f"{self.path} does not fit this machine: its memory lies elsewhere "
                f"({str(shape)[:80]}, here {str(here)[:80]})"
            )

    def vcpus(self, keeper: Keeper, xsave_size: int) -> list[VcpuImage]:
        """All vCPUs; KVM checks the values when it takes them over."""
        return [self._vcpu(saved, keeper, xsave_size) for saved in self.field("vcpus", list)]

    def _vcpu(self, saved: Any, keeper: Keeper, xsave_size: int) -> VcpuImage:
        image = VcpuImage(keeper.kind, xsave_size)
        for name in _STRUCTS:
            target = ffi.buffer(ffi.addressof(getattr(image.c, name)))
            text = self.field(name, str, saved)
            target[:] = describe.unpacked(text, len(target), name, self.path)
        values = self.field("msrs", list, saved)
        if len(values) != len(image.msrs.entries):
            raise self.reader.refuse("it has another number of MSRs")
        for entry, value in zip(image.msrs.entries, values, strict=True):
            entry.data = self.number(value, "value of an MSR", (1 << 64) - 1)
        text = self.field("xsave", str, saved)
        ffi.buffer(image.xsave)[:] = describe.unpacked(text, xsave_size, "XSAVE area", self.path)
        image.c.tsc = self.number(saved.get("tsc"), "TSC", (1 << 64) - 1)
        return image

    def chips(self, machine: Machine) -> ChipImage:
        """KVM's chips."""
        image, saved = ChipImage(machine), self.field("chips", dict)
        texts = self.field("chips", list, saved)
        if len(texts) != len(image.chips) or (image.pit is None) != (saved.get("pit") is None):
            raise self.reader.refuse("it has other interrupt controllers")
        for number, (chip, text) in enumerate(zip(image.chips, texts, strict=True)):
            target = ffi.buffer(chip)
            target[:] = describe.unpacked(text, len(target), "interrupt controller", self.path)
            if chip.chip_id != number:
                raise self.reader.refuse("its interrupt controllers are mixed up")
        if image.pit is not None:
            target = ffi.buffer(image.pit)
            target[:] = describe.unpacked(saved["pit"], len(target), "PIT", self.path)
        image.clock.clock = self.number(saved.get("clock"), "clock", (1 << 63) - 1)
        return image

    def traps(self) -> dict[int, dict[int, int]]:
        """The assist's breakpoints."""
        found: dict[int, dict[int, int]] = {}
        for row in self.field("traps", list):
            if not isinstance(row, list) or len(row) != 3:
                raise self.reader.refuse("a breakpoint of it is none")
            vcpu, address, vector = (
                self.number(value, "breakpoint", high)
                for value, high in zip(row, (1 << 32, (1 << 64) - 1, 31), strict=True)
            )
            found.setdefault(vcpu, {})[address] = vector
            if len(found[vcpu]) > 4:
                raise self.reader.refuse("it has more breakpoints than a CPU")
        return found

    def devices(self) -> dict[str, dict[str, object]]:
        """The devices' states; each device checks its own when it takes it over."""
        states: dict[str, dict[str, object]] = self.field("devices", dict)
        for name in states:
            self.field(name, dict, states)
        return states

    def serial_input(self) -> bytes | None:
        """What waited for COM1."""
        text = self.text.get("serial_input")
        return None if text is None else describe.unpacked(text, None, "input", self.path)

    def disks(self, machine: Machine) -> list[tuple[str, Any, object]]:
        """The contents of disks, as checkpoints of those that are on the machine."""
        rows, here = self.field("disks", list), list(parts.backends(machine))
        if len(rows) > len(here):
            raise self.reader.refuse(f"it has {len(rows)} disks, the machine {len(here)}")
        by_name = dict(here)
        found: list[tuple[str, Any, object]] = []
        for row in rows:
            if not isinstance(row, list) or len(row) != 2 or row[0] not in list(by_name):
                raise self.reader.refuse("it has a disk that the machine lacks")
            pieces = None if row[1] is None else list(self._pieces(row[1]))
            backend = by_name[row[0]]
            try:
                found.append((row[0], backend, backend.import_checkpoint(pieces)))
            except PykvmError as error:
                raise self.reader.refuse(f"the disk {row[0]}: {error}") from None
        return found

    def _pieces(self, rows: object) -> Any:
        if not isinstance(rows, list):
            raise self.reader.refuse("the contents of a disk are none")
        for row in rows:
            if not isinstance(row, list) or len(row) != 4:
                raise self.reader.refuse("a piece of a disk is none")
            at = self.number(row[0], "place on a disk", 1 << 60)
            yield at, self.reader.data(row[1:], "a disk")


def bind(snapshot: Snapshot, machine: Machine, keeper: Keeper) -> None:
    """Makes a file's snapshot one of this machine. Raises `SnapshotError`, and changes nothing."""
    loaded = snapshot.loaded
    assert loaded is not None
    describe.check(loaded.config, keeper.config, loaded.path)
    loaded.check_shape(machine)
    vcpus = loaded.vcpus(keeper, machine.vcpus[0].xsave_size)
    chips, traps = loaded.chips(machine), loaded.traps()
    devices = loaded.devices()
    if len(vcpus) != len(machine.vcpus):
        raise loaded.reader.refuse(f"it has {len(vcpus)} vCPUs and says {len(machine.vcpus)}")
    serial_input, disks = loaded.serial_input(), loaded.disks(machine)
    snapshot.ram = loaded.memory()
    snapshot.vcpus, snapshot.chips, snapshot.traps = vcpus, chips, traps
    snapshot.devices, snapshot.serial_input, snapshot.disks = devices, serial_input, disks
    snapshot.image, snapshot.config = machine.image, keeper.config
    snapshot._owner, snapshot.loaded = machine, None
