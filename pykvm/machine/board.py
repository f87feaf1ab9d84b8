"""Putting the parts of a machine together: VM, RAM, vCPUs and the standard devices."""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.debugcon import DebugCon
from pykvm.devices.debugexit import DebugExit
from pykvm.devices.postcode import PostCode
from pykvm.devices.uart16550 import Uart16550
from pykvm.kvm import Kvm, Vcpu, Vm
from pykvm.kvm.cpuid import read_cpuid_table
from pykvm.machine.irq import GsiLine, UnconnectedLine
from pykvm.machine.result import StopReason
from pykvm.memory import GuestMemory
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine

COM1, COM1_IRQ = 0x3F8, 4
DEBUG_EXIT, DEBUGCON, POST_CODE = 0xF4, 0xE9, 0x80
RAM_HOLE = 0xC000_0000  # RAM stops here and goes on at 4 GiB: devices live in between
HIGH_RAM = 1 << 32
TSS_ADDRESS = 0xFFFB_D000  # three pages that VMX hosts without unrestricted guest need
IDENTITY_MAP = 0xFFFB_C000
CAPTURE_LIMIT = 1 << 20


def add_irqchip(vm: Vm, irqchip: str) -> None:
    """The interrupt controllers. After the memory: adding a slot then waits for KVM's readers."""
    vm.set_identity_map_addr(IDENTITY_MAP)
    vm.set_tss_addr(TSS_ADDRESS)
    if irqchip == "kernel":
        vm.create_irqchip()
        vm.create_pit2(speaker=True)
    elif irqchip == "split":
        vm.create_split_irqchip()


def add_ram(vm: Vm, size: int, huge_pages: str | None) -> GuestMemory:
    """RAM from 0, with the hole below 4 GiB where devices are."""
    regions = [vm.add_memory(0, min(size, RAM_HOLE), huge_pages=huge_pages)]
    if size > RAM_HOLE:
        regions.append(vm.add_memory(HIGH_RAM, size - RAM_HOLE, huge_pages=huge_pages))
    return GuestMemory(regions)


def make_vcpus(vm: Vm, count: int, kvm: Kvm) -> list[Vcpu]:
    """vCPUs with the CPUID that the host supports; the APIC ID is the index."""
    table = read_cpuid_table(kvm, "KVM_GET_SUPPORTED_CPUID")
    vcpus = []
    for index in range(count):
        vcpu = vm.create_vcpu(index)
        for entry in table.entries[0 : table.nent]:
            if entry.function == 1:
                entry.ebx = entry.ebx & 0x00FF_FFFF | index << 24
                entry.ecx |= 1 << 31  # a hypervisor is present
            elif entry.function in (0xB, 0x1F):
                entry.edx = index
        vcpu.set_cpuid(table)
        vcpus.append(vcpu)
    return vcpus


class Captured:
    """What a guest wrote, the last MiB of it, with the count of all of it."""

    def __init__(self, limit: int = CAPTURE_LIMIT) -> None:
        self._data = bytearray()
        self._limit = limit
        self.total = 0

    def write(self, data: bytes) -> None:
        """Appends; the oldest bytes go when there are too many."""
        self._data += data
        self.total += len(data)
        if len(self._data) > 2 * self._limit:
            del self._data[: -self._limit]

    def since(self, mark: int) -> bytes:
        """The bytes after the first `mark` ever written, as far as they are kept."""
        fresh = min(self.total - mark, len(self._data), self._limit)
        return bytes(self._data[len(self._data) - fresh :]) if fresh else b""


class _Tee:
    """A back end whose output is captured on the way."""

    def __init__(self, captured: Captured, backend: Any) -> None:
        self._captured = captured.write
        self._forward = backend.write
        self._backend = backend

    def write(self, data: bytes) -> None:
        self._captured(data)
        self._forward(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


class Standard:
    """COM1, debug-exit, debugcon and the POST port of a machine."""

    def __init__(self, machine: Machine, serial: Any, debugcon: Any) -> None:
        self.captured = Captured()
        self.debugcon_captured = Captured()
        self.backend: Any = None
        output: Callable[[bytes], object] = self.captured.write
        if callable(serial):
            output = _both(output, serial)
        elif serial is not None:
            self.backend = serial
        self.uart = Uart16550(line(machine, COM1_IRQ), output, name="COM1")
        if self.backend is not None:
            self.uart.connect(_Tee(self.captured, self.backend))  # type: ignore[arg-type]
        shown: Callable[[bytes], object] = self.debugcon_captured.write
        if debugcon is not None:
            shown = _both(shown, debugcon if callable(debugcon) else debugcon.write)
        self.debugcon = DebugCon(shown)
        self.post = PostCode()
        self.debug_exit = DebugExit(
            lambda value: machine.request_stop(StopReason.DEBUG_EXIT, value)
        )


def _both(first: Callable[[bytes], object], second: Callable[[bytes], object]) -> Any:
    def write(data: bytes) -> None:
        first(data)
        second(data)

    return write


def line(machine: Machine, gsi: int) -> GsiLine | UnconnectedLine:
    """GSI `gsi` of the machine's interrupt controller, or a line that leads nowhere."""
    if machine.irqchip == "kernel":
        return GsiLine(machine.vm, gsi)
    return UnconnectedLine(gsi)


def add_standard_devices(machine: Machine, serial: Any, debugcon: Any) -> Standard:
    """What a kernel expects to find, and what test kernels end with."""
    standard = Standard(machine, serial, debugcon)
    machine.add_device(standard.uart, pio=COM1, length=8)
    machine.add_device(standard.debug_exit, pio=DEBUG_EXIT, length=4)
    machine.add_device(standard.debugcon, pio=DEBUGCON)
    machine.add_device(standard.post, pio=POST_CODE)
    return standard
