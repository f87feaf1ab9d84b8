"""pykvm's side of the benchmarks: does one piece of work, prints one JSON line. Times exclude the
start of Python.

worker.py exits native|device|handler|typed KIND IMAGE
worker.py enter COUNT
worker.py create driver|machine COUNT
worker.py step COUNT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.images import MMIO, MODES, PORT
from pykvm.arch import presets
from pykvm.kvm import Kvm, Vcpu, Vm
from pykvm.kvm.exits import DebugExit, HltExit, IoExit, MmioExit
from pykvm.memory import GuestMemory

if TYPE_CHECKING:
    from pykvm import Machine
    from pykvm.machine.hooks import Access

LOAD = 0x1000
MEMORY = 1 << 20
DEBUG_EXIT = 0xF4
FIRST_EXIT = b"\xe6\x10\xf4"  # out 0x10, al; hlt: what benchmarks/peers/create.c runs
STEPS = b"\x90" * 62 + b"\xeb\xc0"  # nops and a jump back: what benchmarks/peers/single_step.c runs


class Ended(Exception):
    """The guest stopped in a way it should not have."""


def prepare(vm: Vm, code: bytes, mode: str) -> Vcpu:
    """1 MiB of memory with `code` in it, and a vCPU that enters it in that mode."""
    memory = GuestMemory([vm.add_memory(0, MEMORY)])
    memory.write(LOAD, code)
    vcpu = vm.create_vcpu(0)
    state = presets.real_mode(LOAD) if mode == "real" else presets.protected32(LOAD, tables=0x8000)
    state.apply(vcpu, memory)
    return vcpu


def _check_end(exit_: object) -> None:
    if isinstance(exit_, HltExit) or (isinstance(exit_, IoExit) and exit_.port == DEBUG_EXIT):
        return
    raise Ended(f"the guest ended with {exit_}")


def native(kind: str, image: bytes) -> dict[str, int]:
    """Exits that a native rule finishes in C."""
    with Kvm() as kvm, kvm.create_vm() as vm:
        vcpu = prepare(vm, image, MODES[kind])
        if kind.startswith("pio"):
            rule = vm.rules.pio(PORT, write="drop", read=0x42)
        else:
            rule = vm.rules.mmio(MMIO, 4, write="drop", read=0x42424242)
        start = perf_counter_ns()
        exit_ = vcpu.run()
        ns = perf_counter_ns() - start
        _check_end(exit_)
        return {"exits": rule.count, "ns": ns}


def typed(kind: str, image: bytes) -> dict[str, int]:
    """Exits as typed objects from `vcpu.run()`, in a loop that the user writes."""
    exits = total = 0
    with Kvm() as kvm, kvm.create_vm() as vm:
        vcpu = prepare(vm, image, MODES[kind])
        start = perf_counter_ns()
        while True:
            exit_ = vcpu.run()
            if isinstance(exit_, IoExit):
                if exit_.port == DEBUG_EXIT:
                    break
            elif not isinstance(exit_, MmioExit):
                break
            if exit_.is_write:
                total += exit_.value
            else:
                exit_.value = 0x42
            exits += 1
        ns = perf_counter_ns() - start
        _check_end(exit_)
    return {"exits": exits, "ns": ns}


def _machine(kind: str, image_path: str) -> Machine:
    from pykvm import Machine

    machine = Machine(memory="1M", irqchip="none", serial=None)
    machine.load(image_path, load=LOAD, entry=LOAD, mode=MODES[kind], format="flat")
    return machine


def _timed_run(machine: Machine) -> int:
    start = perf_counter_ns()
    result = machine.run()
    ns = perf_counter_ns() - start
    if result.reason not in ("debug-exit", "halted"):
        raise Ended(f"the machine ended with {result.reason}: {result.report}")
    return ns


def device(kind: str, image_path: str) -> dict[str, int]:
    """Exits that `Machine` dispatches to a device model."""
    from pykvm.devices.base import Device

    class Counter(Device):
        name = "counter"
        access_sizes = (1, 2, 4)
        max_access = 4
        exits = 0
        total = 0

        def read(self, offset: int, size: int) -> int:
            self.exits += 1
            return 0x42

        def write(self, offset: int, size: int, value: int) -> None:
            self.exits += 1
            self.total += value

    with _machine(kind, image_path) as machine:
        counter = Counter()
        where = {"pio": PORT} if kind.startswith("pio") else {"mmio": MMIO}
        machine.add_device(counter, **where, length=4)
        return {"ns": _timed_run(machine), "exits": counter.exits}


def handler(kind: str, image_path: str) -> dict[str, int]:
    """Exits that `Machine` hands to an `@on_pio` or `@on_mmio` function."""
    exits = total = 0
    with _machine(kind, image_path) as machine:
        where = machine.on_pio(PORT) if kind.startswith("pio") else machine.on_mmio(MMIO, 4)

        @where
        def handle(access: Access) -> None:
            nonlocal exits, total
            exits += 1
            if access.is_write:
                total += access.value
            else:
                access.value = 0x42

        ns = _timed_run(machine)
    return {"ns": ns, "exits": exits}


def exits(side: str, kind: str, image: str) -> dict[str, int]:
    """One of the four ways an exit can be handled."""
    if side in ("native", "typed"):
        code = Path(image).read_bytes()
        return native(kind, code) if side == "native" else typed(kind, code)
    return {"device": device, "handler": handler}[side](kind, image)


def enter(count: str) -> dict[str, int]:
    """Entries with immediate_exit, by the C loop."""
    from pykvm._native import lib

    with Kvm() as kvm, kvm.create_vm() as vm:
        vcpu = prepare(vm, b"\xf4", "protected")
        vcpu.flush()
        start = perf_counter_ns()
        result = lib.pykvm_enter_many(vcpu._native, int(count))
        ns = perf_counter_ns() - start
        if result < 0:
            raise Ended(f"KVM_RUN with immediate_exit gave {result}")
    return {"exits": int(count), "ns": ns}


def step(count: str) -> dict[str, int]:
    """Single steps, the program counter read from each debug exit."""
    total, steps = 0, int(count)
    with Kvm() as kvm, kvm.create_vm() as vm:
        vcpu = prepare(vm, STEPS, "protected")
        vcpu.set_guest_debug(singlestep=True)
        start = perf_counter_ns()
        for _ in range(steps):
            exit_ = vcpu.run()
            if not isinstance(exit_, DebugExit):
                raise Ended(f"a step ended with {exit_}")
            total += exit_.pc
        ns = perf_counter_ns() - start
    return {"exits": steps, "ns": ns}


def _create_driver() -> tuple[int, int]:
    """The same steps as the C peer: real mode is what a vCPU starts in, only CS has to move."""
    start = perf_counter_ns()
    kvm = Kvm()
    vm = kvm.create_vm()
    region = vm.add_memory(0, MEMORY)
    region.write(LOAD, FIRST_EXIT)
    vcpu = vm.create_vcpu(0)
    vcpu.sregs.cs.base = 0
    vcpu.sregs.cs.selector = 0
    vcpu.regs.rip = LOAD
    exit_ = vcpu.run()
    up = perf_counter_ns()
    if not isinstance(exit_, IoExit):
        raise Ended(f"the first exit is {exit_}")
    del exit_
    begin = perf_counter_ns()
    vcpu.close()
    vm.close()
    kvm.close()
    return up - start, perf_counter_ns() - begin


def _create_machine() -> tuple[int, int]:
    from pykvm import Machine

    reached = []
    start = perf_counter_ns()
    machine = Machine(memory="1M", serial=None)
    machine.load(FIRST_EXIT, load=LOAD, entry=LOAD, mode="real", format="flat")

    @machine.on_pio(0x10)
    def first(access: Access) -> None:
        reached.append(perf_counter_ns())

    result = machine.run()
    if not reached:
        raise Ended(f"the machine ended with {result.reason}: {result.report}")
    begin = perf_counter_ns()
    machine.close()
    return reached[0] - start, perf_counter_ns() - begin


def create(side: str, count: str) -> dict[str, float]:
    """From nothing to the first exit, and back; medians."""
    from statistics import median

    once = {"driver": _create_driver, "machine": _create_machine}[side]
    times = [once() for _ in range(int(count))]
    return {"up_ns": median(up for up, _ in times), "down_ns": median(down for _, down in times)}


def main(arguments: list[str]) -> None:
    """Does what the arguments say, prints the JSON line."""
    work: dict[str, Callable[..., object]] = {
        "exits": exits,
        "enter": enter,
        "step": step,
        "create": create,
    }
    if not arguments or arguments[0] not in work:
        raise SystemExit(__doc__)
    print(json.dumps(work[arguments[0]](*arguments[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
