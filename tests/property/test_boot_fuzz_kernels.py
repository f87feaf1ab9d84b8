"""Every loader fuzzed from valid images: nothing but `ImageError` comes out, and no byte goes
outside the guest. The last test counts the cases of all loader fuzzing in this process."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from boot_fuzzing import CASES, PROMISED, K, M, check, mutated, surroundings
from boot_images import Elf, Seg, Sym, multiboot_elf, multiboot_flat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_images import (
    bzimage,
    compressed,
    multiboot2_elf,
    multiboot2_header,
    pvh_elf,
    tag2,
    vmlinux,
    zboot,
)

from pykvm.boot import ImageError
from pykvm.boot.environment import VGA_TEXT, BootEnvironment
from pykvm.boot.system_map import read_symbols
from pykvm.boot.unpack import compression_of, unpack

_VMLINUX = vmlinux(pvh=16 * M, symbols=[Sym("startup_64", 16 * M), Sym("b", 17 * M, 8)])
_PACKED = compressed(_VMLINUX)
_ADDRESS = tag2(2, struct.pack("<4I", 4 * M, 4 * M, 0, 5 * M)) + tag2(3, struct.pack("<I", 4 * M))
_TAGS = (
    tag2(1, struct.pack("<III", 4, 6, 8)),
    tag2(5, struct.pack("<3I", 800, 600, 32), flags=1),
    tag2(6),
    tag2(10, struct.pack("<4I", 2 * M, 60 * M, 4096, 2)),
)

LINUX = {
    "64-bit entry": bzimage(init_size=4 * M),
    "32-bit entry": bzimage(xloadflags=0),
    "16-bit entry": bzimage(version=0x207, setup=b"\xf4" * 20),
    "zImage": bzimage(version=0x201, loadflags=0),
    "not relocatable": bzimage(relocatable_kernel=0, version=0x20C),
    "raw payload": bzimage(payload=_VMLINUX),
    **{f"{k} payload": bzimage(payload=v + bytes(4)) for k, v in _PACKED.items()},
}
ELF_KERNELS = {
    "vmlinux": _VMLINUX,
    "vmlinux without a note": vmlinux(linux_note=False),
    "vmlinux 32": vmlinux(bits=32),
    "pvh 64": pvh_elf(),
    "pvh 32": pvh_elf(bits=32),
}
MULTIBOOT = {
    "mb1 elf": multiboot_elf(3, symbols=[Sym("a", M)]),
    "mb1 flat": multiboot_flat(b"\xf4" * 20, lead=8, bss=5000),
    "mb1 video": multiboot_flat(struct.pack("<4I", 0, 800, 600, 32), flags=1 << 16 | 4),
    "mb2 elf": multiboot2_elf(*_TAGS, symbols=[Sym("a", M)]),
    "mb2 elf64": multiboot2_elf(bits=64),
    "mb2 flat": multiboot2_header(_ADDRESS) + b"\xf4" * 64,
}
PLAIN = {
    "elf64": Elf([Seg(M, b"\xf4" * 40), Seg(3 * M, b"", mem_size=M)], entry=M).build(),
    "elf32": Elf([Seg(M, b"\xf4" * 40)], entry=M, bits=32, symbols=[Sym("a", M)]).build(),
    "flat": b"\xf4" * 100,
    "boot sector": bytes(510) + b"\x55\xaa",
}
STREAMS = {**_PACKED, "zboot": zboot(_PACKED["gzip"])}
MAP = b"".join(b"%016x %c sym%d\n" % (0xFFFFFFFF81000000 + 16 * n, 84, n) for n in range(40))

programs = st.binary(max_size=30)
settings_of = st.binary(max_size=12)


def fuzzing(name: str, examples: int) -> Any:
    """The settings of a test that runs `examples` cases under `name`."""
    PROMISED[name] = examples
    return settings(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def names(images: dict[str, bytes]) -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(images))


@pytest.mark.parametrize("group", [LINUX, ELF_KERNELS, MULTIBOOT, PLAIN, STREAMS])
def test_the_undamaged_images(group: dict[str, bytes]) -> None:
    for name, data in group.items():
        machine = BootEnvironment(framebuffer=VGA_TEXT)
        assert check(data, 64 * M, count="undamaged", environment=machine) is not None, name


@fuzzing("bzimage", 5000)
@given(names(LINUX), programs, settings_of)
def test_bzimage(name: str, program: bytes, around: bytes) -> None:
    check(mutated(LINUX[name], program, 0x270), count="bzimage", **surroundings(around))


@fuzzing("elf kernels", 4000)
@given(names(ELF_KERNELS), programs, settings_of)
def test_vmlinux_and_pvh(name: str, program: bytes, around: bytes) -> None:
    check(mutated(ELF_KERNELS[name], program, 500), count="elf kernels", **surroundings(around))


@fuzzing("multiboot", 4000)
@given(names(MULTIBOOT), programs, settings_of)
def test_multiboot(name: str, program: bytes, around: bytes) -> None:
    check(mutated(MULTIBOOT[name], program, 240), count="multiboot", **surroundings(around))


@fuzzing("plain", 1500)
@given(names(PLAIN), programs, settings_of)
def test_elf_and_flat(name: str, program: bytes, around: bytes) -> None:
    check(mutated(PLAIN[name], program, 180), count="plain", **surroundings(around))


@fuzzing("compressed", 2000)
@given(names(STREAMS), programs, settings_of)
def test_compressed_kernels(name: str, program: bytes, around: bytes) -> None:
    check(mutated(STREAMS[name], program, 64), count="compressed", **surroundings(around))


@fuzzing("streams", 1500)
@given(names(STREAMS), programs)
def test_compressed_streams_alone(name: str, program: bytes) -> None:
    CASES["streams"] += 1
    data = memoryview(mutated(STREAMS[name], program, 64))
    kind = compression_of(data)
    if kind is None:
        return
    try:
        assert len(unpack("file", data, kind, 4 * M)) <= 4 * M
    except ImageError as error:
        text = str(error)
        assert text.isprintable()


@fuzzing("firmware", 1000)
@given(st.sampled_from([0, 1, 4 * K, 64 * K, 128 * K, 256 * K]), programs, settings_of)
def test_firmware(size: int, program: bytes, around: bytes) -> None:
    options = surroundings(around) | {"format": "firmware"}
    check(mutated(bytes(size), program, 64) or b"x", count="firmware", **options)


@fuzzing("system map", 1000)
@given(programs)
def test_symbol_maps(program: bytes) -> None:
    CASES["system map"] += 1
    try:
        table = read_symbols(mutated(MAP, program, 400) or b"x")
    except ImageError as error:
        text = str(error)
        assert text.isprintable()
        return
    assert all(name.isprintable() for name in table.names)
    table.at(0xFFFFFFFF81000000)


def test_as_many_cases_as_promised_were_run() -> None:
    """Of the tests above that were selected; all together they are at least 20,000."""
    assert sum(PROMISED.values()) >= 20_000
    ran = {name: CASES[name] for name in PROMISED if CASES[name]}
    for name, cases in ran.items():
        assert cases >= PROMISED[name], f"{name}: {cases} cases of {PROMISED[name]}"
    if ran.keys() == PROMISED.keys():
        assert sum(ran.values()) >= 20_000
