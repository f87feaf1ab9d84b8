"""Debian's gdb debugs a guest with symbols: the commands that people use, one after the other."""

from __future__ import annotations

import pathlib
import re
import subprocess

import pytest
from cli_command import COMMAND, ENVIRONMENT
from debian_tools import need
from gdbtool import build, debugging

from pykvm import images


@pytest.fixture(scope="module")
def guest_elf(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return build(tmp_path_factory.mktemp("guest") / "guest.elf")


def test_break_backtrace_finish_and_detach(guest_elf: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = ("gdb", guest_elf, "--listen", ":0")
    with debugging(tmp_path, guest_elf, *command) as (guest, gdb):
        assert "Breakpoint 1" in gdb("break square")
        assert "square (n=3)" in gdb("continue")
        frames = gdb("bt")
        assert re.search(r"#0 +square \(n=3\)", frames)
        assert re.search(r"#1 .* length2 \(p=.*<place>\)", frames)
        assert re.search(r"#2 .* main \(\)", frames)
        assert "Value returned is $1 = 9" in gdb("finish")
        assert "square (n=4)" in gdb("continue")
        assert "result = n * n" in gdb("list 18,18")
        gdb("delete")
        assert "length2" in gdb("up")
        assert gdb("print *p") == "$2 = {x = 3, y = 4}"
        assert gdb("print place.y = 6") == "$3 = 6"
        gdb("detach")
        assert guest.ended() == 0
        assert "length 25, counter 5" in guest.said  # it had read y before


def test_stepping_follows_the_source(guest_elf: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = ("gdb", guest_elf, "--listen", "unix:gdb")
    with debugging(tmp_path, guest_elf, *command) as (_, gdb):
        gdb("break length2")
        assert "length2" in gdb("continue")
        assert "x2 = square" in gdb("next") + gdb("info line")
        assert "square (n=3)" in gdb("step")
        here = int(gdb("print/d $pc").split("=")[1])
        gdb("stepi")
        assert int(gdb("print/d $pc").split("=")[1]) > here
        assert "length2" in gdb("up")
        assert "main" in gdb("finish")


def test_watching_and_changing_variables(guest_elf: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = ("gdb", guest_elf, "--listen", "unix:gdb")
    with debugging(tmp_path, guest_elf, *command) as (guest, gdb):
        gdb("tbreak main")
        gdb("continue")
        assert "atchpoint 2: counter" in gdb("watch counter")
        stop = gdb("continue")
        assert "Old value = 0" in stop
        assert "New value = 1" in stop
        assert "Old value = 1" in gdb("continue")
        assert re.search(r"#0 .*count \(\)", gdb("bt"))
        gdb("delete")
        gdb("set var limit = 2")
        gdb("set var counter = 40")
        assert gdb("print counter") == "$1 = 40"
        gdb("tbreak guest_exit")
        gdb("continue")
        assert "length 25, counter 40" in guest.until("counter 40\n")


def test_registers_of_all_kinds(guest_elf: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = ("gdb", guest_elf, "--listen", "unix:gdb")
    with debugging(tmp_path, guest_elf, *command) as (guest, gdb):
        gdb("break square")
        gdb("continue")
        assert gdb("print $cr0").endswith("PG ]")
        assert "LMA" in gdb("print $efer")
        assert gdb("print $cs") == "$3 = 8"
        assert gdb("print $gdtr_limit > 0") == "$4 = 1"
        assert "<main+" in gdb("info symbol *(long *)$rsp") or "length2" in gdb("x/a $rsp")
        gdb("set $rdi = 10")  # the argument of square(3)
        assert "Value returned is" in (finished := gdb("finish"))
        assert finished.endswith("= 100")
        gdb("set $fs_base = 0x1234000")
        gdb("set $xmm3.v4_int32[1] = 77")
        gdb("set $st0 = 2.5")
        assert gdb("print/x $fs_base").endswith("0x1234000")
        assert gdb("print $xmm3.v4_int32[1]").endswith("= 77")
        assert gdb("print $st0").endswith("= 2.5")
        gdb("delete")
        gdb("maintenance flush register-cache")
        assert gdb("print $xmm3.v4_int32[1]").endswith("= 77")
        assert gdb("print $st0").endswith("= 2.5")
        gdb("detach")
        guest.ended()
        assert "length 116," in guest.said


def test_ymm_registers(guest_elf: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = ("gdb", guest_elf, "--listen", "unix:gdb")
    with debugging(tmp_path, guest_elf, *command) as (_, gdb):
        if "ymm0" not in gdb("info registers vector"):
            assert "void" in gdb("print $ymm0")  # this host's guests have no AVX
            return
        gdb("set $ymm5.v8_int32[7] = 99")
        gdb("set $ymm5.v8_int32[0] = 11")
        gdb("maintenance flush register-cache")
        assert "{11, 0, 0, 0, 0, 0, 0, 99}" in gdb("print $ymm5.v8_int32")
        assert "{11, 0, 0, 0}" in gdb("print $xmm5.v4_int32")


def test_two_cpus_are_threads_and_ctrl_c_stops_them(
    guest_elf: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    command = ("gdb", guest_elf, "--listen", "unix:gdb", "--cpus", "2")
    with debugging(tmp_path, guest_elf, *command) as (guest, gdb):
        assert "CPU#1 [uninitialized]" in gdb("info threads")
        gdb("tbreak main")
        gdb("continue")
        gdb("set var how = 1")
        gdb.send("continue")
        guest.until("waiting\n")
        gdb.interrupt()
        assert "SIGINT" in gdb.answer()
        threads = gdb("info threads")
        assert re.search(r"1 +Thread 1 \(CPU#0 .*64-bit, ring 0\)", threads), threads
        assert re.search(r"2 +Thread 2 \(CPU#1 .*64-bit, ring 0\)", threads), threads
        gdb("thread 2")
        assert "second_cpu" in gdb("bt")
        before = int(gdb("print second_turns").split("=")[1])
        gdb("thread 1")
        assert "main ()" in gdb("bt")
        gdb.send("continue")
        gdb.until("Continuing.")
        gdb.interrupt()
        assert "SIGINT" in gdb.answer()
        assert int(gdb("print second_turns").split("=")[1]) >= before
        gdb("set var go_on = 1")
        gdb("detach")
        assert guest.ended() == 0
        assert "length 25, counter 5" in guest.said


def test_attach_to_a_running_guest_again_and_again(
    guest_elf: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    command = ("run", guest_elf, "--gdb", "unix:gdb", "-S", "--cpus", "2")
    with debugging(tmp_path, guest_elf, *command) as (guest, gdb):
        gdb("set var how = 1")
        gdb("detach")
        guest.until("waiting\n")
        for turn in range(3):
            gdb(f"target remote {guest.address}")
            assert "main ()" in gdb("thread apply 1 bt")
            if turn < 2:
                gdb("detach")
        gdb("set var go_on = 1")
        assert "exited normally" in gdb("continue")
        assert guest.ended() == 0


def test_a_crashed_guest(guest_elf: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = ("run", guest_elf, "--gdb", "unix:gdb", "-S")
    with debugging(tmp_path, guest_elf, *command) as (guest, gdb):
        gdb("set var how = 2")
        gdb("detach")
        guest.until("it stays for gdb")
        gdb(f"target remote {guest.address}")
        assert "SIGSEGV" in gdb("info program")
        assert "SHUTDOWN" in gdb("monitor info exits")
        assert "SIGSEGV" in gdb("continue")  # it cannot go on
        gdb("monitor reset")
        gdb("maintenance flush register-cache")
        assert "_start" in gdb("info symbol $pc")
        gdb("detach")
        assert guest.ended() == 0
        assert "length 25, counter 5" in guest.said


def test_a_crash_under_the_eyes_of_gdb(guest_elf: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = ("gdb", guest_elf, "--listen", "unix:gdb")
    with debugging(tmp_path, guest_elf, *command) as (guest, gdb):
        gdb("set var how = 2")
        assert "the guest crashed" in (stop := gdb("continue"))
        assert "SIGSEGV" in stop
        gdb("detach")
        assert guest.ended() == 126


def test_killing_the_guest(guest_elf: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = ("gdb", guest_elf, "--listen", "unix:gdb")
    with debugging(tmp_path, guest_elf, *command) as (guest, gdb):
        assert "killed" in gdb("kill")
        assert guest.ended() == 0


def test_the_end_is_reported_and_run_starts_again_in_extended_mode(
    guest_elf: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    command = ("gdb", guest_elf, "--listen", "unix:gdb")
    with debugging(tmp_path, guest_elf, *command) as (guest, gdb):
        gdb("disconnect")
        gdb(f"target extended-remote {guest.address}")
        gdb("break count")
        for _ in range(2):
            assert "count ()" in gdb("continue")
            gdb("set var limit = 1")
            assert "exited normally" in gdb("continue")
            gdb("set remote exec-file none")
            gdb("starti")
        gdb("kill")
        gdb("disconnect")
        assert guest.ended() == 0


def test_monitor_commands(guest_elf: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = ("gdb", guest_elf, "--listen", "unix:gdb")
    with debugging(tmp_path, guest_elf, *command) as (_, gdb):
        assert "walk ADDR" in gdb("monitor help")
        walk = gdb("monitor walk 0x100000")
        assert "PML4E[0]" in walk
        assert "2 MiB page" in walk
        assert "not canonical" in gdb("monitor walk 0x800000000000")
        assert "RAM" in gdb("monitor info memory")
        assert "0x0" in gdb("monitor pages")
        assert "no monitor command" in gdb("monitor make coffee")
        assert "CPU#0" in gdb("monitor info cpus")
        assert "cr3=" in gdb("monitor info registers")
        gdb("tbreak count")
        gdb("continue")
        gdb("monitor snapshot here")
        gdb("tbreak guest_exit")
        gdb("continue")
        assert gdb("print counter") == "$1 = 5"
        assert "KVM_EXIT_IO" in gdb("monitor info exits")
        assert "none of" not in gdb("monitor restore here")
        gdb("maintenance flush register-cache")
        assert gdb("print counter") == "$2 = 0"
        assert "count" in gdb("info symbol $pc")
        assert "there is no snapshot" in gdb("monitor restore there")


def test_16_bit_code(tmp_path: pathlib.Path) -> None:
    with debugging(tmp_path, None, "gdb", "hello16", "--listen", "unix:gdb") as (guest, gdb):
        assert 'currently "i8086"' in gdb("show architecture")
        assert "xor    %ax,%ax" in gdb("x/i $pc")
        gdb("hbreak *0x1005")
        assert "Breakpoint 1, 0x00001005" in gdb("continue")
        assert "mov    $0x1017,%si" in gdb("x/i $pc")
        gdb("stepi")
        assert gdb("print/x $si") == "$1 = 0x1017"
        gdb("delete")
        gdb("detach")
        assert guest.ended() == 0
        assert "Hello from 16-bit real mode" in guest.said


def test_32_bit_code(tmp_path: pathlib.Path) -> None:
    elf = images.find("hello32").path
    with debugging(tmp_path, elf, "gdb", "hello32", "--listen", "unix:gdb") as (guest, gdb):
        assert 'currently "i386"' in gdb("show architecture")
        gdb("break *next")
        assert "next" in gdb("continue")
        assert gdb("print $eax & 0xff").endswith("= 0")
        assert "PE" in gdb("print $cr0")
        gdb("stepi")
        assert gdb('printf "%c\\n", $al') == "H"
        gdb("delete")
        gdb("detach")
        guest.ended()
        assert "Hello from 32-bit protected mode" in guest.said


def test_gdb_in_the_same_terminal(guest_elf: pathlib.Path, tmp_path: pathlib.Path) -> None:
    need("gdb", package="gdb")
    done = subprocess.run(
        [*COMMAND, "gdb", guest_elf, "--listen", "unix:gdb", "--exec"],
        input="break count\ncontinue\nbt\ndelete\ncontinue\nquit\n",
        capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT, timeout=60, check=False,
    )  # fmt: skip
    assert "main () at" in done.stdout
    assert "length 25, counter 5" in done.stdout + done.stderr  # gdb shows it on stderr
    assert done.returncode == 0
