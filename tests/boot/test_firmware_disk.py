"""SeaBIOS boots GRUB and a kernel from a disk and from a CD; its menu is answered by typed keys."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable

import pytest
from firmware_images import grub_cdrom, grub_disk, seabios

from pykvm import Machine
from pykvm.machine import RunResult

pytestmark = [pytest.mark.kvm, pytest.mark.boot, pytest.mark.timeout(1200)]

LIMIT = 600  # seconds that no boot should take, on the slowest of the hosts


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return grub_disk(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def cdrom(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return grub_cdrom(tmp_path_factory.mktemp("cdrom"))


def boots(machine: Machine, **options: bool) -> RunResult:
    """Runs SeaBIOS until the kernel that it found has said hello and halted."""
    machine.load(seabios(), format="firmware", **options)
    result = machine.run(timeout=LIMIT)
    said = result.serial.decode(errors="replace")
    assert result.reason == "halted", f"{result.report or result.reason}\n{said}"
    assert "Hello from a multiboot kernel" in said
    assert "loader: GRUB 2" in said
    assert "command line: chosen=first" in said
    return result


def test_disk(disk: pathlib.Path) -> None:
    with Machine("64M", board="pc") as machine:
        machine.add_disk(disk, interface="ide", readonly=True)
        result = boots(machine)
        said = result.serial.decode(errors="replace")
        assert "SeaBIOS (version" in said  # its screen, on COM1
        assert "Booting from Hard Disk" in said
        assert "map: 0x0 + 0x9fc00 free" in said
        assert b"ACPI: parse DSDT" in result.debugcon
        assert "Booting `first kernel'" in machine.screen.text()
        assert set(machine.unclaimed_counts) <= PROBED


#: Where SeaBIOS and GRUB look for what a machine need not have: DMA controller, floppy, LPT, COM.
PROBED = {
    ("pio", port)
    for port in (
        0x0D, 0xD4, 0xD6, 0xDA, 0x278, 0x27A, 0x378, 0x37A, 0x2E9, 0x2F9, 0x3E9, 0x3F2, 0x3BC, 0x3BE
    )
}  # fmt: skip


def test_virtio_disk(disk: pathlib.Path) -> None:
    with Machine("64M", board="pc") as machine:
        machine.add_disk(disk, snapshot=True)
        assert b"virtio-blk" in boots(machine, serial_console=False).debugcon


def typing(machine: Machine, *answers: tuple[str, Callable[[], None]]) -> Callable[[bytes], None]:
    """A serial back end that answers what firmware shows with keys."""
    seen = bytearray()
    left = list(answers)

    def show(data: bytes) -> None:
        seen.extend(data)
        if left and left[0][0].encode() in seen:
            del seen[:]
            left.pop(0)[1]()

    return show


def test_the_boot_menu_chooses_the_cdrom(disk: pathlib.Path, cdrom: pathlib.Path) -> None:
    shown: list[Callable[[bytes], None]] = []
    with Machine("64M", board="pc", serial=lambda data: shown[0](data)) as machine:
        keyboard = machine.keyboard
        shown.append(
            typing(
                machine,
                ("for boot menu", lambda: keyboard.tap("esc")),
                ("DVD/CD [", lambda: keyboard.type_text("2")),
            )
        )
        machine.add_disk(disk, interface="ide", readonly=True)
        machine.add_disk(cdrom, interface="cdrom")
        said = boots(machine, boot_menu=True).serial.decode(errors="replace")
        assert "1. ata0-0: PYKVM HARDDISK" in said
        assert "Booting from DVD/CD" in said


def test_an_option_rom_runs_and_a_reset_boots_again() -> None:
    code = b"\xb0R\xe6\xe9\xcb"  # mov al, 'R'; out 0xe9, al; retf
    rom = bytearray((b"\x55\xaa\x01" + code).ljust(512, b"\0"))
    rom[511] = -sum(rom) & 0xFF
    # A boot sector: once more through the reset port, unless it was here before.
    sector = bytearray(512)
    sector[:16] = b"\xfa\xb0B\xe6\xe9\xba\xf9\x0c\xb0\x06\xee\xf4\xeb\xfd\x90\x90"
    sector[510:] = b"\x55\xaa"
    with Machine("32M", board="pc") as machine:
        machine.add_disk(bytes(sector) + bytes(1 << 20), interface="ide")
        machine.load("seabios", format="firmware")
        machine.board.fw_cfg.add_file("genroms/letter.rom", bytes(rom))  # type: ignore[attr-defined]
        for _ in range(2):
            started = time.monotonic()
            result = machine.run(timeout=LIMIT)
            assert result.reason == "reset", result.report or result.reason
            log = result.debugcon
            assert log.index(b"R") < log.rindex(b"B")
            assert log.endswith(b"B"), log[-200:]
            assert time.monotonic() - started < LIMIT
            machine.reset()
