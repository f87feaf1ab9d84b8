"""The driver: /dev/kvm, one to one (`Kvm`, `Vm`, `Vcpu`, `KvmDevice`).

The kernel's four kinds of file descriptor are four types, each a context manager:

    from pykvm.kvm import Kvm
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.add_memory(0, 1 << 20).write(0x1000, b"\\xf4")
        vcpu = vm.create_vcpu(0)
        vcpu.sregs.cs.base = vcpu.sregs.cs.selector = 0
        vcpu.regs.rip = 0x1000
        print(vcpu.run())

Method names are the ioctls' in snake_case. What pykvm has no method for can be called with
`object.ioctl(name, structure)`. Source: the KVM API document (Documentation/virt/kvm/api.rst).
"""

from __future__ import annotations

from importlib import import_module

from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm.cpuid import CpuidEntry
    from pykvm.kvm.device import KvmDevice
    from pykvm.kvm.errors import (
        ClosedError,
        InvalidArgument,
        KvmError,
        KvmUnavailable,
        Unsupported,
    )
    from pykvm.kvm.exits import DebugExit as DebugExit
    from pykvm.kvm.exits import Exit as Exit
    from pykvm.kvm.exits import FailEntryExit as FailEntryExit
    from pykvm.kvm.exits import HltExit as HltExit
    from pykvm.kvm.exits import InternalErrorExit as InternalErrorExit
    from pykvm.kvm.exits import IntrExit as IntrExit
    from pykvm.kvm.exits import IoExit as IoExit
    from pykvm.kvm.exits import MmioExit as MmioExit
    from pykvm.kvm.exits import RdmsrExit as RdmsrExit
    from pykvm.kvm.exits import ShutdownExit as ShutdownExit
    from pykvm.kvm.exits import WrmsrExit as WrmsrExit
    from pykvm.kvm.irqchip import IrqchipRoute, MsiRoute
    from pykvm.kvm.msrs import MsrError
    from pykvm.kvm.region import MemoryRegion
    from pykvm.kvm.system import Kvm
    from pykvm.kvm.vcpu import Vcpu
    from pykvm.kvm.vcpu_debug import HardwareBreakpoint
    from pykvm.kvm.vcpu_lapic import MpState
    from pykvm.kvm.vm import Vm
    from pykvm.kvm.vm_policy import MsrFilterRange

_HOME = {
    "ClosedError": "errors",
    "CpuidEntry": "cpuid",
    "HardwareBreakpoint": "vcpu_debug",
    "InvalidArgument": "errors",
    "IrqchipRoute": "irqchip",
    "Kvm": "system",
    "KvmDevice": "device",
    "KvmError": "errors",
    "KvmUnavailable": "errors",
    "MemoryRegion": "region",
    "MpState": "vcpu_lapic",
    "MsiRoute": "irqchip",
    "MsrError": "msrs",
    "MsrFilterRange": "vm_policy",
    "Unsupported": "errors",
    "Vcpu": "vcpu",
    "Vm": "vm",
}

__all__ = [
    "ClosedError",
    "CpuidEntry",
    "HardwareBreakpoint",
    "InvalidArgument",
    "IrqchipRoute",
    "Kvm",
    "KvmDevice",
    "KvmError",
    "KvmUnavailable",
    "MemoryRegion",
    "MpState",
    "MsiRoute",
    "MsrError",
    "MsrFilterRange",
    "Unsupported",
    "Vcpu",
    "Vm",
]


def __getattr__(name: str) -> Any:
    # Loaded when asked for: whoever needs only an error class or memory does not wait for the rest.
    if name in _HOME:
        value = getattr(import_module(f"pykvm.kvm.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name.endswith("Exit"):  # the typed exits: `from pykvm.kvm import IoExit`
        exits = import_module("pykvm.kvm.exits")
        if name in exits.__all__:
            return getattr(exits, name)
    raise AttributeError(f"module 'pykvm.kvm' has no attribute {name!r}")
