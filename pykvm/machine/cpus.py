"""The CPU model of a machine: which CPUID each vCPU shows, and what its MSRs do.

Machines for small guests show what the host's KVM supports, as it is. A CPU model comes in when one
is asked for, on the pc board, and when a kernel is loaded: on hosts whose KVM gives up on
instructions it hides the features that would lead there.
"""

from __future__ import annotations

from contextlib import suppress

from pykvm.arch.cpumodel import CpuModel, CpuTable, forced, linux_parameters, resolve, topology_for
from pykvm.arch.cpumodel.msrpolicy import MsrPolicy, initial_msrs, policy_for
from pykvm.kvm import CpuidEntry, Kvm, Vcpu, Vm
from pykvm.kvm.errors import KvmError
from pykvm.kvm.vm_policy import MsrFilterRange
from pykvm.machine.doctor.refusals import host_refuses
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.kvm.exits import RdmsrExit, WrmsrExit

_MTRR_DEFAULT_TYPE, _MTRR_ON, _WRITE_BACK = 0x2FF, 1 << 11, 6
_REMEMBERED = 1024  # MSRs in the account of what was answered


class Cpus:
    """The CPUs of a machine: model, topology, MSR policy.

    `spec` as in `pykvm.arch.cpumodel` ("host,-avx2"), `topology` as "sockets=2,cores=2". Raises
    `CpuModelError`.
    """

    def __init__(self, kvm: Kvm, count: int, spec: str, topology: str, lapic: bool) -> None:
        self.topology = topology_for(count, topology)
        self.spec = spec
        supported = kvm.supported_cpuid()
        deadline = bool(kvm.check_extension("KVM_CAP_TSC_DEADLINE_TIMER"))
        self.refused = host_refuses(kvm)
        self.model: CpuModel = resolve(
            spec, supported, host_refuses=self.refused, tsc_deadline=deadline, lapic=lapic
        )
        self._supported = supported
        self.table: CpuTable | None = None
        self._vm: Vm | None = None
        self._settled = False
        self.policy: MsrPolicy = policy_for(self.model.features)
        self.accesses: dict[tuple[int, bool], int] = {}
        """MSR accesses that KVM did not answer, by (number, whether a write)."""

    @property
    def apic_ids(self) -> list[int]:
        """The APIC IDs, the boot CPU's first."""
        return self.topology.apic_ids()

    def apply(self, vcpu: Vcpu) -> None:
        """Gives a vCPU its CPUID. Before it has run: KVM lets nobody change it later."""
        if self.table is None:
            self.table = CpuTable(
                self.model, self._supported, self.topology, tsc_khz=_tsc_khz(vcpu)
            )
        vcpu.set_cpuid([CpuidEntry(*leaf) for leaf in self.table.leaves(vcpu.id)])
        self._settle_policy(vcpu)
        with suppress(KvmError):  # kernels before 6.8 do not take the bit
            vcpu.set_msrs(initial_msrs(self.model.features, self.table.vendor))

    def _settle_policy(self, vcpu: Vcpu) -> None:
        """What the host announces whatever the model says must be there, MSRs and all."""
        if self._settled or self._vm is None:
            return
        self._settled = True
        shown = forced(self.model, vcpu.get_cpuid())
        if shown:
            self.policy = policy_for(self.model.features | shown)
            self.set_policy(self._vm)

    def set_policy(self, vm: Vm) -> None:
        """MSR accesses that KVM has no answer for, or should not answer, come to user space."""
        self._vm = vm
        try:
            vm.enable_msr_exits(invalid=False)
            vm.set_msr_filter([MsrFilterRange.of(numbers) for numbers in self.policy.denied])
        except KvmError:  # an old kernel: KVM's own answers have to do
            return

    def read(self, exit_: RdmsrExit) -> None:
        """RDMSR of such an MSR."""
        self._count(exit_.index, False)
        value = self.policy.read(exit_.index)
        if value is None:
            exit_.error = True
        else:
            exit_.value = value

    def write(self, exit_: WrmsrExit) -> None:
        """WRMSR to such an MSR."""
        self._count(exit_.index, True)
        exit_.error = not self.policy.write(exit_.index, exit_.value)

    def _count(self, number: int, write: bool) -> None:
        key = (number, write)
        if key in self.accesses or len(self.accesses) < _REMEMBERED:
            self.accesses[key] = self.accesses.get(key, 0) + 1

    def linux_parameters(self, vcpu: Vcpu) -> str:
        """What keeps Linux from features that this host shows and does not complete, or ""."""
        return linux_parameters(forced(self.model, vcpu.get_cpuid()) & self.refused)

    @property
    def signature(self) -> tuple[int, int]:
        """EAX and EDX of CPUID leaf 1."""
        if self.table is not None:
            for leaf in self.table.leaves(0):
                if leaf.function == 1:
                    return leaf.eax, leaf.edx
        return 0, 0


def set_up_mtrrs(vcpu: Vcpu) -> None:
    """Memory is write-back unless said otherwise, as firmware leaves it (SDM vol. 3, 12.11)."""
    try:
        vcpu.set_msrs({_MTRR_DEFAULT_TYPE: _MTRR_ON | _WRITE_BACK})
    except KvmError:
        return  # without MTRRs memory is what the page tables say


def _tsc_khz(vcpu: Vcpu) -> int:
    try:
        return vcpu.get_tsc_khz()
    except KvmError:
        return 0
