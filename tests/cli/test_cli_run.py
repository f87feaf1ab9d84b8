"""`pykvm run` with images that were not made for it: exit codes, output, reports, time limits."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import time

import pytest
from cli_command import COMMAND, ENVIRONMENT, HALT, SPIN, image, leave, link, pykvm, say

pytestmark = pytest.mark.kvm


def test_a_flat_image_at_the_default_address(tmp_path: pathlib.Path) -> None:
    done = pykvm("run", image(tmp_path, say("hi\n") + HALT))
    assert (done.returncode, done.stdout, done.stderr) == (0, "hi\n", "")


@pytest.mark.parametrize("load", ["0x7c00", "31744"])
def test_a_flat_16_bit_image_at_load_and_entry(tmp_path: pathlib.Path, load: str) -> None:
    # Entered behind the HLT at its start; it reads a byte at its absolute address.
    code = HALT + b"\xa0\x0d\x7c\xba\xf8\x03\xee" + leave(0x21) + b"Q" + HALT
    assert code[0x0D:0x0E] == b"Q"
    done = pykvm("run", image(tmp_path, code), "--load", load, "--entry", "0x7c02")
    assert (done.returncode, done.stdout) == ((0x21 << 1) | 1, "Q")


@pytest.mark.parametrize("value", [0, 1, 3, 0x10, 0x7F, 0xFF])
def test_the_debug_exit_code_is_the_exit_status(tmp_path: pathlib.Path, value: int) -> None:
    done = pykvm("run", image(tmp_path, leave(value)))
    assert done.returncode == ((value << 1) | 1) & 0xFF


def test_32_bit_and_64_bit_flat_images(tmp_path: pathlib.Path) -> None:
    # dec eax; jz +4; leave(1); leave(2): in 64-bit code 0x48 is a prefix of the jump instead.
    wide = b"\xb8\x01\x00\x00\x00\x48\x74\x04" + leave(1) + leave(2)
    assert pykvm("run", image(tmp_path, wide), "--mode", "protected").returncode == 5
    assert pykvm("run", image(tmp_path, wide), "--mode", "long").returncode == 3


def test_an_elf64(tmp_path: pathlib.Path) -> None:
    path = link(
        tmp_path,
        """
        .globl _start
_start: lea rsi, text[rip]
        mov dx, 0x3f8
1:      lodsb
        test al, al
        jz 2f
        out dx, al
        jmp 1b
2:      mov al, 42
        out 0xf4, al
        hlt
        .data
text:   .asciz "sixty-four\\n"
        """,
    )
    done = pykvm("run", path)
    assert (done.returncode, done.stdout) == (85, "sixty-four\n")


def test_an_elf64_linked_high_is_entered_by_its_virtual_address(tmp_path: pathlib.Path) -> None:
    (tmp_path / "high.ld").write_text(
        "ENTRY(_start)\nSECTIONS { . = 0xffffffff80200000;\n .text : AT(0x200000) { *(.text) } }\n"
    )
    (tmp_path / "high.S").write_text(
        ".intel_syntax noprefix\n.globl _start\n_start: lea rax, [rip]\n shr rax, 40\n"
        " out 0xf4, al\n hlt\n"
    )
    subprocess.run(["as", "-o", tmp_path / "high.o", tmp_path / "high.S"], check=True)
    subprocess.run(
        ["ld", "-T", tmp_path / "high.ld", "-o", tmp_path / "high.elf", tmp_path / "high.o"],
        check=True, capture_output=True,
    )  # fmt: skip
    assert pykvm("run", tmp_path / "high.elf").returncode == (0xFF << 1 | 1) & 0xFF


def test_a_multiboot_kernel_with_module_and_command_line(tmp_path: pathlib.Path) -> None:
    module = tmp_path / "module.txt"
    module.write_text("M!")
    path = link(
        tmp_path,
        """
        .text
        .long 0x1badb002, 0, -0x1badb002
        .globl _start
_start: cmp eax, 0x2badb002
        jne 9f
        mov dx, 0x3f8
        mov esi, [ebx + 16]       # cmdline
1:      lodsb
        test al, al
        jz 2f
        out dx, al
        jmp 1b
2:      mov esi, [ebx + 24]       # first module
        mov edi, [esi + 8]        # its string
        mov esi, [esi]            # its start
        outsb
        outsb
3:      mov al, [edi]
        inc edi
        test al, al
        jz 4f
        out dx, al
        jmp 3b
4:      mov al, 7
        out 0xf4, al
9:      ud2
        """,
        bits=32,
        text=0x100000,
    )
    done = pykvm(
        "run", path, "--module", f"{module} one two", "--cmdline", "debug=1 ", "--memory", "32M"
    )
    assert done.returncode == 15, done.stderr
    # QEMU's rule: the whole text after the kernel, or after the file, is the string.
    assert done.stdout.startswith(("debug=1 ", f"{path} debug=1 "))
    assert "M!" in done.stdout
    assert done.stdout.endswith("one two")
    again = pykvm("run", path, "--module", f"{module} one two", "--append", "debug=1 ")
    assert again.stdout == done.stdout


def test_a_triple_fault_gives_126_and_a_report(tmp_path: pathlib.Path) -> None:
    # In protected mode without an IDT: an access, then ud2.
    code = b"\xb8\x78\x56\x34\x12" + b"\xe6\x80" + b"\x0f\x0b"
    done = pykvm("run", image(tmp_path, code), "--mode", "protected")
    assert done.returncode == 126
    assert done.stdout == ""
    report = done.stderr
    assert report.startswith("pykvm: triple fault")
    assert "rax=0000000012345678" in report
    assert "rip=0000000000001007" in report
    assert "0x1007: 0f 0b" in report
    assert "ud2" in report
    assert "last exits" in report
    assert "out 0x80" in report


def test_an_instruction_that_kvm_cannot_run_gives_126_or_runs(tmp_path: pathlib.Path) -> None:
    # clts; fnclex; debug-exit: software-only hosts refuse it, others run it.
    done = pykvm("run", image(tmp_path, b"\x0f\x06\xdb\xe2" + leave(1)))
    assert done.returncode in (126, 3)
    if done.returncode == 126:
        assert "fnclex" in done.stderr


@pytest.mark.parametrize("irqchip", ["kernel", "none"])
@pytest.mark.parametrize("seconds", [0.1, 0.5])
def test_timeout_stops_an_endless_loop_in_time(
    tmp_path: pathlib.Path, seconds: float, irqchip: str
) -> None:
    path = image(tmp_path, SPIN)
    late = []
    for _ in range(3):  # the machine that runs this may be busy with something else
        done = pykvm("run", path, "--timeout", str(seconds), "--irqchip", irqchip, "--json")
        assert done.returncode == 124, done.stderr
        told = json.loads(done.stdout)
        assert told["reason"] == "timeout"
        late.append(told["elapsed"] - seconds)
        if late[-1] < 0.1:
            break
    assert min(late) >= 0
    assert min(late) < 0.1


def test_a_timeout_does_not_cut_a_guest_that_ends_before(tmp_path: pathlib.Path) -> None:
    assert pykvm("run", image(tmp_path, leave(2)), "--timeout", "20").returncode == 5


def test_output_appears_at_once_and_not_at_the_end(tmp_path: pathlib.Path) -> None:
    path = image(tmp_path, say("now") + SPIN)
    with subprocess.Popen(
        [*COMMAND, "run", path, "--timeout", "20"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.read(3) == b"now"
        assert process.poll() is None
        process.terminate()
        process.wait(10)


def test_raw_bytes_reach_stdout_unchanged(tmp_path: pathlib.Path) -> None:
    every = bytes(range(256))
    # mov si, 0x1000 + 13; mov cx, 256; mov dx, 0x3f8; cld; rep outsb; cli; hlt
    code = b"\xbe\x0f\x10\xb9\x00\x01\xba\xf8\x03\xfc\xf3\x6e" + HALT + b"\x90" + every
    assert code[15:16] == b"\0"
    done = subprocess.run(
        [*COMMAND, "run", image(tmp_path, code)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout == every


def test_a_pipe_is_the_guests_input() -> None:
    done = pykvm("run", "echo", input="hello, guest\x04", timeout=20)
    assert done.returncode == 0
    assert done.stdout.replace("\r\n", "\n") == "echo: Ctrl-D ends\nhello, guest\nbye\n"


def test_json_has_one_object_with_everything() -> None:
    done = pykvm("run", "hello64", "--json")
    assert done.returncode == 0
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert set(told) == {
        "image", "format", "mode", "entry", "reason", "detail", "value", "exit_code", "vcpu",
        "elapsed", "serial", "debugcon", "exits", "unclaimed", "report", "board", "resets",
        "assist",
    }  # fmt: skip
    assert told["serial"] == "Hello from 64-bit long mode\n"
    assert (told["reason"], told["exit_code"], told["mode"]) == ("halted", 0, "long")
    assert told["exits"]["KVM_EXIT_IO"] == len(told["serial"])


def test_json_of_a_guest_with_input() -> None:
    done = pykvm("run", "echo", "--json", input="typed\x04", timeout=20)
    assert done.returncode == 0
    assert "typed" in json.loads(done.stdout)["serial"]


def test_json_of_a_crash_and_of_a_debug_exit(tmp_path: pathlib.Path) -> None:
    done = pykvm("run", "triplefault", "--json")
    assert done.returncode == 126
    told = json.loads(done.stdout)
    assert told["reason"] == "shutdown"
    assert "rip=" in told["report"]
    assert "rip=" in done.stderr
    done = pykvm("run", image(tmp_path, leave(9)), "--json")
    assert done.returncode == 19
    assert json.loads(done.stdout)["value"] == 9


def test_exits_are_accounted_on_stderr() -> None:
    done = pykvm("run", "hello64", "--exits")
    assert done.stdout == "Hello from 64-bit long mode\n"
    lines = done.stderr.splitlines()
    assert lines[0].startswith("halted after ")
    assert any(line.split()[:2] == ["KVM_EXIT_IO", "28"] for line in lines)
    assert any("port 0x3f8 COM1" in line for line in lines)


def test_serial_and_debug_console_to_files(tmp_path: pathlib.Path) -> None:
    code = say("serial\n") + b"\xb0Z\xe6\xe9" + HALT  # mov al, 'Z'; out 0xe9, al
    done = pykvm(
        "run", image(tmp_path, code), "--serial", f"file:{tmp_path}/com1", "--debugcon",
        f"file:{tmp_path}/debugcon",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "com1").read_text() == "serial\n"
    assert (tmp_path / "debugcon").read_text() == "Z"


def test_serial_null_is_silent() -> None:
    done = pykvm("run", "hello64", "--serial", "null")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_serial_on_a_unix_socket(tmp_path: pathlib.Path) -> None:
    import socket

    path = tmp_path / "console"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(20)
        with subprocess.Popen(
            [*COMMAND, "run", "echo", "--serial", f"unix:{path}"],
            stdin=subprocess.DEVNULL, env=ENVIRONMENT,
        ) as process:  # fmt: skip
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(20)
                connection.sendall(b"over a socket\x04")
                got = b""
                while chunk := connection.recv(4096):
                    got += chunk
            assert process.wait(20) == 0
    assert b"over a socket" in got
    assert got.endswith((b"bye\r\n", b"bye\n"))


def test_unclaimed_accesses(tmp_path: pathlib.Path) -> None:
    # in al, 0x42; out 0xf4, al
    path = image(tmp_path, b"\xe4\x42\xe6\xf4")
    assert pykvm("run", path, "--irqchip", "none").returncode == 0xFF
    assert pykvm("run", path, "--irqchip", "none", "--unclaimed", "ignore").returncode == 1
    done = pykvm("run", path, "--irqchip", "none", "--unclaimed", "stop")
    assert done.returncode == 126
    assert "0x42" in done.stderr
    assert done.stderr.count("\n") == 1
    done = pykvm("run", path, "--irqchip", "none", "--unclaimed", "log")
    assert done.returncode == 0xFF
    assert "0x42" in done.stderr
    told = json.loads(pykvm("run", path, "--irqchip", "none", "--json").stdout)
    assert told["unclaimed"] == [{"bus": "pio", "address": 0x42, "count": 1}]


def test_parameters_of_shipped_guests() -> None:
    done = pykvm("run", "pio-loop", "--param", "count=37", "--param", "port=0x11", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["unclaimed"] == [{"bus": "pio", "address": 0x11, "count": 37}]


def test_several_cpus() -> None:
    done = pykvm("run", "smp", timeout=60)
    assert done.returncode == 0, done.stderr
    assert "CPU 1" in done.stdout


def test_memory_sizes(tmp_path: pathlib.Path) -> None:
    path = image(tmp_path, leave(1))
    for size in ("1M", "0x100000", "128M", "2G"):
        assert pykvm("run", path, "--memory", size).returncode == 3


def test_ctrl_c_ends_with_130_and_no_traceback(tmp_path: pathlib.Path) -> None:
    _ends_by_signal(tmp_path, signal.SIGINT, 130)


def test_sigterm_ends_with_143(tmp_path: pathlib.Path) -> None:
    _ends_by_signal(tmp_path, signal.SIGTERM, 143)


def _ends_by_signal(folder: pathlib.Path, number: signal.Signals, status: int) -> None:
    path = image(folder, say("up") + SPIN)
    with subprocess.Popen(
        [*COMMAND, "run", path],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(2) == b"up"
        sent = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == status
        assert time.monotonic() - sent < 5
        assert process.stderr.read() == b""


def test_ctrl_c_with_several_cpus() -> None:
    with subprocess.Popen(
        [*COMMAND, "run", "compute2", "--param", "turns=1000000000000"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_reader_that_leaves_ends_the_guest_quietly(tmp_path: pathlib.Path) -> None:
    # Prints for ever; `head` takes three bytes.
    path = image(tmp_path, say("x") + b"\xeb\xfd")
    with subprocess.Popen(
        [*COMMAND, "run", path, "--timeout", "20"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(3) == b"xxx"
        process.stdout.close()
        assert process.wait(10) == 128 + signal.SIGPIPE
        assert process.stderr.read() == b""
