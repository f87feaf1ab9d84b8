from __future__ import annotations

import pytest

from pykvm.arch import bits
from pykvm.arch.bits import CR0, CR4, EFER, PTE, RFLAGS, Bits, PageFault

TYPES = [t for t in vars(bits).values() if isinstance(t, type) and issubclass(t, Bits)]


@pytest.mark.parametrize("kind", [t for t in TYPES if t is not Bits], ids=lambda t: t.__name__)
def test_every_named_bit_is_one_bit_with_a_meaning(kind: type[Bits]) -> None:
    members = list(kind)
    assert members
    for member in members:
        assert int(member).bit_count() == 1, member.name
        assert member.meaning, member.name
        assert "\n" not in member.meaning


def test_bit_positions_of_the_manual() -> None:
    assert (CR0.PE, CR0.WP, CR0.NW, CR0.CD, CR0.PG) == (1, 1 << 16, 1 << 29, 1 << 30, 1 << 31)
    assert (CR4.PSE, CR4.PAE, CR4.PGE, CR4.LA57) == (1 << 4, 1 << 5, 1 << 7, 1 << 12)
    assert (*(1 << 17, 1 << 18, 1 << 20, 1 << 21, 1 << 23),) == (
        CR4.PCIDE,
        CR4.OSXSAVE,
        CR4.SMEP,
        CR4.SMAP,
        CR4.CET,
    )
    assert (*(1, 1 << 8, 1 << 10, 1 << 11, 1 << 12),) == (
        EFER.SCE,
        EFER.LME,
        EFER.LMA,
        EFER.NXE,
        EFER.SVME,
    )
    assert (RFLAGS.IF, RFLAGS.VM, RFLAGS.AC, RFLAGS.ID) == (1 << 9, 1 << 17, 1 << 18, 1 << 21)
    assert (PTE.PS, PTE.G, PTE.PAT_LARGE, PTE.XD) == (1 << 7, 1 << 8, 1 << 12, 1 << 63)
    assert (PageFault.RSVD, PageFault.ID, PageFault.PK) == (8, 16, 32)


def test_flags_print_by_name_and_keep_unnamed_bits() -> None:
    value = CR0(0x80000011 | 1 << 7)
    assert int(value) == 0x80000091
    assert value.names() == ["PE", "ET", "bit7", "PG"]
    assert str(value) == "PE|ET|bit7|PG"
    assert repr(value) == "CR0(0x80000091: PE|ET|bit7|PG)"
    assert str(CR0(0)) == "0"
    assert CR0(1 << 40).names() == ["bit40"]


def test_meaning_of_a_combination_is_empty() -> None:
    assert (CR0.PE | CR0.PG).meaning == ""
    assert CR0.PG.meaning.startswith("Paging")


def test_flags_are_plain_integers_in_arithmetic() -> None:
    assert CR0.PE | 0x10 == 0x11
    assert f"{int(CR0.PG):#x}" == "0x80000000"
    assert ~EFER.LME & 0xFFF == 0xEFF
