"""QEMU as a peer: where it is, how it gets onto the machine, and the leanest command line that
boots the same guest.
"""

from __future__ import annotations

import os
import shutil
import subprocess

from .model import BenchError

PROGRAM = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"

CPU = "qemu64,-cx16,-xsave,-popcnt"
"""Also starts on hosts whose KVM refuses MSRs of `-cpu host`.

What is masked the guest does not use.
"""

MEBIBYTES = 64
"""Guest RAM in MiB, the same for every VMM in the comparison."""


def missing() -> str:
    """Empty where QEMU is installed, otherwise one sentence with the remedy."""
    if shutil.which(PROGRAM):
        return ""
    return f"{PROGRAM} is not installed, so nothing is compared with it: apt-get install {PACKAGE}"


def install() -> str:
    """Installs QEMU from Debian's packages if it is missing and this is root.

    What is missing still, or empty.
    """
    apt = shutil.which("apt-get")
    if missing() and apt and os.geteuid() == 0:
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", PACKAGE]):
            subprocess.run([apt, "-qq", *command], env=env, stdout=2, check=False)
    return missing()


def version() -> str:
    """First line of `qemu --version`, or "not installed"."""
    if missing():
        return "not installed"
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.stdout else "unknown"


def command(machine: str, kernel: str, *, memfd: bool) -> list[str]:
    """QEMU with nothing but a serial port on stdout and the debug-exit port, booting `kernel`.

    `memfd` backs guest RAM with a memfd, as pykvm does, so that the kernel accounts it apart from
    QEMU's own memory. Raises BenchError where QEMU is missing.
    """
    if missing():
        raise BenchError(missing())
    ram: list[str] = []
    if memfd:
        ram = ["-object", f"memory-backend-memfd,id=ram,size={MEBIBYTES}M"]
        machine += ",memory-backend=ram"
    devices = ["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-serial", "stdio"]
    bare = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    where = ["-M", machine, "-accel", "kvm", "-cpu", CPU, "-m", str(MEBIBYTES)]
    return [PROGRAM, *where, *ram, *bare, *devices, "-kernel", kernel]
