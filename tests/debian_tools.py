"""Programs that tests check against: from the system, or installed from Debian's packages.

`need("iasl", package="acpica-tools")` gives the program's path. Where it is missing, root gets it
from apt-get; others are told the package, and the test fails: nothing is left out silently.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest

SBIN = ("/usr/sbin", "/sbin", "/usr/local/sbin")  # not on everyone's PATH


def find(program: str) -> str | None:
    """The program's path, None where it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN])
    return shutil.which(program, path=path)


def need(program: str, *, package: str) -> str:
    """The path of a program, installed from a Debian package if it has to be and can be."""
    found = find(program)
    if found is None:
        install(package, f"needs {program}, from the Debian package {package}")
        found = find(program)
    if found is None:
        pytest.fail(f"the package {package} brought no {program}", pytrace=False)
    return found


def need_file(path: str, *, package: str) -> str:
    """The same for a file of a package, such as a firmware image."""
    if not os.path.exists(path):
        install(package, f"needs {path}, from the Debian package {package}")
    if not os.path.exists(path):
        pytest.fail(f"the package {package} brought no {path}", pytrace=False)
    return path


def install(package: str, why: str) -> None:
    """`apt-get install`, one at a time for all test processes; fails the test where it cannot."""
    remedy = f"{why}; install it with: apt-get install {package}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.fail(remedy, pytrace=False)
    lock = pathlib.Path(tempfile.gettempdir()) / "pykvm-tests-apt.lock"
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        problem = _apt("install", "-y", "--no-install-recommends", package)
        if problem:  # package lists that are missing or too old
            _apt("update")
            problem = _apt("install", "-y", "--no-install-recommends", package)
    if problem:
        pytest.fail(f"{remedy}\n{problem}", pytrace=False)


def _apt(*arguments: str) -> str:
    """Runs apt-get; the end of what it said where it failed, else ""."""
    result = subprocess.run(
        ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=100", *arguments],
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    text = result.stdout.decode(errors="replace").strip()
    return "" if result.returncode == 0 else text[-2000:] or f"apt-get exited {result.returncode}"
