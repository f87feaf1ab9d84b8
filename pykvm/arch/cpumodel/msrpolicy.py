"""Which model-specific registers a guest may touch, following from the features that it is shown.

`policy_for(model.features)` says which MSRs KVM must not answer itself (`denied`, for
KVM_X86_SET_MSR_FILTER), and what to answer for those that arrive in user space because the filter
denied them or KVM does not know them: a value, nothing (a write is dropped), or #GP. x2APIC
registers (0x800 to 0x8ff) cannot be filtered; KVM raises #GP for them outside x2APIC mode.

Sources: SDM vol. 4; APM vol. 2 appendix A; Documentation/virt/kvm/x86/msr.rst.
"""

from __future__ import annotations

from collections.abc import Iterable

from pykvm.arch import msrs
from pykvm.arch.cpumodel.topology import CpuModelError
from pykvm.typed import NamedTuple

FILTER_SPAN = 0x600 * 8
"""MSRs that one range of KVM's filter covers at most; it takes 16 ranges."""


class MsrGroup(NamedTuple):
    """MSRs that are there if one of the features is. No feature: never there."""

    features: frozenset[str]
    numbers: frozenset[int]
    why: str


class Tolerated(NamedTuple):
    """An MSR that systems touch without asking whether it is there. Writes are dropped."""

    number: int
    value: int
    why: str


def _numbers(text: str) -> frozenset[int]:
    """`0x48 0x100-0x10f` as numbers."""
    found: set[int] = set()
    for word in text.split():
        first, _, last = word.partition("-")
        found.update(range(int(first, 16), int(last or first, 16) + 1))
    return frozenset(found)


def _group(features: str, numbers: str, why: str) -> MsrGroup:
    return MsrGroup(frozenset(features.split()), _numbers(numbers), why)


GROUPS: tuple[MsrGroup, ...] = (
    _group("vmx", "0x480-0x493", "VMX capabilities"),
    _group("svm", "0xc0010114 0xc0010117 0xc0010118 0xc001011b", "SVM"),
    _group("mtrr", "0xfe 0x200-0x21f 0x250 0x258-0x259 0x268-0x26f 0x2ff", "memory type ranges"),
    _group("pat", "0x277", "page attribute table"),
    _group("mca mce", "0x179-0x17b 0x280-0x29f 0x400-0x473", "machine checks"),
    _group("tsc_adjust", "0x3b", "TSC offset"),
    _group("tsc_deadline", "0x6e0", "APIC timer deadline"),
    _group("arch_capabilities", "0x10a", "immunities to speculation flaws"),
    _group("flush_l1d", "0x10b", "L1D flush"),
    _group(
        "spec_ctrl intel_stibp ssbd ibrs stibp amd_ssbd amd_psfd", "0x48", "speculation control"
    ),
    _group("spec_ctrl ibpb", "0x49", "prediction barrier"),
    _group("virt_ssbd", "0xc001011f", "speculation control for guests"),
    _group("rdtscp rdpid", "0xc0000103", "value of RDTSCP and RDPID"),
    _group("xsaves", "0xda0", "supervisor state components"),
    _group("xfd", "0x1c4-0x1c5", "extended feature disable"),
    _group("mpx", "0xd90", "bounds"),
    _group("shstk ibt", "0x6a0 0x6a2 0x6a4-0x6a8", "control-flow enforcement"),
    _group("pks", "0x6e1", "supervisor protection keys"),
    _group("uintr", "0x985-0x98a", "user interrupts"),
    _group("intel_pt", "0x560-0x561 0x570-0x572 0x580-0x587", "processor trace"),
    _group("fred", "0x1cc-0x1d4", "FRED"),
    _group("sgx_lc", "0x8c-0x8f", "SGX launch keys"),
    _group("vmx smx sgx", "0x3a", "feature control"),
    _group("waitpkg", "0xe1", "UMWAIT limits"),
    _group("kvmclock", "0x11-0x12", "kvmclock at its old place"),
    _group("kvmclock2", "0x4b564d00-0x4b564d01", "kvmclock"),
    _group("kvm_asyncpf", "0x4b564d02", "asynchronous page faults"),
    _group("kvm_asyncpf_int", "0x4b564d06-0x4b564d07", "asynchronous page faults by interrupt"),
    _group("kvm_steal_time", "0x4b564d03", "steal time"),
    _group("kvm_pv_eoi", "0x4b564d04", "paravirtual end of interrupt"),
    _group("kvm_poll_control", "0x4b564d05", "polling by the host"),
    _group("kvm_migration_control", "0x4b564d08", "migration control"),
    _group("aperfmperf", "0xe7-0xe8", "frequency feedback"),
    _group("eff_freq_ro", "0xc00000e7-0xc00000e8", "frequency feedback, read-only"),
    _group(
        "pdcm",
        "0xc1-0xc8 0x186-0x18d 0x309-0x30c 0x345 0x38d-0x392 0x3f1-0x3f2 0x4c1-0x4c8",
        "Intel's performance counters: leaf 0xA shows none",
    ),
    _group(
        "perfctr_core", "0xc0010200-0xc001020b 0xc0000300-0xc0000302", "AMD's performance counters"
    ),
    _group("", "0x9b 0x9e 0x1f2-0x1f3 0xc0010111 0xc0010112 0xc0010113", "system management mode"),
    _group("", "0x600", "debug store"),
)
"""What KVM might answer although the guest's CPUID does not announce it."""

_ZERO = """
0x17 platform ID: Linux's microcode loader
0x2a power-on configuration: bus frequency in old kernels
0x2c bus frequency of family 15: old kernels
0x34 SMI count: turbostat, hwlat
0xcd bus frequency: calibration on Atoms
0xce base ratio: TSC calibration, memtest86+
0xe2 package C-states: idle drivers
0x119 L2 cache control: serial number off
0x11e L2 cache control 3: old firmware
0x194 flexible ratio: memtest86+
0x198 current performance state: memtest86+
0x199 wanted performance state: cpufreq
0x19a duty cycle: thermal drivers
0x19c thermal status: memtest86+
0x1a2 throttling temperature: memtest86+
0x1ad turbo ratios: memtest86+
0x1b0 energy hint: Linux sets it on every Intel CPU
0x1b1 package thermal status: memtest86+
0x1fc power control: firmware
0xc0010020 microcode update trigger
0xc001001f northbridge configuration: MMCONFIG enabling
0xc0010055 interrupt pending message: C1E detection
0xc0010058 PCI configuration space of family 10h
0xc0010061 performance state limit: memtest86+
0xc0010062 performance state control
0xc0010063 performance state: memtest86+
0xc0010064 performance state definition: memtest86+
0xc0010140 number of workaround bits
0xc0010141 workaround bits
0xc0011020 load-store configuration: SSBD on old families
0xc0011021 instruction cache configuration: family 15h
0xc0011022 data cache configuration
0xc0011023 bus unit configuration: errata of families 10h and 17h
0xc0011029 decode configuration: LFENCE, errata of Zen
0xc001102a bus unit configuration 2: errata of family 10h
0xc001102c execution configuration: family 15h
0xc00110e3 errata of Zen 2
"""


def tolerated() -> dict[int, Tolerated]:
    """What Linux, SeaBIOS and memtest86+ touch on a CPU that they do not know; all read as 0."""
    found = {}
    for line in _ZERO.strip().splitlines():
        number, _, why = line.partition(" ")
        found[int(number, 16)] = Tolerated(int(number, 16), 0, why)
    return found


HWCR, TSC_FREQ_SEL = 0xC0010015, 1 << 24


def initial_msrs(features: Iterable[str], vendor: str) -> dict[int, int]:
    """MSRs that firmware, or the CPU itself, sets and KVM does not: number → value after reset.

    AMD's constant TSC counts with the P0 frequency, which HWCR has to say (PPR, HWCR.TscFreqSel);
    Linux calls anything else a firmware bug.
    """
    if "invtsc" in features and vendor in ("AuthenticAMD", "HygonGenuine"):
        return {HWCR: TSC_FREQ_SEL}
    return {}


class MsrPolicy:
    """What a guest's RDMSR and WRMSR do where KVM does not answer."""

    def __init__(self, hidden: dict[int, str], unknown: str = "fault") -> None:
        """`hidden`: MSR → why; `unknown`: `fault` or `ignore`. Raises `CpuModelError`."""
        if unknown not in ("fault", "ignore"):
            raise CpuModelError(f"unknown MSRs: fault or ignore, not {unknown!r}")
        self.hidden = hidden
        self.unknown = unknown
        self._tolerated = tolerated()

    @property
    def denied(self) -> list[list[int]]:
        """MSR numbers for KVM's filter, a list for each of its ranges."""
        ranges: list[list[int]] = []
        for number in sorted(self.hidden):
            if not ranges or number - ranges[-1][0] >= FILTER_SPAN:
                ranges.append([])
            ranges[-1].append(number)
        return ranges

    def read(self, number: int) -> int | None:
        """The value of an MSR that KVM did not answer; None: #GP."""
        known = self._tolerated.get(number)
        if known is not None:
            return known.value
        if number in self.hidden or self.unknown == "fault":
            return None
        return 0

    def write(self, number: int, value: int) -> bool:
        """A write that KVM did not take: True: dropped; False: #GP."""
        if number in self._tolerated:
            return True
        return number not in self.hidden and self.unknown == "ignore"

    def explain(self, number: int) -> str:
        """Why a guest gets what it gets, in one line."""
        name = msrs.name(number)
        if number in self._tolerated:
            return f"{name}: reads 0, writes are dropped ({self._tolerated[number].why})"
        if number in self.hidden:
            return f"{name}: #GP, the CPU model does not show it ({self.hidden[number]})"
        end = "#GP" if self.unknown == "fault" else "reads 0, writes are dropped"
        return f"{name}: {end}, KVM does not know it"


def policy_for(
    features: Iterable[str], unknown: str = "fault", *, hide: Iterable[int] = ()
) -> MsrPolicy:
    """The policy that goes with a CPU model. `hide`: more MSRs to hide, by number."""
    shown = frozenset(features)
    hidden = {n: group.why for group in GROUPS if not group.features & shown for n in group.numbers}
    hidden.update(dict.fromkeys(hide, "hidden on request"))
    return MsrPolicy(hidden, unknown)
