"""Which CPUID features lead a guest's kernel to what this host's KVM does not complete.

Where software decodes kernel code, KVM gives up on instructions that it does not know (see
`pykvm.machine.doctor.instructions`); a CPU model had better not announce them. Two more kinds
belong here: CR4 bits that KVM refuses although it announces the feature, and "fast string"
features, which make a kernel move bytes singly where every element costs a decoded instruction.
"""

from __future__ import annotations

import contextlib

from pykvm.arch.bits import CR4
from pykvm.arch.cpuid import features
from pykvm.arch.state import CpuState
from pykvm.kvm import Kvm
from pykvm.kvm.errors import KvmError
from pykvm.machine.doctor.probe import DONE, Probe
from pykvm.machine.doctor.trials import TRIALS, Trial

# Instructions that KVM's emulator never knew, and that every 64-bit CPU has: if the first of them
# completes, ring 0 runs natively and nothing else needs to be tried.
_SENTINELS = ("pxor", "fld", "int n")
# What 64-bit code cannot do without: not announcing it would help nobody.
_ALWAYS_THERE = frozenset({"", "fpu", "mmx", "sse", "sse2", "fxsr", "clflush"})
_DECODED_STRINGS = frozenset({"erms", "fsrm"})
# Their instructions are refused in ring 0 as SSE2's are, but kernels can do without these, and take
# them for ciphers and random numbers if they see them.
_VECTORS = frozenset({"sse3", "ssse3", "sse4_1", "sse4_2", "sse4a", "sha_ni", "gfni"})
_CR4_FEATURES = {
    "fsgsbase": CR4.FSGSBASE, "pcid": CR4.PCIDE, "smep": CR4.SMEP, "smap": CR4.SMAP,
    "umip": CR4.UMIP, "pku": CR4.PKE, "la57": CR4.LA57,
}  # fmt: skip

_known: list[frozenset[str]] = []


def host_refuses(kvm: Kvm) -> frozenset[str]:
    """Feature names that a CPU model should not announce on this host; found once a process.

    Takes about 2 ms where ring 0 runs natively, about 20 ms where it does not.
    """
    if not _known:
        _known.append(find(kvm))
    return _known[0]


def find(kvm: Kvm) -> frozenset[str]:
    """The same, tried anew."""
    with Probe(kvm) as probe:
        # Some hosts cannot hide features: what the vCPU really announces counts, too.
        announced = features([*kvm.supported_cpuid(), *probe.vcpu.get_cpuid()])
        refused = _refused_bits(probe, announced)
        trials = {trial.name: trial for trial in TRIALS}
        if all(_completes(probe, trials[name], 0) for name in _SENTINELS):
            return frozenset(refused)
        refused |= (_DECODED_STRINGS | _VECTORS) & announced
        enabled = sum(
            int(bit)
            for name, bit in (("xsave", CR4.OSXSAVE), ("fsgsbase", CR4.FSGSBASE), ("pku", CR4.PKE))
            if name in announced - refused
        )
        for trial in TRIALS:
            if trial.feature in _ALWAYS_THERE | refused or trial.feature not in announced:
                continue
            if not _completes(probe, trial, enabled):
                refused.add(trial.feature)
    return frozenset(refused)


def _refused_bits(probe: Probe, announced: frozenset[str]) -> set[str]:
    """Announced features whose CR4 bit KVM refuses in long mode."""
    probe.prepare("long", DONE)
    before = probe.vcpu.get_sregs()
    refused = set()
    for name, bit in _CR4_FEATURES.items():
        if name not in announced:
            continue
        with contextlib.suppress(KvmError):
            changed = probe.vcpu.get_sregs()
            changed.cr4 |= int(bit)
            probe.vcpu.set_sregs(changed)
            continue
        refused.add(name)
    probe.vcpu.set_sregs(before)
    return refused


def _completes(probe: Probe, trial: Trial, cr4: int) -> bool:
    """The instruction runs, or raises what a CPU raises for it."""

    def enable(state: CpuState) -> None:
        state.cr4 |= cr4

    try:
        probe.prepare("long", trial.code + DONE, change=enable)
    except KvmError:
        return False
    end = probe.go()
    return end.kind == "done" if trial.expect is None else end.vector == trial.expect
