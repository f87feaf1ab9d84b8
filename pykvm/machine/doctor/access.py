"""/dev/kvm itself: is it there, may we open it, does a VM run? If not, why, and what helps."""

from __future__ import annotations

import errno
import os
import stat
import time

from pykvm.errors import PykvmError
from pykvm.kvm import Kvm
from pykvm.kvm.errors import KvmUnavailable
from pykvm.machine.doctor.result import Section

MODULES = ("kvm_intel", "kvm_amd", "kvm_pvm")


def open_device(path: str, section: Section) -> Kvm | None:
    """Opens the device; None, with findings that say why, if that is not possible."""
    try:
        kvm = Kvm(path)
    except KvmUnavailable as error:
        section.add(
            "access", "access", False, error.problem, remedy(path, error), error.errno, brief=True
        )
        _module(section)
        return None
    section.add("access", "access", True, f"{path} opens for reading and writing", brief=True)
    section.add("api_version", "API version", True, str(kvm.api_version), value=kvm.api_version)
    _module(section)
    return kvm


def remedy(path: str, error: KvmUnavailable) -> str:
    """What helps on this host, more exactly than the error itself can know."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return _permission(path) or error.remedy
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return _missing(path, _read("/proc/misc"), cpu_flags(), loaded_modules()) or error.remedy
    return error.remedy


def _missing(path: str, misc: str, flags: set[str], modules: list[str]) -> str:
    """Why there is no device: `misc` is /proc/misc, `flags` the CPU's, `modules` those loaded."""
    minor = next((f[0] for f in map(str.split, misc.splitlines()) if f[1:] == ["kvm"]), None)
    if minor is not None:
        if path != "/dev/kvm":
            return "use /dev/kvm: the kernel has the KVM driver"
        return (
            f"the kernel has the KVM driver, only the file is missing: mknod /dev/kvm c 10 {minor} "
            "(in a container: start it with --device /dev/kvm)"
        )
    if "vmx" in flags or "svm" in flags:
        module = "kvm_intel" if "vmx" in flags else "kvm_amd"
        if module in modules:
            return f"{module} is loaded but made no device; look at: dmesg | grep -i kvm"
        return (
            f"load the module: sudo modprobe {module} (if it refuses, virtualization is switched "
            "off in the firmware: dmesg | grep -i kvm)"
        )
    if "hypervisor" in flags:
        return (
            "this host is a virtual machine whose hypervisor hides VT-x and AMD-V: switch nested "
            "virtualization on there, or ask the provider for a machine that has it"
        )
    return "switch VT-x or AMD-V on in the firmware, then: sudo modprobe kvm_intel (or kvm_amd)"


def _permission(path: str) -> str:
    import grp
    import pwd

    try:
        info = os.stat(path)
        group = grp.getgrgid(info.st_gid)
        user = pwd.getpwuid(os.getuid()).pw_name
    except (OSError, KeyError):
        return ""
    if not info.st_mode & stat.S_IWGRP or info.st_gid == 0:
        return (
            f"give group kvm access (sudo chown root:kvm {path}; sudo chmod 660 {path}) and join it"
        )
    if info.st_gid in os.getgroups():
        return "the group may open it: a container or security module forbids it; allow the device"
    if user in group.gr_mem:
        return f"you are in group {group.gr_name} only from your next login on: log in again"
    return f"join its group: sudo usermod -aG {group.gr_name} {user}, then log in again"


def loaded_modules() -> list[str]:
    """The KVM modules that this kernel has, loaded or built in."""
    return [name for name in MODULES if os.path.isdir(f"/sys/module/{name}")]


def cpu_flags() -> set[str]:
    """The CPU's flags in /proc/cpuinfo."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _module(section: Section) -> None:
    flags = cpu_flags()
    modules = loaded_modules()
    hardware = "VT-x" if "vmx" in flags else "AMD-V" if "svm" in flags else ""
    value = {"modules": modules, "hardware": hardware, "guest": "hypervisor" in flags}
    if not modules:
        text = f"none of {', '.join(MODULES)} is loaded"
        text += (
            f"; the CPU has {hardware}" if hardware else "; the CPU shows neither VT-x nor AMD-V"
        )
        section.add("module", "kernel module", None, text, value=value)
        return
    parts = [", ".join(modules)]
    if hardware:
        parts.append(f"the CPU has {hardware}")
    else:
        parts.append("no VT-x or AMD-V in the CPU's flags: a software implementation")
    if "hypervisor" in flags:
        parts.append("this host is itself a virtual machine")
    for module in modules:
        nested = _read(f"/sys/module/{module}/parameters/nested").strip()
        if nested:
            on = nested in ("Y", "1")
            parts.append(f"nested virtualization for guests is {'on' if on else 'off'}")
    section.add("module", "kernel module", None, "; ".join(parts), value=value)


def first_vm(kvm: Kvm, section: Section) -> bool:
    """Makes a VM with a vCPU and runs one HLT in real mode: whether pykvm can work at all."""
    from pykvm.machine.doctor.probe import Probe

    started = time.perf_counter()
    try:
        with Probe(kvm) as probe:
            created = time.perf_counter() - started
            probe.prepare("real", b"\xf4")
            end = probe.go()
    except PykvmError as error:
        section.add("vm", "first VM", False, str(error), "look at: dmesg | grep -i kvm", brief=True)
        return False
    if end.kind != "halt":
        section.add("vm", "first VM", False, f"a lone HLT ended as: {end.text}", brief=True)
        return False
    section.add(
        "vm", "first VM", True,
        f"a VM with a vCPU is made in {created * 1000:.1f} ms and runs",
        value={"create_ms": round(created * 1000, 3)},
    )  # fmt: skip
    return True
