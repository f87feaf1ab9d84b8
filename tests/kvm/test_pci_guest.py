"""A guest in C enumerates PCI and drives a virtio disk, on both boards and both transports."""

from __future__ import annotations

import pytest

from pykvm import Machine, images

CONTENTS = bytes((n * 37 + n // 512) & 0xFF for n in range(64 << 10))


def run(board: str, *, ecam: bool = False) -> tuple[list[str], bytes, bytes]:
    """(serial lines, the sector that the guest read, the disk afterwards)"""
    guest = images.find("disk")
    with Machine(board=board, memory="32M") as m:  # type: ignore[arg-type]
        disk = m.add_disk(CONTENTS, serial="tiny")
        m.load("disk")
        guest.patch(m.memory, ecam=int(ecam))
        result = m.run(timeout=30)
        assert result.exit_code == 0, result.report or result.serial
        return (
            result.serial.decode().splitlines(),
            guest.read(m.memory, "sector"),
            disk.backend.read(0, disk.backend.size),
        )


@pytest.mark.parametrize("ecam", [False, True], ids=["ports", "ecam"])
def test_a_disk_by_pci(ecam: bool) -> None:
    lines, sector, after = run("pc", ecam=ecam)
    assert lines[0] == "pci 00:0.0 8086:29c0 class 0x60000"
    assert "pci 00:3.0 1af4:1042 class 0x10000" in lines
    assert "pci 00:1f.0 8086:2918 class 0x60100" in lines
    assert lines[-2:] == ["virtio-pci: 128 sectors", "disk: read, written and read back"]
    check(sector, after)


def test_a_disk_by_mmio() -> None:
    lines, sector, after = run("microvm")
    assert lines == ["virtio-mmio: 128 sectors", "disk: read, written and read back"]
    check(sector, after)


def check(sector: bytes, after: bytes) -> None:
    """Sector 1 has the complement of sector 0; all else is as it was."""
    assert sector == CONTENTS[:512]
    complement = bytes(255 - byte for byte in sector)
    assert after == CONTENTS[:512] + complement + CONTENTS[1024:]
