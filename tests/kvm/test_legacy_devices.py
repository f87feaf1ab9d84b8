"""RTC, keyboard, timers and interrupt controllers under a guest kernel, KVM's and our own chips."""

from __future__ import annotations

import pathlib
import subprocess
from datetime import UTC, datetime

import pytest

from pykvm import Machine, images
from pykvm.devices.pc import I8042, Cmos, PcTestDev

HERE = pathlib.Path(__file__).parent
GUESTS = HERE.parents[1] / "guests"
FLAGS = [
    "-O2", "-ffreestanding", "-fno-pic", "-masm=intel", "-mgeneral-regs-only", "-mno-red-zone",
    "-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables",
    "-nostdlib", "-static", "-Wl,--build-id=none,-z,noexecstack,-z,max-page-size=4096",
    "-Wl,--no-warn-rwx-segments", "-Wl,--gc-sections", "-ffunction-sections", "-no-pie",
]  # fmt: skip
START = int(datetime(2031, 2, 3, 12, tzinfo=UTC).timestamp())


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The guest, linked as `guests/build.py` links those with a C runtime."""
    out = tmp_path_factory.mktemp("guest") / "legacy.elf"
    runtime = [path for path in sorted((GUESTS / "lib").iterdir()) if path.suffix in (".c", ".S")]
    subprocess.run(
        ["gcc", *FLAGS, "-Ilib", "-T",
         GUESTS / "lib" / "elf64.ld", "-o", out, HERE / "legacy_devices.c", *runtime],
        check=True,
        cwd=GUESTS,  # its assembler files include lib/layout.inc
    )  # fmt: skip
    return out


class _Typist(PcTestDev):
    """The test device; a write to its 32 bits makes somebody type."""

    def __init__(self, machine: Machine, keyboard: I8042) -> None:
        super().__init__([machine.wiring.line(n) for n in range(24)])
        self.keyboard = keyboard

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and value == 1:
            self.keyboard.type_text("Hi\n")
        elif offset == 0:
            self.keyboard.tap("f12")
            self.keyboard.tap("x")
        super().write(offset, size, value)


@pytest.mark.parametrize("irqchip", ["kernel", "split"])
def test_legacy_devices(guest: pathlib.Path, irqchip: str) -> None:
    with Machine("32M", irqchip=irqchip) as m:  # type: ignore[arg-type]
        rtc = Cmos(start=START, ram_below_4g=32 << 20)
        m.add_device(rtc, pio=0x70, length=4, irq=8)
        keyboard = I8042(m.wiring.line(1), m.wiring.line(12), m.clock, pace_ms=1)
        m.add_ranges(keyboard)
        tests = _Typist(m, keyboard)
        m.add_ranges(tests, tests.ranges()[:2])
        m.load(guest)
        result = m.run(timeout=60)
        assert bytes(result.serial).decode().splitlines() == [
            "date 2031-2-3",
            "RAM 31744 KiB above 1 MiB",
            "RTC ticks by the PIC",
            "typed: 2a 23 a3 aa 17 97 1c 9c",
            "counter 2 has counted down",
            "I/O APIC with 24 pins",
            "timer and RTC by the I/O APIC",
            "typed: 58 d8 2d ad",
            "a level comes until it ends",
        ], (result.reason, result.report)


@pytest.mark.parametrize("board", ["microvm", "pc"])
@pytest.mark.parametrize("name", ["interrupts", "smp"])
def test_shipped_guests_on_our_own_chips(board: str, name: str) -> None:
    image = images.find(name)
    with Machine(irqchip="split", board=board, cpus=image.cpus) as m:
        m.load(name)
        result = m.run(timeout=60)
        assert result.serial.decode().strip() == image.expect.serial.strip()
