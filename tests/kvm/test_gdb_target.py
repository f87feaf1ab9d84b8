"""The lab as GDB's debuggee: what is seen of real machines that stand still."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pykvm import Machine, images
from pykvm.arch.paging import paging_registers, walk
from pykvm.errors import PykvmError
from pykvm.kvm import Vcpu
from pykvm.lab.gdb.descriptions import Arch
from pykvm.lab.gdb.labtarget import LabTarget
from pykvm.lab.gdb.target import SIGSEGV, GdbError


class StillLab:
    """A lab over a machine that never moves: memory alone."""

    recording = None
    symbols: Any = None

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._selected = 0

    @property
    def vcpu(self) -> Vcpu:
        return self.machine.vcpus[self._selected]

    def select(self, index: int) -> None:
        self._selected = index

    def reset(self) -> None:
        self.machine.reset()

    def _gpa(self, gva: int) -> int:
        registers: Any = paging_registers(self.vcpu.sregs)
        found = walk(self.machine.memory, gva, **registers)
        if found.gpa is None:
            raise PykvmError(str(found.fault))
        return found.gpa

    def read(self, gva: int, n: int) -> bytes:
        return self.read_physical(self._gpa(gva), n)

    def write(self, gva: int, data: bytes) -> None:
        self.write_physical(self._gpa(gva), data)

    def read_physical(self, gpa: int, n: int) -> bytes:
        return self.machine.memory.read(gpa, n)

    def write_physical(self, gpa: int, data: bytes) -> None:
        self.machine.memory.write(gpa, data)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a machine that stands still was asked for {name}")


def target_of(machine: Machine, **options: Any) -> LabTarget:
    return LabTarget(StillLab(machine), **options)


@pytest.fixture(scope="module")
def hello() -> Iterator[LabTarget]:
    with Machine("16M") as machine:
        machine.load("hello64")
        yield target_of(machine)


@pytest.mark.parametrize(
    ("guest", "arch"),
    [("hello64", Arch.X86_64), ("hello32", Arch.I386), ("hello16", Arch.I8086),
     ("bootsect16", Arch.I8086), ("hello-multiboot", Arch.I386)],
)  # fmt: skip
def test_the_architecture_is_told_by_image_and_mode(guest: str, arch: Arch) -> None:
    image = images.find(guest)
    with Machine("16M", cpus=image.cpus, irqchip=image.irqchip) as machine:  # type: ignore[arg-type]
        machine.load(guest)
        assert target_of(machine).describe().arch is arch
        assert target_of(machine, arch=Arch.I386).describe().arch is Arch.I386


def test_every_register_can_be_read_and_written_back(hello: LabTarget) -> None:
    registers = hello.describe().registers
    file = hello.registers(0)
    values = {r: file.read(r) for r in registers}
    assert all(len(data) == r.size for r, data in values.items())
    by_name = {r.name: int.from_bytes(data, "little") for r, data in values.items()}
    assert by_name["rip"] == hello.machine.vcpus[0].regs.rip
    assert by_name["cs"] == hello.machine.vcpus[0].sregs.cs.selector
    assert by_name["mxcsr"] == 0x1F80
    assert by_name["fctrl"] == 0x37F
    for register, data in values.items():
        file.write(register, data)
    assert {r: hello.registers(0).read(r) for r in registers} == values


def test_vectors_and_bases_reach_the_vcpu(hello: LabTarget) -> None:
    registers = {r.name: r for r in hello.describe().registers}
    for name in ("xmm3", "st2", "fs_base", "k_gs_base", "r15", *({"ymm7h"} & registers.keys())):
        data = bytes(range(1, registers[name].size + 1))
        if name.endswith("base"):
            data = (0x7FFF12345678).to_bytes(8, "little")
        hello.registers(0).write(registers[name], data)
        assert hello.registers(0).read(registers[name]) == data


def test_memory_ends_where_nothing_is_mapped(hello: LabTarget) -> None:
    top = hello.machine.memory.end
    assert hello.read(0, 0x100000, 16) == hello.machine.memory.read(0x100000, 16)
    with pytest.raises(PykvmError):
        hello.read(0, 1 << 47, 1)
    with pytest.raises(PykvmError):
        hello.read(0, (1 << 64) - 4, 100)
    with pytest.raises(GdbError, match="beyond"):
        hello.write(0, (1 << 64) - 4, bytes(8))
    hello.physical = True
    assert len(hello.read(0, top - 5000, 9000)) == 5000
    hello.write(0, top - 4, b"abcd")
    assert hello.read(0, top - 4, 100) == b"abcd"
    hello.physical = False


def test_threads_say_what_they_do() -> None:
    with Machine("16M", cpus=2) as machine:
        machine.load("smp")
        target = target_of(machine)
        assert target.cpu_text(0) == "CPU#0 [runnable] 64-bit, ring 0"
        assert target.cpu_text(1) == "CPU#1 [uninitialized] real mode"


def test_a_machine_that_has_crashed() -> None:
    image = images.find("triplefault")
    with Machine("16M", irqchip=image.irqchip) as machine:  # type: ignore[arg-type]
        machine.load("triplefault")
        machine.run(timeout=10)
        target = target_of(machine)
        assert target.stop.crashed
        assert target.stop.signal == SIGSEGV
        assert "KVM_EXIT_SHUTDOWN" in target.monitor(0, "info recent") + target.monitor(0, "exits")
        target.monitor(0, "reset")
        assert not target.stop.crashed
        assert machine.status == "ready"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("help", "walk ADDR"),
        ("", "walk ADDR"),
        ("walk 0x100000", "PML4E[0]"),
        ("walk $rip", "PML4E[0]"),
        ("walk 0x800000000000", "not canonical"),
        ("walk", "monitor walk ADDR"),
        ("walk $nothing", "no register"),
        ("pages", "0x"),
        ("info memory", "RAM"),
        ("info exits", "no exit so far"),
        ("info recent", "no exit so far"),
        ("info recent x", "no number of exits"),
        ("info registers", "cr3="),
        ("info cpus", "* CPU#0"),
        ("info nothing", "no monitor command 'info nothing'"),
        ("physical maybe", "neither on nor off"),
        ("physical", "guest-virtual"),
        ("linear-pc off", "offset in CS"),
        ("linear-pc on", "linear address"),
        ("arch mips", "is none of"),
        ("arch i8086", "i8086"),
        ("arch auto", "auto"),
        ("restore there", "there is no snapshot 'there'; there are: none yet"),
        ("make coffee", "no monitor command 'make'"),
    ],
)
def test_monitor_commands(hello: LabTarget, line: str, said: str) -> None:
    assert said in hello.monitor(0, line)


def test_snapshots_by_name() -> None:
    with Machine("16M") as machine:
        machine.load("hello64")
        target = target_of(machine)
        assert "restore here" in target.monitor(0, "snapshot here")
        machine.memory.write(0x200000, b"changed")
        machine.vcpus[0].regs.rax = 99
        assert "restored" in target.monitor(0, "restore here")
        assert machine.memory.read(0x200000, 7) == bytes(7)
        assert machine.vcpus[0].regs.rax == 0
        for number in range(20):
            said = target.monitor(0, f"snapshot {number}")
        assert "at most" in said
