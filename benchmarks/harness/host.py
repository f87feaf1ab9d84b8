"""Facts about the machine that a number means nothing without."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path

from . import qemu
from .toolchain import ROOT


def _first_line(*command: str, silent: str = "unknown") -> str:
    """First line of what a command prints; `silent` where it prints nothing."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=20
        )
    except OSError:
        return "unknown"
    return done.stdout.splitlines()[0] if done.stdout.strip() else silent


def cpu_facts(cpuinfo: str) -> dict[str, str]:
    """Model, and how it virtualises, from the text of /proc/cpuinfo."""
    facts: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = facts.get("flags", "").split()
    kinds = [flag for flag in ("vmx", "svm") if flag in flags]
    return {
        "cpu": facts.get("model name", "unknown"),
        "virtualisation": ", ".join(kinds) or "neither vmx nor svm in the CPU flags",
        "in_a_vm": "yes" if "hypervisor" in flags else "no",
    }


def kvm_module() -> str:
    """The module behind /dev/kvm.

    Kvm_intel, kvm_amd, or another; "unknown" where sysfs does not say.
    """
    names = sorted(path.name for path in Path("/sys/module").glob("kvm_*"))
    return ", ".join(names) or "unknown"


def pykvm_version() -> str:
    """pykvm's version, the commit it was measured at, and whether the tree was changed since."""
    from importlib import metadata

    try:
        number = metadata.version("pykvm-vmm")
    except metadata.PackageNotFoundError:
        number = "not installed"
    commit = _first_line("git", "rev-parse", "--short=12", "HEAD")
    changed = _first_line("git", "status", "--porcelain", "--untracked-files=no", silent="")
    return f"{number} ({commit}{', with changes' if changed else ''})"


def facts() -> dict[str, str]:
    """All facts, in the order they are printed."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        **cpu_facts(cpuinfo),
        "cpus": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()}",
        "kvm_module": kvm_module(),
        "load": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "pykvm": pykvm_version(),
        "python": platform.python_version(),
        "compiler": _first_line("gcc", "--version"),
        "qemu": qemu.version(),
    }
