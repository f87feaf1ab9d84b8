"""Debian's own kernel, as it came, on this machine's /dev/kvm, whatever it is: to its init, however
long that takes; and what QEMU makes of the same kernel on the same host."""

from __future__ import annotations

import pathlib
import shutil
import subprocess

import pytest
from linux_guest import CONSOLE, FRUGAL, Boot, files, initrd, section

pytestmark = [pytest.mark.boot, pytest.mark.slow]

SECONDS = 3600
QEMU_SECONDS = 300
APPEND = f"nokaslr nomodule cryptomgr.notests random.trust_cpu=on {FRUGAL}"


def qemu_says(folder: pathlib.Path) -> str:
    """The end of QEMU's boot of the same files, in one line."""
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        return "QEMU is not installed (apt-get install qemu-system-x86)"
    (folder / "initrd").write_bytes(initrd(32, "echo script ran\n"))
    command = [program, "-accel", "kvm", "-M", "q35", "-cpu", "qemu64,-cx16,-xsave,-popcnt"]
    command += ["-m", "128", "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
    command += ["-kernel", str(files()["stock"]), "-initrd", str(folder / "initrd")]
    command += ["-append", f"{CONSOLE} earlyprintk=serial {APPEND}"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=QEMU_SECONDS, check=False)
        out, err, ending = done.stdout, done.stderr, f"status {done.returncode}"
    except subprocess.TimeoutExpired as expired:
        out, err, ending = expired.stdout or b"", expired.stderr or b"", f"{QEMU_SECONDS} s"
    if b"script ran" in out:
        return "QEMU: reached init"
    lines = [line for line in err.decode(errors="replace").splitlines() if "failure" in line]
    return f"QEMU: {lines[0] if lines else 'no init'} ({ending})"


def test_debian_kernel_to_its_init(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = Boot(
        files()["stock"],
        script=section("uname", "uname -r"),
        bits=32,
        append=f"quiet {APPEND}",
        timeout=SECONDS,
        load={"fast_boot": True},
        board="pc",
        memory="128M",
    )
    with capsys.disabled():
        reached = done.when("init: started")
        print(f"\npykvm: init after {reached and round(reached)} s; {done.result}; {done.assisted}")
        print(qemu_says(tmp_path))
    assert "cloud-amd64" in done.section("uname")
    assert (done.result.reason, done.result.exit_code) == ("power-off", 0)
