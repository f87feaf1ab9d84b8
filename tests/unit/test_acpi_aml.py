"""The AML encoder: every term's bytes against the specification's encodings."""

from __future__ import annotations

import pytest

from pykvm.arch.acpi import aml, resources
from pykvm.arch.errors import ArchError


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("_HID", b"_HID"),
        ("A", b"A___"),
        ("\\", b"\\\0"),
        ("\\_SB", b"\\_SB_"),
        ("^^LNKA", b"^^LNKA"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("_SB.PCI0.ISA", b"\x2f\x03_SB_PCI0ISA_"),
    ],
)
def test_names(path: str, expected: bytes) -> None:
    assert aml.name_string(path) == expected


@pytest.mark.parametrize("path", ["TOOLONG", "1ABC", "lower", "A..B", "A B", ".A"])
def test_what_is_no_name(path: str) -> None:
    with pytest.raises(ArchError, match="is not an ACPI name"):
        aml.name_string(path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, b"\0"),
        (1, b"\1"),
        (2, b"\x0a\x02"),
        (0xFF, b"\x0a\xff"),
        (0x100, b"\x0b\0\x01"),
        (0x10000, b"\x0c\0\0\x01\0"),
        (1 << 32, b"\x0e\0\0\0\0\x01\0\0\0"),
        ((1 << 64) - 1, b"\x0e" + b"\xff" * 8),
    ],
)
def test_integers(value: int, expected: bytes) -> None:
    assert aml.integer(value) == expected


@pytest.mark.parametrize("value", [-1, 1 << 64])
def test_integers_that_aml_has_not(value: int) -> None:
    with pytest.raises(ArchError, match="no AML integer"):
        aml.integer(value)


@pytest.mark.parametrize("length", [0, 62, 63, 4093, 4094, 1 << 12, (1 << 20) - 4, 1 << 20])
def test_a_package_length_counts_itself(length: int) -> None:
    raw = aml.package_length(length)
    extra = raw[0] >> 6
    assert len(raw) == extra + 1
    if extra:
        total = raw[0] & 15 | int.from_bytes(raw[1:], "little") << 4
        assert not raw[0] & 0x30
    else:
        total = raw[0]
    assert total == length + len(raw)


def test_a_package_that_is_too_long() -> None:
    with pytest.raises(ArchError, match="longer"):
        aml.package_length(1 << 28)
    with pytest.raises(ArchError, match="255 elements"):
        aml.package(*[0] * 256)


def test_eisa_ids_are_compressed() -> None:
    # The specification's own example, 19.6.35: PNP0A03 is 0x030AD041.
    assert aml.eisa_id("PNP0A03") == b"\x0c" + (0x030AD041).to_bytes(4, "little")
    with pytest.raises(ArchError, match="EISA"):
        aml.eisa_id("QEMU0002")


def test_a_uuid_is_mixed_endian() -> None:
    raw = aml.uuid("33DB4D5B-1F00-401C-9657-7441C03DD766")
    assert raw.endswith(bytes.fromhex("5b4ddb33001f1c4096577441c03dd766"))
    with pytest.raises(ArchError, match="UUID"):
        aml.uuid("33DB4D5B")


def test_methods_and_scopes_nest() -> None:
    body = aml.scope("\\_SB", aml.device("DEV0", aml.name("_UID", 5)))
    inner = b"\x5b\x82" + bytes([1 + 4 + 7]) + b"DEV0" + b"\x08_UID\x0a\x05"
    assert body == b"\x10" + bytes([1 + 5 + len(inner)]) + b"\\_SB_" + inner
    method = aml.method("_STA", 0, aml.return_(0x0F), serialized=True)
    assert method == b"\x14" + bytes([1 + 4 + 1 + 3]) + b"_STA" + b"\x08" + b"\xa4\x0a\x0f"
    with pytest.raises(ArchError, match="7 arguments"):
        aml.method("M", 8)


def test_fields_skip_what_has_no_name() -> None:
    raw = aml.fields("REG", aml.BYTE_ACCESS, ("AAAA", 8), ("", 32), ("BBBB", 100))
    assert raw == b"\x5b\x81\x13REG_\x01AAAA\x08\x00\x20BBBB" + bytes([0x40 | 100 & 15, 100 >> 4])


def test_texts_are_plain() -> None:
    assert aml.text("ACPI0007") == b"\x0dACPI0007\0"
    with pytest.raises(ArchError, match="ASCII"):
        aml.text("é")


def test_resource_descriptors() -> None:
    assert resources.io(0x3F8, 8) == bytes.fromhex("4701f803f8030108")
    assert resources.irq(4) == bytes.fromhex("221000")
    assert resources.memory32_fixed(0xFEB00000, 0x200) == bytes.fromhex("860900010000b0fe00020000")
    assert resources.interrupt(16) == bytes.fromhex("890600010110000000")
    assert resources.bus_range(0, 255) == bytes.fromhex("880d00020c0000000000ff0000000001")
    raw = resources.template(resources.irq(1))
    assert raw == b"\x11\x08\x0a\x05" + b"\x22\x02\x00" + b"\x79\x00"


@pytest.mark.parametrize(
    "make",
    [
        lambda: resources.memory32_fixed(0xFFFFF000, 0x2000),
        lambda: resources.io_range(0, 0x10000),
        lambda: resources.memory_range32(1 << 32, (1 << 32) + 5),
        lambda: resources.memory_range64(6, 5),
    ],
)
def test_ranges_that_do_not_fit(make: object) -> None:
    assert callable(make)
    with pytest.raises(ArchError, match="does not fit"):
        make()
