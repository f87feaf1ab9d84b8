"""The ACPI tables: linked, checksummed, and understood by Intel's own compiler and interpreter."""

from __future__ import annotations

import pathlib
import re
import struct
import subprocess
from itertools import pairwise

import pytest
from debian_tools import need

from pykvm.arch.acpi import (
    LEGACY_DEVICES,
    AcpiConfig,
    IrqOverride,
    MmioDevice,
    NumaNode,
    PciConfig,
    PmConfig,
    SleepConfig,
    Window,
    build_tables,
)
from pykvm.arch.errors import ArchError

GIB = 1 << 30
CONFIGS = {
    "pc": AcpiConfig(cpus=range(4), pvpanic=0x505, legacy=frozenset(LEGACY_DEVICES)),
    "numa": AcpiConfig(
        cpus=[*range(66), 255, 300],
        pci=PciConfig(mmio64=Window(1 << 36, 32 * GIB)),
        hpet=0xFED0_0000,
        numa=(
            NumaNode(range(34), [Window(0, GIB)]),
            NumaNode(range(34, 68), [Window(4 * GIB, GIB)]),
        ),
    ),
    "microvm": AcpiConfig(
        cpus=(0, 1), pci=None, fw_cfg=None, legacy=frozenset({"com1"}),
        virtio_mmio=[MmioDevice(0xFEB0_0000 + n * 0x200, 0x200, 16 + n) for n in range(3)],
    ),
    "reduced": AcpiConfig(
        pci=None, fw_cfg=None, pm=None, hardware_reduced=True, legacy=frozenset(),
        sleep=SleepConfig(0x600, 0x601), waet=False,
    ),
    "no link devices": AcpiConfig(pci=PciConfig(ecam=None, lpc_slot=None)),
}  # fmt: skip


def word(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def walk(memory: dict[int, bytes], rsdp: int) -> dict[str, bytes]:
    """Signature → table, as an operating system finds them from the RSDP."""

    def at(gpa: int) -> bytes:
        for base, data in memory.items():
            if base <= gpa < base + len(data):
                return data[gpa - base :]
        raise AssertionError(f"nothing at {gpa:#x}")

    def table(gpa: int) -> bytes:
        data = at(gpa)[: word(at(gpa), 4, 4)]
        if data[:4] != b"FACS":
            assert sum(data) & 0xFF == 0, data[:4]
        return data

    root = at(rsdp)[:36]
    assert root[:8] == b"RSD PTR "
    assert sum(root[:20]) & 0xFF == 0
    assert sum(root) & 0xFF == 0
    old, new = table(word(root, 16, 4)), table(word(root, 24, 8))
    assert (old[:4], new[:4]) == (b"RSDT", b"XSDT")
    pointers = [word(new, n, 8) for n in range(36, len(new), 8)]
    assert pointers == [word(old, n, 4) for n in range(36, len(old), 4)]
    found = {t[:4].decode(): t for t in map(table, pointers)}
    fadt = found["FACP"]
    assert word(fadt, 40, 4) == word(fadt, 140, 8)
    found["DSDT"] = table(word(fadt, 140, 8))
    if word(fadt, 36, 4):
        assert word(fadt, 36, 4) % 64 == 0
        found["FACS"] = table(word(fadt, 36, 4))
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_tables_are_found_from_the_rsdp(name: str) -> None:
    config = CONFIGS[name]
    tables = build_tables(config, 0x7FE0_0000, rsdp_gpa=0xF0010)
    memory = dict(tables.blobs)
    found = walk(memory, tables.rsdp_gpa)
    assert tables.rsdp_gpa == 0xF0010
    assert ("FACS" in found) != config.hardware_reduced
    assert ("MCFG" in found) == (config.pci is not None and config.pci.ecam is not None)
    assert ("SRAT" in found) == ("SLIT" in found) == bool(config.numa)
    assert found == {
        k: v[1] for k, v in tables.tables.items() if k not in ("RSDT", "XSDT", "RSD PTR ")
    }
    ranges = sorted((gpa, gpa + len(data)) for gpa, data in tables.blobs)
    assert all(a[1] <= b[0] for a, b in pairwise(ranges))


def install(files: dict[str, bytes], places: dict[str, int]) -> dict[str, bytearray]:
    """What firmware does with the loader's commands: `places` says where it puts the files."""
    memory: dict[str, bytearray] = {}
    script = files["etc/table-loader"]
    assert len(script) % 128 == 0
    for at in range(0, len(script), 128):
        entry = script[at : at + 128]
        command = word(entry, 0, 4)
        name = entry[4:60].rstrip(b"\0").decode()
        if command == 1:
            align, zone = struct.unpack_from("<IB", entry, 60)
            assert places[name] % align == 0
            assert zone == (2 if "rsdp" in name else 1)
            memory[name] = bytearray(files[name])
        elif command == 2:
            target = entry[60:116].rstrip(b"\0").decode()
            offset, size = struct.unpack_from("<IB", entry, 116)
            value = word(memory[name], offset, size) + places[target]
            memory[name][offset : offset + size] = value.to_bytes(size, "little")
        else:
            assert command == 3
            offset, start, length = struct.unpack_from("<III", entry, 60)
            memory[name][offset] = (
                memory[name][offset] - sum(memory[name][start : start + length])
            ) & 0xFF
    return memory


@pytest.mark.parametrize("name", CONFIGS)
def test_firmware_can_install_them(name: str) -> None:
    tables = build_tables(CONFIGS[name])
    places = {"etc/acpi/tables": 0x3FF_E000, "etc/acpi/rsdp": 0xF5A20}
    memory = install(tables.fw_cfg_files, places)
    found = walk({places[n]: bytes(data) for n, data in memory.items()}, places["etc/acpi/rsdp"])
    direct = walk(dict(tables.blobs), tables.rsdp_gpa)
    assert found.keys() == direct.keys()
    # Only what holds addresses differs from the tables of a direct boot.
    assert all(found[k] == direct[k] for k in found if k != "FACP")


def entries(table: bytes, start: int) -> list[bytes]:
    found = []
    while start < len(table):
        found.append(table[start : start + table[start + 1]])
        start += table[start + 1]
    assert start == len(table)
    return found


def test_the_madt_names_cpus_and_interrupts() -> None:
    tables = build_tables(CONFIGS["numa"]).tables
    found = entries(tables["APIC"][1], 44)
    assert word(tables["APIC"][1], 40, 4) == 1  # 8259s, too
    lapics = [(e[2], e[3], word(e, 4, 4)) for e in found if e[0] == 0]
    assert lapics == [(n, n, 1) for n in range(66)]
    x2apics = [(word(e, 12, 4), word(e, 4, 4), word(e, 8, 4)) for e in found if e[0] == 9]
    assert x2apics == [(66, 255, 1), (67, 300, 1)]
    assert [(e[3], word(e, 4, 4), word(e, 8, 2)) for e in found if e[0] == 2] == [
        (0, 2, 0), (9, 9, 0xD),
    ]  # fmt: skip
    assert [(word(e, 4, 4), word(e, 8, 4)) for e in found if e[0] == 1] == [(0xFEC0_0000, 0)]
    assert [e[2:] for e in found if e[0] == 4] == [b"\xff\0\0\1"]
    assert [word(e, 4, 4) for e in found if e[0] == 10] == [0xFFFFFFFF]


def test_overrides_can_be_given() -> None:
    config = AcpiConfig(overrides=[IrqOverride(9, 9, level=True, low=True)])
    found = entries(build_tables(config).tables["APIC"][1], 44)
    assert [(e[3], word(e, 8, 2)) for e in found if e[0] == 2] == [(9, 0xF)]


def test_numa_tables() -> None:
    tables = build_tables(CONFIGS["numa"]).tables
    found = entries(tables["SRAT"][1], 48)
    cpus = {e[3]: e[2] for e in found if e[0] == 0} | {
        word(e, 8, 4): word(e, 4, 4) for e in found if e[0] == 2
    }
    assert cpus == {**{n: int(n >= 34) for n in range(66)}, 255: 1, 300: 1}
    memory = [(word(e, 2, 4), word(e, 8, 8), word(e, 16, 8)) for e in found if e[0] == 1]
    assert memory == [(0, 0, GIB), (1, 4 * GIB, GIB)]
    slit = tables["SLIT"][1]
    assert word(slit, 36, 8) == 2
    assert slit[44:] == bytes((10, 20, 20, 10))


def test_the_fadt_says_where_the_power_management_is() -> None:
    config = AcpiConfig(pm=PmConfig(event=0xB000, control=0xB004, timer=0xB008, gpe0=0xAFE0))
    fadt = build_tables(config).tables["FACP"][1]
    assert len(fadt) == 276
    assert word(fadt, 46, 2) == 9
    assert [word(fadt, at, 4) for at in (56, 64, 76, 80)] == [0xB000, 0xB004, 0xB008, 0xAFE0]
    assert list(fadt[88:94]) == [4, 2, 0, 4, 16, 0]
    assert [word(fadt, at + 4, 8) for at in (148, 172, 208, 220)] == [
        0xB000, 0xB004, 0xB008, 0xAFE0,
    ]  # fmt: skip
    assert (word(fadt, 120, 8), fadt[128]) == (0xCF9, 6)
    flags = word(fadt, 112, 4)
    assert flags >> 10 & 1  # the reset register is there
    assert not flags >> 4 & 1  # and a power button in fixed hardware
    assert not flags >> 20 & 1


def test_hardware_reduced_machines_have_no_pm_blocks() -> None:
    fadt = build_tables(CONFIGS["reduced"]).tables["FACP"][1]
    assert word(fadt, 112, 4) >> 20 & 1
    assert not any(fadt[56:94])
    assert (word(fadt, 248, 8), word(fadt, 260, 8)) == (0x600, 0x601)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (AcpiConfig(pm=None), "must be hardware_reduced"),
        (AcpiConfig(hardware_reduced=True), "leave pm None"),
        (AcpiConfig(cpus=(1, 1)), "APIC ID of its own"),
        (AcpiConfig(cpus=()), "at least one CPU"),
        (AcpiConfig(numa=(NumaNode((0,), ()), NumaNode((0,), ()))), "in the NUMA nodes"),
        (AcpiConfig(numa=(NumaNode((3,), ()),)), "names CPU 3; there are 1"),
        (AcpiConfig(numa=(NumaNode((0,), ()),), distances=((9,),)), "distance 9"),
        (AcpiConfig(numa=(NumaNode((0,), ()),), distances=((10, 20),)), "1 rows of 1"),
        (AcpiConfig(pci=PciConfig(pins=((32, 0),))), "slots 0 to 31"),
        (AcpiConfig(pci=PciConfig(pins=((3, 4),))), "pins 0 to 3"),
    ],
)
def test_descriptions_that_contradict_themselves(config: AcpiConfig, says: str) -> None:
    with pytest.raises(ArchError, match=says):
        build_tables(config)


def test_addresses_that_do_not_fit() -> None:
    with pytest.raises(ArchError, match="multiple of 64"):
        build_tables(AcpiConfig(), 0x1010)
    with pytest.raises(ArchError, match="below 4 GiB"):
        build_tables(AcpiConfig(), 0xFFFF_FFC0)


def run(*command: str, stdin: str = "") -> str:
    result = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    return result.stdout + result.stderr


@pytest.mark.parametrize("name", CONFIGS)
def test_iasl_takes_them_apart_and_builds_them_again(name: str, tmp_path: pathlib.Path) -> None:
    iasl = need("iasl", package="acpica-tools")
    tables = build_tables(CONFIGS[name]).tables
    for key, (_, data) in tables.items():
        file = tmp_path / f"{key.strip().lower().replace(' ', '-')}.dat"
        file.write_bytes(data)
        said = run(iasl, "-d", str(file))
        assert not re.search(r"warning|error|remark|invalid|unknown", said, re.I), said
        source = file.with_suffix(".dsl")
        assert not source.exists() or "Unknown" not in source.read_text()
        if key == "RSD PTR ":  # has no disassembly to compile
            continue
        said = run(iasl, "-p", str(file.with_suffix("")), str(source))
        assert "Compilation successful. 0 Errors, 0 Warnings, 0 Remarks" in said, said
        if key not in ("DSDT", "FACS"):
            again = file.with_suffix(".aml").read_bytes()
            # All but the checksum and who compiled it.
            assert again[:9] + again[10:28] + again[36:] == data[:9] + data[10:28] + data[36:]


def evaluate(tmp_path: pathlib.Path, config: AcpiConfig, *commands: str) -> str:
    acpiexec = need("acpiexec", package="acpica-tools")
    file = tmp_path / "dsdt.dat"
    file.write_bytes(build_tables(config).tables["DSDT"][1])
    said = run(acpiexec, str(file), stdin="\n".join([*commands, "quit", ""]))
    assert not re.search(r"ACPI (Error|Warning|BIOS)|AE_[A-Z]", said), said
    return said


def integers(text: str) -> list[int]:
    return [int(n, 16) for n in re.findall(r"\[Integer\] = ([0-9A-F]+)", text)]


def test_methods_run_in_acpicas_interpreter(tmp_path: pathlib.Path) -> None:
    config = AcpiConfig(pci=PciConfig(pins=[(s, p) for s in (2, 31) for p in range(4)]))
    said = evaluate(tmp_path, config, "execute \\_PIC 1", "execute \\_SB.PCI0._PRT")
    found = integers(said.split("_PRT")[-1])
    assert len(found) == 2 * 4 * 4
    routes = {(a >> 16, pin): gsi for a, pin, _, gsi in zip(*[iter(found)] * 4, strict=True)}
    assert routes == {(slot, pin): 16 + (slot + pin) % 8 for slot in (2, 31) for pin in range(4)}


def test_pic_mode_routes_through_link_devices(tmp_path: pathlib.Path) -> None:
    config = AcpiConfig(pci=PciConfig(pins=[(2, p) for p in range(4)]))
    said = evaluate(tmp_path, config, "execute \\_PIC 0", "execute \\_SB.PCI0._PRT")
    assert re.findall(r"LNK[A-H]", said)[:4] == ["LNKC", "LNKD", "LNKE", "LNKF"]
    # After _SRS with interrupt 10 the link says so; after _DIS none.
    said = evaluate(
        tmp_path, config,
        "execute \\_SB.LNKC._SRS (23 00 04 18 79 00)", "execute \\_SB.LNKC._CRS",
        "execute \\_SB.LNKC._DIS", "execute \\_SB.LNKC._CRS",
    )  # fmt: skip
    buffers = re.findall(r"0000: ((?:[0-9A-F]{2} ?)+)", said)
    assert [b.split()[1:3] for b in buffers] == [["00", "04"], ["00", "00"]]


def test_the_os_gets_control_of_pci_express(tmp_path: pathlib.Path) -> None:
    uuid = "(5b 4d db 33 f7 1f 1c 40 96 57 74 41 c0 3d d7 66)"
    ask = f"execute \\_SB.PCI0._OSC {uuid} 1 3 (00 00 00 00 00 00 00 00 1f 00 00 00)"
    said = evaluate(tmp_path, AcpiConfig(), ask)
    answer = re.findall(r"0000: ((?:[0-9A-F]{2} )+)", said)[-1].split()
    assert answer[:4] == ["10", "00", "00", "00"]  # not all was granted: bit 1 is SHPC hot plug
    assert answer[8] == "1D"
    other = ask.replace("5b 4d", "00 00")
    said = evaluate(tmp_path, AcpiConfig(), other)
    assert re.findall(r"0000: ((?:[0-9A-F]{2} )+)", said)[-1].split()[0] == "04"


def test_every_device_says_what_it_is(tmp_path: pathlib.Path) -> None:
    config = CONFIGS["pc"]
    said = evaluate(tmp_path, config, "namespace")
    for name in ("COM1", "COM2", "KBD_", "MOU_", "RTC_", "FWCF", "PEVT",
                 "MRES", "PCI0", "C000", "C003", "LNKH"):  # fmt: skip
        assert re.search(rf"\b{name} Device", said), name
    assert "C004" not in said
    few = AcpiConfig(pci=PciConfig(pins=[(3, 0), (3, 1), (11, 0)]))
    links = re.findall(r"\b(LNK[A-H]) Device", evaluate(tmp_path, few, "namespace"))
    assert links == ["LNKD", "LNKE"]
