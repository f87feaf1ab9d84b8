"""CPU models: what a guest's CPUID says, and which MSRs it may touch.

`resolve("portable,+avx2", supported)` works out the features, `CpuTable(model, supported,
topology, tsc_khz=…).leaves(apic_id)` the entries of each CPU; `cpu_leaves` does both.
"""

from __future__ import annotations

from pykvm.arch.cpumodel.caches import Leaf
from pykvm.arch.cpumodel.leaves import CpuTable, cpu_leaves
from pykvm.arch.cpumodel.models import MODELS, Model
from pykvm.arch.cpumodel.readback import forced, linux_parameters
from pykvm.arch.cpumodel.spec import CpuModel, CpuSpec, parse, resolve
from pykvm.arch.cpumodel.topology import CpuModelError, Topology, topology_for

__all__ = [
    "MODELS",
    "CpuModel",
    "CpuModelError",
    "CpuSpec",
    "CpuTable",
    "Leaf",
    "Model",
    "Topology",
    "cpu_leaves",
    "forced",
    "linux_parameters",
    "parse",
    "resolve",
    "topology_for",
]
