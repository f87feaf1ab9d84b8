"""Damaged and hostile images: refused with one sentence, or placed entirely inside guest memory."""

from __future__ import annotations

import resource
import struct
from itertools import pairwise
from typing import Any

import pytest
from boot_fuzzing import EDGES, HIGH, G, K, M
from boot_fuzzing import check as guarded
from boot_images import ET_DYN, Elf, Seg, Sym, multiboot_elf, multiboot_flat
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pykvm.boot import ImageError, LoadedImage
from pykvm.boot.layout import Layout

SYMBOLS = [Sym("_start", M, 4, 0x12), Sym("data", M + 16, 8), Sym("absolute", 7, 0, 0x10, 0xFFF1)]

IMAGES = {
    "elf64": Elf([Seg(M, b"\xf4" * 40)], entry=M, symbols=SYMBOLS).build(),
    "elf32": Elf([Seg(M, b"\xf4" * 40)], entry=M, bits=32, symbols=SYMBOLS).build(),
    "segments": Elf(
        [Seg(M, b"text"), Seg(2 * M, b"", mem_size=5 * M), Seg(9 * M, b"data", mem_size=99)],
        entry=M,
    ).build(),
    "higher half": Elf(
        [Seg(HIGH + M, b"code", paddr=M), Seg(HIGH + 2 * M, b"d", paddr=2 * M, flags=6)],
        entry=HIGH + M,
    ).build(),
    "mapped low": Elf([Seg(0x80000, b"code", paddr=M, mem_size=M)], entry=0x80000).build(),
    "pie": Elf([Seg(0, b"\x90" * 8), Seg(0x1000, b"d")], entry=1, type=ET_DYN).build(),
    "multiboot elf32": multiboot_elf(3, symbols=SYMBOLS),
    "multiboot elf64": multiboot_elf(1, bits=64, symbols=SYMBOLS),
    "multiboot flat": multiboot_flat(b"\xf4" * 20, lead=8, bss=5000),
    "boot sector": bytes(510) + b"\x55\xaa",
    "bzImage": bytes(510) + b"\x55\xaa" + b"\xeb\x66HdrS" + bytes(100),
    "flat": b"\xf4" * 100,
    "gzip": b"\x1f\x8b\x08" + bytes(50),
}

values = st.sampled_from(EDGES) | st.integers(0, (1 << 64) - 1)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An image with some fields overwritten, bytes flipped, and maybe cut or extended."""
    data = bytearray(draw(st.sampled_from(sorted(IMAGES.values()))))
    for _ in range(draw(st.integers(0, 4))):
        # Headers are where it hurts: most damage goes to the first bytes, in aligned fields.
        near = st.integers(0, min(len(data), 200) // 2 - 1).map(lambda n: 2 * n)
        at = draw(near | st.integers(0, len(data) - 1))
        size = draw(st.sampled_from([1, 2, 4, 8]))
        field = (draw(values) & (1 << 8 * size) - 1).to_bytes(size, "little")
        data[at : at + size] = field
    cut = draw(st.none() | st.integers(0, len(data)))
    if cut is not None:
        del data[cut:]
    return bytes(data + draw(st.binary(max_size=8)) * draw(st.sampled_from([0, 0, 1, 50])))


arguments = st.fixed_dictionaries(
    {"memory_size": st.sampled_from([64 * M] * 6 + [4 * K, 64 * K, 640 * K, M + 1, 5 * G])},
    optional={
        "load": values,
        "entry": values,
        "mode": st.sampled_from(["real", "protected", "long"]),
        "format": st.sampled_from(["auto", "flat", "elf", "multiboot"]),
    },
)


def check(data: bytes, memory_size: int, **kwargs: Any) -> LoadedImage | None:
    return guarded(data, memory_size, count="plain images", **kwargs)


common = settings(max_examples=1200, deadline=2000, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", sorted(IMAGES))
def test_the_undamaged_images(name: str) -> None:
    loaded = check(IMAGES[name], 64 * M)
    assert (loaded is None) == (name in ("bzImage", "gzip"))


@common
@given(damaged(), arguments)
@example(b"\x7fELF", {"memory_size": M})
@example(b"\x7fELF\x02", {"memory_size": M})
@example(b"", {"memory_size": M})
def test_damaged_images(data: bytes, kwargs: dict[str, Any]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(data, **kwargs)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * K, f"memory grew by {grown} KiB"


@common
@given(st.data())
def test_hostile_elf_headers(data: st.DataObject) -> None:
    """Every header field drawn at will: nothing but ImageError comes out."""
    bits = data.draw(st.sampled_from([32, 64]))
    top = (1 << bits) - 1
    number = values.map(lambda v: v & top)
    segments = []
    for _ in range(data.draw(st.integers(0, 4))):
        sane = data.draw(st.booleans())
        vaddr = data.draw(number)
        segments.append(
            Seg(
                vaddr,
                data.draw(st.binary(max_size=20)),
                paddr=data.draw(st.sampled_from([vaddr, M, 2 * M, vaddr & 0xFFF | M]) | number),
                mem_size=data.draw(st.none() | number),
                type=data.draw(st.sampled_from([1, 1, 1, 3, 4])),
                flags=data.draw(st.integers(0, 7)),
                offset=None if sane else data.draw(number),
                file_size=None if sane else data.draw(number),
            )
        )
    half = values.map(lambda v: v & 0xFFFF)
    changes = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "type": st.integers(0, 5),
                "machine": st.sampled_from([3, 62, 40]),
                "phoff": number,
                "phentsize": half,
                "phnum": half,
                "shoff": number,
                "shentsize": st.just(64 if bits == 64 else 40),
                "shnum": half,
                "shstrndx": half,
            },
        )
        if data.draw(st.booleans())
        else st.just({})
    )
    places = [s.vaddr for s in segments] + [s.paddr or 0 for s in segments] + [M]
    entry = data.draw(st.sampled_from(places) | number)
    image = Elf(segments, entry=entry, bits=bits, ehdr=changes).build()
    check(image, data.draw(st.sampled_from([64 * M, 2 * M, 6 * G])))


@common
@given(
    st.tuples(*[st.sampled_from([M, M + 8, M + 64, 0, 0x8000, 0xFFFFFFFF]) | values] * 5),
    st.integers(0, 64),
    st.sampled_from([1 << 16, 1 << 16 | 3, 1 << 16 | 4, 0xFFFF0000]),
    st.lists(st.binary(max_size=9000), max_size=3),
    st.text(max_size=50),
)
def test_hostile_multiboot_fields(
    fields: tuple[int, ...], lead: int, flags: int, modules: list[bytes], cmdline: str
) -> None:
    names = ("header_addr", "load_addr", "load_end_addr", "bss_end_addr", "entry_addr")
    changes = {name: value & 0xFFFFFFFF for name, value in zip(names, fields, strict=True)}
    raw = multiboot_flat(b"\xf4" * 50, lead=lead // 4 * 4, flags=flags, **changes)
    image = check(raw, 64 * M, modules=modules, cmdline=cmdline)
    if image is not None:
        assert flags & 4 == 0
        assert "\0" not in cmdline
        segment = image.segments[0]
        assert segment.gpa <= image.entry < segment.gpa + len(segment.data)
        info = image.segments[-1]
        assert info.gpa == image.state.regs["rbx"]
        count, address = struct.unpack_from("<II", info.data, 20)
        assert count == len(modules)
        table = bytes(info.data)[address - info.gpa :]
        for n, module in enumerate(modules):
            start, end = struct.unpack_from("<II", table, 16 * n)
            assert end - start == len(module)
            assert start % 4096 == 0


@common
@given(
    st.lists(st.tuples(values, values.map(lambda v: v % (8 * M))), max_size=8),
    st.lists(st.tuples(st.booleans(), st.integers(1, 3 * M), st.sampled_from([1, 16, 4096]))),
    st.sampled_from([[(0, 64 * M)], [(0, 640 * K), (M, 8 * M), (4 * G, M)], [(0, 5 * G)]]),
)
def test_layout_never_hands_out_a_byte_twice(
    claims: list[tuple[int, int]],
    wishes: list[tuple[bool, int, int]],
    ram: list[tuple[int, int]],
) -> None:
    layout = Layout("k", ram)
    for start, size in claims:
        try:
            layout.claim(start, size, "claim")
        except ImageError:
            continue
    for high, size, align in wishes:
        try:
            gpa = (layout.add_high if high else layout.add)(size, "wish", align=align)
        except ImageError:
            continue
        assert gpa % align == 0
        assert 0x1000 <= gpa <= gpa + size <= 0x9F000 or M <= gpa <= gpa + size <= 4 * G
    for span in layout.taken:
        assert any(a <= span.start < span.end <= a + n for a, n in ram)
    for before, after in pairwise(layout.taken):
        assert before.end <= after.start
