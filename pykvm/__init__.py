"""pykvm: a hypervisor that you can read, script, single-step and fuzz.

`from pykvm import Machine` is the whole machine; `from pykvm.kvm import Kvm` is the driver alone.
"""

from __future__ import annotations

from pykvm.errors import PykvmError as PykvmError
from pykvm.errors import register_explainer
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine import Machine as Machine
    from pykvm.machine import RunResult as RunResult
    from pykvm.machine import Status as Status
    from pykvm.machine import StopReason as StopReason

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The machine is loaded when it is asked for: `pykvm.kvm` alone starts without it.
    if name in ("Machine", "RunResult", "Status", "StopReason"):
        import pykvm.machine

        return getattr(pykvm.machine, name)
    raise AttributeError(f"module 'pykvm' has no attribute {name!r}")


def _explain_sregs(vcpu: Any) -> str:
    from pykvm.arch.checker import explain_vcpu

    return explain_vcpu(vcpu)


register_explainer("KVM_SET_SREGS", _explain_sregs)
