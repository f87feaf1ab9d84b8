"""gdb and a Linux kernel with symbols: from its first instruction to `start_kernel` and on."""

from __future__ import annotations

import pathlib

import pytest
from gdbtool import debugging
from linux_guest import CONSOLE, FRUGAL, files

pytestmark = pytest.mark.boot


def test_break_at_start_kernel(tmp_path: pathlib.Path) -> None:
    kernel = files()["mmio"] / "vmlinux"
    command = (
        "gdb", kernel, "--listen", "unix:gdb", "--machine", "microvm", "--memory", "32M",
        "--no-acpi", "--append", f"{CONSOLE} quiet reboot=t {FRUGAL}",
    )  # fmt: skip
    with debugging(tmp_path, kernel, *command) as (guest, gdb):
        assert "breakpoint 1" in gdb("hbreak start_kernel")  # not mapped yet
        assert "start_kernel ()" in gdb("continue")
        assert "secondary_startup_64" in gdb("bt")
        assert "PG" in gdb("print $cr0")
        gdb("delete")
        gdb("break sched_init")
        assert "sched_init ()" in gdb("continue")
        assert "start_kernel ()" in gdb("bt")
        assert "PDE[" in gdb("monitor walk $rip")
        gdb("finish")
        assert "start_kernel" in gdb("info symbol $pc")
        assert "Linux version" in gdb("x/s &linux_banner")
        gdb("kill")
        assert guest.ended() == 0
