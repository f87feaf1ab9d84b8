"""Which kind of processor support this host's KVM stands on: it decides why a guest is left."""

from __future__ import annotations

import pathlib
from functools import cache

VMX, SVM, SOFTWARE, UNKNOWN = "vmx", "svm", "software", ""

SOFTWARE_NOTE = (
    "This host has neither VMX nor SVM: its KVM (module kvm_pvm) runs ring 0, real mode and 32-bit "
    "code in KVM's instruction emulator. There the emulator came to the instruction, and no "
    "intercept of a CPU was involved. What user space sees is the same."
)


@cache
def host_kind() -> str:
    """`"vmx"`, `"svm"`, `"software"` (KVM without either), or `""` where that cannot be told."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return UNKNOWN
    for line in text.splitlines():
        if line.startswith("flags"):
            flags = line.split(":", 1)[1].split()
            if "vmx" in flags:
                return VMX
            if "svm" in flags:
                return SVM
            break
    else:
        return UNKNOWN
    return SOFTWARE if pathlib.Path("/dev/kvm").exists() else UNKNOWN
