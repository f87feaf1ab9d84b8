"""`pykvm trace`: every exit, explained; text, JSON lines and the summary table."""

from __future__ import annotations

import json
import pathlib
import re
import signal
import subprocess
import time

import pexpect
import pytest
from cli_command import COMMAND, ENVIRONMENT, HALT, SPIN, image, leave, pykvm, say

pytestmark = pytest.mark.kvm


def exits_of(text: str) -> list[dict[str, object]]:
    return [e for e in map(json.loads, text.splitlines()) if e["type"] == "exit"]


def test_text_has_a_line_for_each_exit_and_the_serial_output_among_them() -> None:
    done = subprocess.run(
        [*COMMAND, "trace", "hello64"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=ENVIRONMENT, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0].startswith("hello64: elf, long mode, entry 0x100000 (_start)")
    exits = [line for line in lines if re.match(r"\s*\d+\s+\d+\.\d+ ", line)]
    assert [int(line.split()[0]) for line in exits] == list(range(29))
    assert all(re.search(r"out 0x3f8 ← '.*' +COM1 THR +0x1000..", line) for line in exits[:-1])
    assert "out dx, al" in exits[0]
    assert exits[0].rstrip().endswith("out dx, al")
    assert re.search(r"halted +0x1000.. .*: hlt$", exits[-1])
    assert lines[-2] is exits[-1]
    assert lines[-3].split("│")[1] == " Hello from 64-bit long mode"
    assert lines[-1].startswith("halted; exit status 0; 28 io, 1 hlt; ")


def test_the_serial_output_goes_to_stderr_where_that_is_another_place() -> None:
    done = pykvm("trace", "hello64")
    assert done.returncode == 0
    assert done.stderr == "Hello from 64-bit long mode\n"
    assert "│" not in done.stdout
    assert done.stdout.count("out 0x3f8") == 28


def test_the_serial_output_goes_where_the_user_says(tmp_path: pathlib.Path) -> None:
    done = pykvm("trace", "hello64", "--serial", f"file:{tmp_path}/log")
    assert done.stderr == ""
    assert (tmp_path / "log").read_text() == "Hello from 64-bit long mode\n"


def test_json_lines_have_every_exit_with_its_values(tmp_path: pathlib.Path) -> None:
    # mov ax, 0xbeef; out 0x10, ax; in al, 0x11; mov cx, 3; mov dx, 0x12; mov si, 0x1000;
    # rep outsb; debug-exit
    code = b"\xb8\xef\xbe\xe7\x10\xe4\x11\xb9\x03\x00\xba\x12\x00\xbe\x00\x10\xfc\xf3\x6e"
    done = pykvm("trace", image(tmp_path, code + leave(4)), "--format", "json")
    assert done.returncode == 9
    assert done.stderr == ""
    exits = exits_of(done.stdout)
    assert [e["sequence"] for e in exits] == list(range(len(exits)))
    out, read, *strings, last = exits
    assert (out["port"], out["size"], out["value"], out["direction"]) == (0x10, 2, 0xBEEF, "write")
    assert (out["rip"], out["instruction"]) == (0x1003, "out 0x10, ax")
    assert (read["port"], read["size"], read["value"], read["direction"]) == (0x11, 1, 0xFF, "read")
    assert (read["rip"], read["instruction"]) == (0x1005, "in al, 0x11")
    assert sum(e["count"] for e in strings) == 3
    assert all(e["rip"] == 0x1011 and "outsb" in str(e["instruction"]) for e in strings)
    assert (last["port"], last["value"], last["place"]) == (0xF4, 4, "debug-exit")
    assert all(e["run_ns"] > 0 for e in exits)
    assert all(e["handle_ns"] > 0 for e in exits[:-1])
    times = [e["time_ns"] for e in exits]
    assert times == sorted(times)
    end = json.loads(done.stdout.splitlines()[-1])
    assert end["type"] == "end"
    assert (end["reason"], end["exit_code"]) == ("debug-exit", 9)


def test_mmio_and_code_that_changes_mode() -> None:
    done = pykvm("trace", "modes", "--json")
    assert done.returncode == 0
    exits = exits_of(done.stdout)
    end = json.loads(done.stdout.splitlines()[-1])
    assert end["exits"]["KVM_EXIT_IO"] == sum(e["reason"] == "KVM_EXIT_IO" for e in exits)
    # Every exit's instruction was found, in 16, 32 and 64-bit code alike.
    assert {str(e["instruction"]).split()[0] for e in exits} == {"rep", "hlt"}
    written = "".join(chr(int(str(e["value"]))) for e in exits if e["reason"] == "KVM_EXIT_IO")
    assert written == end["serial"]
    done = pykvm("trace", "mmio-loop", "--param", "count=3", "--json")
    stores = [e for e in exits_of(done.stdout) if e["reason"] == "KVM_EXIT_MMIO"]
    assert [(e["gpa"], e["size"], e["direction"]) for e in stores] == [(0xD0000000, 4, "write")] * 3
    assert all("mov" in str(e["instruction"]) for e in stores)


def test_nothing_is_lost_in_a_long_trace() -> None:
    done = pykvm("trace", "pio-loop", "--param", "count=20000", "--json", timeout=100)
    exits = exits_of(done.stdout)
    assert [e["sequence"] for e in exits] == list(range(20001))


def test_both_cpus_are_traced() -> None:
    exits = exits_of(pykvm("trace", "smp", "--json", timeout=60).stdout)
    for cpu in (0, 1):
        mine = [e["sequence"] for e in exits if e["vcpu"] == cpu]
        assert mine == list(range(len(mine)))
        assert mine or cpu


def test_summary_adds_up(tmp_path: pathlib.Path) -> None:
    done = pykvm("trace", "pio-loop", "--param", "count=500", "--format", "summary")
    assert done.returncode == 1
    head, *rows, total, end = done.stdout.splitlines()
    assert head.split()[:3] == ["reason", "access", "device"]
    outs = [row for row in rows if row.startswith("IO      out 0x10 ")]
    counts = [int(re.search(r": out dx, [a-z]+ +(\d+) ", row)[1]) for row in outs]
    assert sum(counts) == 500
    assert counts == sorted(counts, reverse=True)
    assert [row for row in rows if "debug-exit" in row] == rows[len(outs) :]
    assert total.split()[:2] == ["total", "501"]
    assert end.startswith("debug-exit after ")


def test_summary_on_a_terminal() -> None:
    shown, status = pexpect.run(
        " ".join([*COMMAND, "trace", "hello16", "--format", "summary"]),
        withexitstatus=True, encoding="utf-8", timeout=30,
        env={k: v for k, v in ENVIRONMENT.items() if k not in ("NO_COLOR", "COLUMNS")}
        | {"TERM": "xterm-256color"},
    )  # fmt: skip
    assert status == 0
    assert "Hello from 16-bit real mode" in shown
    assert "──" in shown
    assert "out 0x3f8" in shown
    assert "\x1b[" in shown


def test_limit_stops_the_guest(tmp_path: pathlib.Path) -> None:
    done = pykvm("trace", image(tmp_path, say("x") + b"\xeb\xfd"), "--json", "--limit", "7")
    assert done.returncode == 0
    assert len(exits_of(done.stdout)) == 7
    assert json.loads(done.stdout.splitlines()[-1])["reason"] == "stopped"


@pytest.mark.parametrize(
    ("verb", "option", "where"),
    [("trace", "--format=summary", "stdout"), ("trace", "--json", "stdout"),
     ("run", "--exits", "stderr"), ("run", "--json", "stdout")],
)  # fmt: skip
def test_ctrl_c_still_gives_the_report(
    tmp_path: pathlib.Path, verb: str, option: str, where: str
) -> None:
    path = image(tmp_path, say("x") + b"\xe6\x10" + SPIN)
    with subprocess.Popen(
        [*COMMAND, verb, path, option, "--serial", f"file:{tmp_path}/serial"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=ENVIRONMENT,
    ) as process:  # fmt: skip
        for _ in range(200):
            if (tmp_path / "serial").exists() and (tmp_path / "serial").read_text() == "x":
                break
            time.sleep(0.05)
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    shown = out if where == "stdout" else err
    assert "0x10" in shown or '"KVM_EXIT_IO": 2' in shown
    assert "Traceback" not in err


def test_output_to_a_file(tmp_path: pathlib.Path) -> None:
    done = pykvm("trace", "hello64", "-o", tmp_path / "trace.txt")
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "trace.txt").read_text().count("out 0x3f8") == 28


def test_the_image_format_may_be_given_as_in_run(tmp_path: pathlib.Path) -> None:
    path = image(tmp_path, HALT)
    for option in ("--format", "--image-format"):
        done = pykvm("trace", path, option, "flat", "--json", "--irqchip", "none")
        assert done.returncode == 0
        assert [e["reason"] for e in exits_of(done.stdout)] == ["KVM_EXIT_HLT"]


def test_exit_statuses_are_those_of_run(tmp_path: pathlib.Path) -> None:
    assert pykvm("trace", image(tmp_path, SPIN), "--timeout", "0.2").returncode == 124
    done = pykvm("trace", "triplefault")
    assert done.returncode == 126
    assert "triple fault" in done.stdout
    assert "rip=0000000000001016" in done.stderr


def test_a_reader_that_leaves_is_no_error(tmp_path: pathlib.Path) -> None:
    path = image(tmp_path, say("x") + b"\xeb\xfd")
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -5', "sh", *COMMAND, "trace", path, "--timeout", "20",
         "--serial", "null"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 5
    assert done.stderr == ""


def test_a_guest_cannot_write_to_the_terminal_through_the_trace(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [*COMMAND, "trace", image(tmp_path, say("\x1b[2J\n") + HALT)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=ENVIRONMENT, check=True,
    )  # fmt: skip
    assert "\x1b" not in done.stdout
    assert r"│ \x1b[2J" in done.stdout
