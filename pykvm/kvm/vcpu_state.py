"""`VcpuState`: all state of a vCPU that is not its general registers and not running it."""

from __future__ import annotations

from pykvm.kvm.vcpu_debug import VcpuDebug
from pykvm.kvm.vcpu_events import VcpuEventsPart
from pykvm.kvm.vcpu_fpu import VcpuFpu
from pykvm.kvm.vcpu_lapic import VcpuLapic
from pykvm.kvm.vcpu_misc import VcpuMisc
from pykvm.kvm.vcpu_msrs import VcpuMsrs
from pykvm.kvm.vcpu_regs import VcpuRegs


class VcpuState(VcpuRegs, VcpuFpu, VcpuMsrs, VcpuLapic, VcpuEventsPart, VcpuDebug, VcpuMisc):
    """The base of `Vcpu`. `get_*` and `set_*` copy between the kernel and plain values.

    Getters see what was written to `vcpu.regs` and `vcpu.sregs` before; setters are seen there.
    """

    def _before_close(self) -> None:
        self._close_stats()
