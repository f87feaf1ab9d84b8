"""`pykvm run` with boards, firmware, disks, a screen and typed keys, as it is typed."""

from __future__ import annotations

import json
import pathlib

import pytest
from cli_command import error_line, pykvm
from debian_tools import need
from firmware_images import seabios

from pykvm.cli import boot_options, watching
from pykvm.cli.common import UsageError
from pykvm.cli.devices import disk

HALT16 = b"\xfa\xf4"
RESET = b"\xba\xf9\x0c\xb0\x06\xee\xeb\xfe"


def flat(folder: pathlib.Path, code: bytes) -> str:
    """A flat 16-bit image in a file."""
    path = folder / "flat.bin"
    path.write_bytes(code)
    return str(path)


# Writes "Hello" and a key's scan code to the screen and to COM1: mov ax, 0xb800; mov es, ax; ...
SCREEN = (
    b"\xb8\x00\xb8\x8e\xc0"
    + b"".join(
        b"\x26\xc7\x06" + (2 * i).to_bytes(2, "little") + bytes([c, 7])
        for i, c in enumerate(b"Hello")
    )
    + b"\xe4\x64\xa8\x01\x74\xfa\xe4\x60\xba\xf8\x03\xee"
)


@pytest.mark.kvm
def test_keys_are_typed_and_the_screen_is_saved(tmp_path: pathlib.Path) -> None:
    path, shot = flat(tmp_path, SCREEN + HALT16), tmp_path / "screen.png"
    log = tmp_path / "console.log"
    done = pykvm(
        "run", path, "--type-after", "Hello", "--type", "a", "--screenshot", str(shot),
        "--console-log", str(log), "--timeout", "30",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\x1e"
    assert log.read_bytes() == b"\x1e"
    assert shot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.kvm
def test_the_screen_in_the_terminal(tmp_path: pathlib.Path) -> None:
    path = flat(tmp_path, SCREEN + HALT16)
    done = pykvm("run", path, "--display", "text", "--type", "{f1}", "--timeout", "30")
    assert done.returncode == 0, done.stderr
    assert "Hello" in done.stdout


@pytest.mark.kvm
def test_a_guest_that_resets_starts_again_unless_told(tmp_path: pathlib.Path) -> None:
    path = flat(tmp_path, b"\xba\xf8\x03\xb0x\xee" + RESET)
    once = pykvm("run", path, "--machine", "pc", "--no-reboot", "--timeout", "30")
    assert (once.returncode, once.stdout) == (0, "x")
    told = json.loads(pykvm("run", path, "--machine", "pc", "--json", "--timeout", "1.5").stdout)
    assert told["reason"] == "timeout"
    assert told["resets"] > 0
    assert told["serial"].startswith("xx")
    assert told["board"] == "pc"


@pytest.mark.kvm
def test_silence_is_reported(tmp_path: pathlib.Path) -> None:
    path = flat(tmp_path, b"\xeb\xfe")
    done = pykvm("run", path, "--report-silence", "0.3", "--timeout", "3")
    assert done.returncode == 124
    assert "0x1000" in done.stderr
    assert "vCPU 0" in done.stderr


@pytest.mark.kvm
def test_firmware_needs_no_image(tmp_path: pathlib.Path) -> None:
    seabios()
    disk = tmp_path / "disk.img"
    # A boot sector that prints a letter and ends the machine through the debug-exit port.
    sector = b"\xba\xf8\x03\xb0!\xee\xb0\x05\xe6\xf4\xeb\xfe"
    disk.write_bytes(sector.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    done = pykvm(
        "run", "--firmware", "seabios", "--disk", f"{disk},snapshot,serial=D1", "--timeout", "60",
        timeout=90,
    )  # fmt: skip
    assert done.returncode == (5 << 1) | 1, done.stderr
    assert "SeaBIOS" in done.stdout
    assert "!" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "hello64", "--kernel", "x"], "not both"),
        (["run", "hello64", "--firmware", "seabios"], "leave hello64 out"),
        (["run", "--firmware", "abios"], "there is no firmware 'abios'"),
        (["run", "--firmware", "seabios", "--machine", "microvm"], 'board="pc"'),
        (["run", "hello64", "--boot-menu"], "--firmware seabios"),
        (["run", "hello64", "--disk", "/no/such.img"], "there is no disk image /no/such.img"),
        (["run", "hello64", "--disk", "x,format=tar"], "format=tar is not auto, raw, qcow2"),
        (["run", "hello64", "--disk", "x,queues=0"], "there is no disk image x"),
        (["run", "hello64", "--disk", "/dev/null,cache=x"], "cache=x is not writeback"),
        (["run", "hello64", "--disk", "/etc/hostname,queues=99"], "queues=99 is not a number"),
        (["run", "hello64", "--disk", "/etc/hostname,bps=fast"], "bps=fast is not a number"),
        (["run", "hello64", "--disk", "nbd://127.0.0.1:1/x"], "start the NBD server"),
        (["run", "hello64", "--disk", "/etc/hostname,format=qcow2"], "not in qcow2 format"),
        (["run", "hello64", "--disk", "x,colour=red"], "no property of a disk"),
        (["run", "hello64", "--cpus", "4,cores=3"], "4"),
        (["run", "hello64", "--cpus", "none"], "write it like 0x1000 or 4096"),
        (["run", "hello64", "--cpu", "hots"], "host"),
        (["run", "hello64", "--cpu", "host,+warp"], "warp"),
        (["run", "hello64", "--initrd", "/etc/passwd"], "leave an initrd out"),
        (["run", "hello64", "--type", "{nokey}"], "nokey"),
        (["run", "hello64", "--type", "{esc"], "closing brace"),
        (["run", "hello64", "--type-after", "x"], "--type TEXT"),
        (["run", "hello64", "--json", "--display", "text"], "--json needs stdout"),
        (["run", "hello64", "--symbols", "/no/such"], "/no/such"),
        (["run", "hello64", "--machine", "bare", "--disk", "/dev/null"], "no place for disks"),
    ],
)
@pytest.mark.kvm
def test_one_line(arguments: list[str], words: str) -> None:
    if "seabios" in arguments:
        seabios()
    if "qcow2" in words:
        need("qemu-img", package="qemu-utils")
    assert words in error_line(pykvm(*arguments))


def test_disk_options() -> None:
    found = disk.disk("a.img,readonly,serial=X1,if=ide,format=raw")
    assert found[:6] == ("a.img", True, False, "X1", "ide", "raw")
    found = disk.disk("a,,b.img,overlay=c,,,cache=none,queues=2,iops=5k,bps=1M")
    assert (found.path, found.overlay, found.cache) == ("a,b.img", "c,", "none")
    assert (found.queues, found.iops, found.bps) == (2, 5 << 10, 1 << 20)
    assert disk.disk("a.img,snapshot").snapshot
    assert disk.cdrom("b.iso").interface == "cdrom"
    assert boot_options.cpu_count("4,cores=2") == (4, "cores=2")


def test_keys_in_braces() -> None:
    assert watching.parse_keys("ab{f12}c\\n") == [(False, "ab"), (True, "f12"), (False, "c\n")]
    with pytest.raises(UsageError):
        watching.parse_keys("\u20ac")


@pytest.mark.kvm
def test_kernels_get_the_pc_board_and_memory_for_it(tmp_path: pathlib.Path) -> None:
    from kernel_images import bzimage

    path = tmp_path / "bzImage"
    path.write_bytes(bzimage())
    for words, board in ([], "pc"), (["--machine", "microvm"], "microvm"):
        done = pykvm("run", str(path), *words, "--json", "--append", "quiet", "--timeout", "20")
        told = json.loads(done.stdout)
        assert (told["board"], told["format"]) == (board, "bzimage")
        assert told["reason"] == "halted"
