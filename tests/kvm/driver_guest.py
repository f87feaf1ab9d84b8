"""Tiny real-mode guests for the driver's tests, written as bytes."""

from __future__ import annotations

import gc
import os
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pykvm.kvm import Kvm, Vcpu, Vm
from pykvm.kvm.exits import Exit, IoExit

ENTRY = 0x1000
HANDLER = 0x2000
STI, CLI, HLT, IRET, NOP = b"\xfb", b"\xfa", b"\xf4", b"\xcf", b"\x90"


def out(port: int, value: int) -> bytes:
    """mov al, value; out port, al"""
    return bytes([0xB0, value, 0xE6, port])


def store(offset: int, value: int) -> bytes:
    """mov byte ptr [offset], value (in DS)"""
    return b"\xc6\x06" + offset.to_bytes(2, "little") + bytes([value])


def set_ds(segment: int) -> bytes:
    """mov ax, segment; mov ds, ax"""
    return b"\xb8" + segment.to_bytes(2, "little") + b"\x8e\xd8"


def pic_init(vector_base: int, mask: int) -> bytes:
    """Programs the master 8259A: ICW1 to ICW4 and the interrupt mask."""
    words = [(0x20, 0x11), (0x21, vector_base), (0x21, 4), (0x21, 1), (0x21, mask)]
    return b"".join(out(port, value) for port, value in words)


def start(vcpu: Vcpu, entry: int = ENTRY) -> Vcpu:
    """Points the vCPU at a flat real-mode address."""
    vcpu.sregs.cs.base = 0
    vcpu.sregs.cs.selector = 0
    vcpu.regs.rip = entry
    vcpu.regs.rsp = 0x8000
    return vcpu


@contextmanager
def guest(
    code: bytes, *, prepare: Callable[[Vm], object] = lambda vm: None, **memory: bool
) -> Iterator[tuple[Vm, Vcpu]]:
    """A VM of 1 MiB whose one vCPU is about to run `code`; `prepare(vm)` comes before the vCPU."""
    with Kvm() as kvm, kvm.create_vm() as vm:
        prepare(vm)
        region = vm.add_memory(0, 1 << 20, **memory)  # type: ignore[arg-type]
        region.write(ENTRY, code)
        yield vm, start(vm.create_vcpu(0))


def set_vector(vm: Vm, vector: int, code: bytes, at: int = HANDLER) -> None:
    """Puts an interrupt handler into guest memory and the real-mode vector table."""
    region = vm.regions[0]
    region.write(vector * 4, at.to_bytes(4, "little"))
    region.write(at, code)


def expect_out(vcpu: Vcpu, port: int, value: int | None = None) -> Exit:
    """Runs to the next exit, which must be a write to `port`."""
    exit_ = vcpu.run()
    assert isinstance(exit_, IoExit), str(exit_)
    assert (exit_.port, exit_.is_write) == (port, True), str(exit_)
    assert value is None or exit_.value == value, str(exit_)
    return exit_


def open_files() -> dict[str, str]:
    """The open descriptors of this process and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
    return found


def kvm_mappings() -> list[str]:
    """Mappings of vCPUs and guest memory in this process."""
    lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if "kvm-vcpu" in line or "pykvm-ram" in line]


def held() -> tuple[dict[str, str], list[str]]:
    """What this process holds once garbage is collected: descriptors and mappings."""
    gc.collect()
    return open_files(), kvm_mappings()
