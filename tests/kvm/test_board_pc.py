"""The pc board as 16-bit guests see it: power, resets, panics, PCI, screen, keyboard, RAM."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from debian_tools import need_file

from pykvm import Machine, RunResult, Status, StopReason
from pykvm.machine import MachineError
from pykvm.machine.boards import layout

HALT = b"\xfa\xf4"
SPIN = b"\xeb\xfe"
SAY = 0x10  # the port by which the guests below talk to the test


def out(port: int, value: int, size: int = 1) -> bytes:
    """16-bit code: OUT of a constant."""
    load = {
        1: b"\xb0" + struct.pack("<B", value & 0xFF),
        2: b"\xb8" + struct.pack("<H", value & 0xFFFF),
        4: b"\x66\xb8" + struct.pack("<I", value & 0xFFFFFFFF),
    }[size]
    return b"\xba" + struct.pack("<H", port) + load + {1: b"\xee", 2: b"\xef", 4: b"\x66\xef"}[size]


def tell(port: int, size: int = 1) -> bytes:
    """16-bit code: IN from a port, and OUT of the same to `SAY`."""
    read = {1: b"\xec", 2: b"\xed", 4: b"\x66\xed"}[size]
    write = {1: b"\xe6", 2: b"\xe7", 4: b"\x66\xe7"}[size]
    return b"\x66\x31\xc0\xba" + struct.pack("<H", port) + read + write + bytes([SAY])


POWER_OFF = out(layout.PM_CONTROL, 1 << 13 | 7 << 10, 2)
RESETS = {
    "0xcf9": out(layout.RESET_CONTROL, 2) + out(layout.RESET_CONTROL, 6),
    "0x64": out(layout.KEYBOARD_COMMAND, 0xFE),
    "0x92": out(layout.PORT_92, 1),
}


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine("4M", board="pc") as m:
        yield m


def said(machine: Machine, code: bytes) -> tuple[list[int], RunResult]:
    """What a guest wrote to `SAY` before it ended."""
    told: list[int] = []
    machine.load(code + HALT, load=0x1000, entry=0x1000)

    @machine.on_pio(SAY)
    def say(access: object) -> None:
        told.append(access.value)  # type: ignore[attr-defined]

    result = machine.run(timeout=10)
    say.remove()
    return told, result


def test_power_off_ends_cleanly(machine: Machine) -> None:
    machine.load(POWER_OFF + SPIN)
    result = machine.run(timeout=10)
    assert result.reason is StopReason.POWER_OFF
    assert result.exit_code == 0
    assert machine.status is Status.HALTED


@pytest.mark.parametrize("way", RESETS)
def test_every_way_to_reset(machine: Machine, way: str) -> None:
    machine.load(RESETS[way] + SPIN)
    result = machine.run(timeout=10)
    assert result.reason is StopReason.RESET
    assert result.exit_code == 0
    machine.reset()
    assert machine.run(timeout=10).reason is StopReason.RESET  # edges count anew


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_guest_that_resets_starts_again(cpus: int) -> None:
    # in al, SAY; test al, al; jz reset; power off
    code = b"\xe4" + bytes([SAY]) + b"\x84\xc0\x74" + bytes([len(POWER_OFF) + 2])
    code += POWER_OFF + SPIN + RESETS["0xcf9"] + SPIN
    boots = []
    with Machine("4M", board="pc", cpus=cpus) as m:
        m.load(code)

        @m.on_pio(SAY)
        def boot(access: object) -> None:
            boots.append(m.memory.read_u32(0x8000))
            m.memory.write_u32(0x8000, 0x1234)  # lost in the reset
            access.value = len(boots) > 3  # type: ignore[attr-defined]

        result = m.run(timeout=20, reboot=True)
        assert result.reason is StopReason.POWER_OFF
        assert result.resets == 3
        assert boots == [0] * 4


def test_a_restart_can_be_stopped(machine: Machine) -> None:
    machine.load(b"\xe6" + bytes([SAY]) + RESETS["0xcf9"] + SPIN)
    boots = []

    @machine.on_pio(SAY)
    def boot(access: object) -> None:
        boots.append(1)
        if len(boots) == 3:
            machine.stop()

    assert machine.run(timeout=20, reboot=True).reason is StopReason.STOPPED
    assert len(boots) == 3


def test_a_timeout_counts_over_restarts(machine: Machine) -> None:
    machine.load(RESETS["0xcf9"] + SPIN)
    result = machine.run(timeout=0.3, reboot=True)
    assert result.reason is StopReason.TIMEOUT
    assert result.resets


def test_pvpanic_is_a_panic(machine: Machine) -> None:
    machine.load(out(layout.PVPANIC, 1) + SPIN)
    result = machine.run(timeout=10)
    assert result.reason is StopReason.PANIC
    assert result.exit_code == 126
    assert machine.status is Status.CRASHED


def test_pci_functions_are_there(machine: Machine) -> None:
    def identity(slot: int, function: int = 0) -> bytes:
        address = 1 << 31 | slot << 11 | function << 8
        return out(layout.PCI_CONFIG, address, 4) + tell(layout.PCI_CONFIG + 4, 4)

    told, _ = said(machine, identity(0) + identity(2) + identity(0x1F) + identity(5))
    assert told == [0x29C08086, 0x11111234, 0x29188086, 0xFFFFFFFF]


def test_bars_are_assigned_again_after_a_reset(machine: Machine) -> None:
    bar = out(layout.PCI_CONFIG, 1 << 31 | 2 << 11 | 0x10, 4) + tell(layout.PCI_CONFIG + 4, 4)
    forget = bar + out(layout.PCI_CONFIG + 4, 0, 4)
    first, _ = said(machine, forget)
    machine.reset()
    again, _ = said(machine, forget)
    assert first == again
    assert layout.PCI_WINDOW <= first[0] & ~0xF < layout.PCI_WINDOW + layout.PCI_WINDOW_SIZE


def test_the_screen_shows_what_the_guest_writes(machine: Machine) -> None:
    # mov ax, 0xb800; mov es, ax; mov word es:[0], 'H'; mov word es:[2], 'i'
    code = b"\xb8\x00\xb8\x8e\xc0\x26\xc7\x06\x00\x00H\x07\x26\xc7\x06\x02\x00i\x07"
    machine.load(code + HALT)
    machine.run(timeout=10)
    assert machine.screen.text().startswith("Hi")
    machine.reset()
    assert machine.screen.text().strip() == ""


def test_the_vga_window_is_no_memory(machine: Machine) -> None:
    assert not machine.memory.contains(layout.VGA_WINDOW, 1)
    assert machine.memory.contains(layout.VGA_WINDOW_END, 1)
    assert machine.memory_size == 4 << 20


def test_typed_keys_arrive(machine: Machine) -> None:
    # wait: in al, 0x64; test al, 1; jz wait; then the data
    wait = b"\xe4\x64\xa8\x01\x74\xfa" + tell(layout.KEYBOARD_DATA)
    machine.load(wait * 2 + HALT, load=0x1000, entry=0x1000)
    machine.keyboard.type_text("a")
    told = []

    @machine.on_pio(SAY)
    def say(access: object) -> None:
        told.append(access.value)  # type: ignore[attr-defined]

    machine.run(timeout=10)
    assert told == [0x1E, 0x9E]


def test_the_power_button_is_seen_by_who_listens(machine: Machine) -> None:
    assert machine.press_power_button() is False
    listen = out(layout.PM_CONTROL, 1, 2) + out(layout.PM_EVENT + 2, 1 << 8, 2)
    told, _ = said(machine, listen + tell(layout.PM_EVENT, 2) + tell(layout.PM_EVENT + 2, 2))
    assert told == [1 << 8, 1 << 8]  # the press from before the start is still there
    assert machine.press_power_button() is True


def test_rtc_debug_ports_and_fw_cfg_answer(machine: Machine) -> None:
    valid = out(layout.RTC, 0x0D) + tell(layout.RTC + 1)
    signature = out(layout.FW_CFG, 0, 2) + tell(layout.FW_CFG + 1) * 4
    told, result = said(machine, valid + signature + out(layout.FIRMWARE_DEBUG, ord("x")))
    assert told[0] == 0x80
    assert bytes(told[1:]) == b"QEMU"
    assert result.debugcon == b"x"


def test_what_other_boards_lack_is_said() -> None:
    with Machine("1M") as m:
        for what in ("screen", "keyboard"):
            with pytest.raises(MachineError, match='use board="pc"'):
                getattr(m, what)
        with pytest.raises(MachineError, match="power button"):
            m.press_power_button()
        with pytest.raises(MachineError, match="no IDE"):
            m.add_disk(bytes(4096), interface="ide")
    with Machine("1M", board="bare") as m, pytest.raises(MachineError, match="bare"):
        m.add_disk(bytes(4096))
    with pytest.raises(MachineError, match="microvm, pc or bare"):
        Machine("1M", board="toaster")


def test_ide_and_virtio_disks_are_on_the_bus() -> None:
    with Machine("4M", board="pc") as m:
        m.add_disk(bytes(1 << 20))
        m.add_disk(bytes(1 << 20), interface="ide")
        m.add_disk(bytes(1 << 20), interface="cdrom")

        def identity(slot: int, function: int) -> bytes:
            address = 1 << 31 | slot << 11 | function << 8
            return out(layout.PCI_CONFIG, address, 4) + tell(layout.PCI_CONFIG + 4, 4)

        told, _ = said(m, identity(3, 0) + identity(0x1F, 1))
        assert told == [0x10421AF4, 0x70108086]
        m.add_disk(bytes(1 << 20), interface="ide")
        m.add_disk(bytes(1 << 20), interface="ide")
        with pytest.raises(MachineError, match="four IDE drives"):
            m.add_disk(bytes(1 << 20), interface="cdrom")


def test_tables_are_where_old_kernels_look() -> None:
    from kernel_images import pvh_elf

    with Machine("32M", board="pc", cpus=2) as m:
        m.load(pvh_elf(), cmdline="quiet")
        assert m.memory.read(layout.BIOS_AREA, 8) == b"RSD PTR "
        bios = m.memory.read(0xF0000, 0x10000)
        assert b"_MP_" in bios
        assert b"_SM_" in bios
        m.reset()
        assert m.memory.read(layout.BIOS_AREA, 8) == b"RSD PTR "
    with Machine("32M", board="pc", acpi=False) as m:
        m.load(pvh_elf(), cmdline="quiet")
        assert m.memory.read(layout.BIOS_AREA, 8) == bytes(8)


def test_memory_above_4_gib() -> None:
    with Machine("4G", board="pc") as m:
        assert m.memory_size == 4 << 30
        assert m.memory.contains(layout.HIGH_RAM, 4096)
        assert not m.memory.contains(layout.FIRMWARE_ECAM, 1)


ROM = b"\xf4" * 0xFFF0 + b"\xfa\xf4".ljust(16, b"\x90")  # 64 KiB that sleep at the reset vector


def test_firmware_is_read_only_memory_and_finds_its_files() -> None:
    with Machine("16M", board="pc", cpus=2) as m:
        m.add_disk(bytes(1 << 20))
        m.add_disk(bytes(1 << 20), interface="cdrom")
        m.load(ROM, format="firmware", boot_menu=True)
        assert m.run(timeout=10).reason is StopReason.HALTED
        fw = m.board.fw_cfg  # type: ignore[attr-defined]
        order = fw.contents("bootorder").rstrip(b"\0").decode().splitlines()
        assert order == ["/pci@i0cf8/scsi@3/disk@0,0", "/pci@i0cf8/ide@1f,1/drive@1/disk@0"]
        assert len(fw.contents("etc/e820")) % 20 == 0
        assert b"FACP" in fw.contents("etc/acpi/tables")
        assert fw.contents(0x05) == b"\x02\x00"  # CPUs
        before = fw.contents("etc/acpi/tables")
        m.board.host.place_ecam(layout.FIRMWARE_ECAM)  # type: ignore[attr-defined]
        after = fw.contents("etc/acpi/tables")
        assert before != after  # they follow
        assert len(before) == len(after)
        # Another image afterwards: no ROM is left, and configuration space is back.
        m.load(HALT)
        assert m.run(timeout=10).reason is StopReason.HALTED
        assert m.vm.region_at(0xFFFF_FFF0) is None
        assert m.board.ecam == (layout.ECAM, layout.ECAM_SIZE)


def test_firmware_gets_a_kernel() -> None:
    from kernel_images import bzimage

    need_file("/usr/share/qemu/linuxboot_dma.bin", package="qemu-system-data")
    with Machine("64M", board="pc") as m:
        with pytest.raises(MachineError, match="only together with a kernel"):
            m.load(ROM, format="firmware", cmdline="quiet")
        m.load(ROM, format="firmware", kernel=bzimage(), cmdline="quiet")
        fw = m.board.fw_cfg  # type: ignore[attr-defined]
        assert fw.contents(0x15) == b"quiet\0"
        assert fw.contents("bootorder").startswith(b"/rom@genroms/")
