"""Debian's own kernel, as it came, with an ordinary 64-bit initramfs, where /dev/kvm is a
hardware's (or the nested tier's)."""

from __future__ import annotations

import pathlib
import re

import pytest
from linux import disk
from linux_guest import Boot, files, section

pytestmark = [pytest.mark.boot, pytest.mark.nested]

SUBJECTS = re.compile(
    r"acpi|\bpci|apic|irq|interrupt|clock|tsc|rtc|timer|virtio|\bvd[a-z]|ext4|smp|cpu", re.I
)
ALWAYS_BAD = re.compile(
    r"ACPI (BIOS )?(Error|Warning|Exception)|firmware bug|\[Firmware|nobody cared"
    r"|BAR \d+: (no space|failed)|can't|unable to|unstable|I/O error|spurious|call trace|WARNING:"
    r"|timed out",
    re.I,
)
# Printed at a warning's level by this kernel on every machine, or about what was asked for.
HARMLESS = re.compile(
    r"mitigations|Spectre|Speculative|Unknown kernel command line|kernel image \(|Retbleed|MDS"
    r"|TAA|MMIO Stale|SRBDS|module verification failed|loading out-of-tree"
    # How busy the host is.
    r"|hrtimer: interrupt took"
    # The software CPU of the nested tier has no invariant TSC; kvm-clock is what is used.
    r"|Marking TSC unstable due to TSCs unsynchronized",
)
# What Linux says where there is no PCI at all.
NO_PCI = re.compile(r"PCI: (Fatal: No config space access function found|System does not support)")
SCRIPT = (
    section("cpus", "nproc; cat /proc/cpuinfo | grep -c ^processor")
    + section("clock", "cat /sys/devices/system/clocksource/clocksource0/current_clocksource")
    + section(
        "disk",
        "mount -t ext4 /dev/vda /mnt && cat /mnt/greeting && echo from the guest >/mnt/answer"
        " && dd if=/dev/zero of=/mnt/zeros bs=64k count=16 2>/dev/null && sync && umount /mnt"
        " && echo unmounted",
    )
    + section("interrupts", "cat /proc/interrupts")
    + section("dmesg", "dmesg -r")
)


def complaints(log: str) -> list[str]:
    """Lines of `dmesg -r` that a healthy machine does not cause."""
    found = []
    for line in log.splitlines():
        level, _, text = line.partition(">")
        number = int(level[1:]) & 7 if level[1:].isdigit() else 7
        warned = number <= 4 and SUBJECTS.search(text) and not HARMLESS.search(text)
        if warned or (ALWAYS_BAD.search(text) and not HARMLESS.search(text)):
            found.append(line)
    return found


def boot(board: str, cpus: int, script: str, append: str = "", **options: object) -> Boot:
    return Boot(
        files()["stock"],
        script=script,
        bits=64,
        # How long the host keeps a CPU away from the guest is nothing to judge a boot by.
        append=f"quiet nowatchdog rcupdate.rcu_cpu_stall_suppress=1 {append}",
        timeout=400,
        load={"fast_boot": True},
        board=board,
        cpus=cpus,
        memory="256M",
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("cpus", [1, 2, 4])
@pytest.mark.parametrize("board", ["microvm", "pc"])
def test_shell_disk_and_power_off(board: str, cpus: int, tmp_path: pathlib.Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "greeting").write_text("hello from the host\n")
    image = tmp_path / "root.ext4"
    disk.make(image, 32, root)
    done = boot(board, cpus, SCRIPT, disk=image)
    assert "init: done" in done.text, done.text[-3000:]
    assert done.result.exit_code == 0, done.trouble()
    assert done.result.reason == "power-off"
    assert done.section("cpus").split() == [str(cpus)] * 2
    assert done.section("disk") == "hello from the host\nunmounted\n"
    said = complaints(done.section("dmesg"))
    assert [line for line in said if board == "pc" or not NO_PCI.search(line)] == []
    assert disk.check(image) == ""
    assert disk.read(image, "/answer") == b"from the guest\n"
    assert disk.read(image, "/zeros") == bytes(16 * 65536)


@pytest.mark.parametrize("board", ["microvm", "pc"])
def test_reboot(board: str) -> None:
    done = boot(board, 1, "echo script ran\n", append="boot=reboot")
    assert "script ran" in done.text, done.text[-3000:]
    assert (done.result.reason, done.result.exit_code) == ("reset", 0)


@pytest.mark.parametrize("board", ["microvm", "pc"])
def test_panic_is_reported(board: str) -> None:
    done = boot(board, 1, "exec false\n")
    assert "Kernel panic - not syncing: Attempted to kill init" in done.text
    assert (done.result.reason, done.result.exit_code) == ("panic", 126)
    assert "Attempted to kill init" in str(done.result)
