"""Every boot protocol enters a tiny kernel on /dev/kvm, which tells what it finds; BIOS services
answer a real-mode program as a PC's would."""

from __future__ import annotations

import pathlib
import struct
import subprocess

import pytest
from kernel_images import M, bzimage, compressed, multiboot2_elf, pvh_elf, vmlinux

from pykvm import Machine, StopReason
from pykvm.arch.e820 import build_e820
from pykvm.boot import LoadedImage, load_image
from pykvm.boot.environment import BootEnvironment

# mov dx, 0x3f8; next: lodsb; test al, al; jz end; out dx, al; jmp next; end: cli; hlt
PRINT = bytes.fromhex("66ba f803 ac 84c0 7403 ee ebf8 fa f4")
FROM_PARAMS = bytes.fromhex("8b86 28020000 89c6")  # mov eax, [rsi + 0x228]; mov esi, eax
FROM_START_INFO = bytes.fromhex("8b73 18")  # mov esi, [ebx + 24]
FROM_MULTIBOOT2 = bytes.fromhex("8d73 10")  # lea esi, [ebx + 16]: the first tag's string

LINUX = FROM_PARAMS + PRINT
BZIMAGE = bzimage(LINUX.ljust(0x200, b"\x90") + LINUX)
VMLINUX = vmlinux(LINUX.ljust(0x40, b"\x90") + FROM_START_INFO + PRINT, pvh=16 * M + 0x40)


def start(m: Machine, image: bytes, format: str = "auto", **kwargs: object) -> LoadedImage:
    ram = [(r.gpa, r.size) for r in m.memory.regions]
    environment = BootEnvironment(e820=build_e820(ram), cmdline="hello, kernel", **kwargs)  # type: ignore[arg-type]
    loaded = load_image(
        image, memory_size=64 * M, ram=ram, format=format, environment=environment
    )  # fmt: skip
    m.load(b"\xf4", load=0x8000)  # a machine runs what it loaded: here its memory is filled anew
    loaded.place(m.memory)
    loaded.state.apply(m.vcpus[0], None)
    return loaded


@pytest.mark.parametrize(
    ("image", "options", "mode"),
    [
        (BZIMAGE, {}, "long"),
        (BZIMAGE, {"protocol": "64"}, "long"),
        (BZIMAGE, {"protocol": "32"}, "protected"),
        (VMLINUX, {}, "protected"),
        (VMLINUX, {"protocol": "64"}, "long"),
        (vmlinux(LINUX, bits=32), {}, "protected"),
        (bzimage(b"\xf4", payload=compressed(VMLINUX)["zstd"]), {"fast_boot": True}, "long"),
        (compressed(VMLINUX)["lz4 -l"], {"protocol": "pvh"}, "protected"),
        (pvh_elf(code=FROM_START_INFO + PRINT, bits=32), {}, "protected"),
        (multiboot2_elf(code=FROM_MULTIBOOT2 + PRINT), {}, "protected"),
    ],
)
def test_every_entry_finds_its_command_line(
    image: bytes, options: dict[str, object], mode: str
) -> None:
    with Machine("64M") as m:
        loaded = start(m, image, **options)
        assert loaded.mode == mode
        result = m.run(timeout=10)
        assert result.serial == b"hello, kernel"
        assert result.reason is StopReason.HALTED


SETUP = """
        mov     si, 0xe000              # the command line, through int 10h
1:      lodsb
        test    al, al
        jz      2f
        mov     ah, 0x0e
        int     0x10
        jmp     1b
2:      xor     ebx, ebx                # the memory map, to port 0x300
3:      mov     eax, 0xe820
        mov     edx, 0x534d4150
        mov     ecx, 20
        mov     di, 0xd000
        int     0x15
        jc      4f
        mov     si, 0xd000
        mov     dx, 0x300
        mov     cx, 20
        rep outsb
        test    ebx, ebx
        jnz     3b
4:      mov     dx, 0x302               # words, to port 0x302
        int     0x12
        out     dx, ax
        int     0x11
        out     dx, ax
        mov     ax, 0xe801
        int     0x15
        mov     dx, 0x302
        out     dx, ax
        mov     ax, bx
        out     dx, ax
        mov     ah, 0x88
        int     0x15
        out     dx, ax
        mov     ax, 0x2402
        int     0x15
        out     dx, ax
        mov     ah, 0x41                # no disk, no such function: carry is set
        int     0x13
        sbb     ax, ax
        mov     dx, 0x302
        out     dx, ax
        mov     ax, 0x5300
        int     0x15
        sbb     ax, ax
        out     dx, ax
        mov     ah, 1                   # no key waits: ZF
        int     0x16
        setz    al
        mov     ah, 0
        out     dx, ax
        mov     ax, cs                  # segments as the protocol wants them
        out     dx, ax
        mov     ax, ds
        out     dx, ax
        mov     ax, ss
        out     dx, ax
        mov     ax, sp
        out     dx, ax
        sti
5:      mov     ah, 0                   # the timer ticks
        int     0x1a
        test    dx, dx
        jz      5b
        int     0x19                    # nothing to boot from: the end
"""


def assemble(text: str, folder: pathlib.Path) -> bytes:
    """16-bit code as bytes."""
    source, done, raw = folder / "code.S", folder / "code.o", folder / "code.bin"
    source.write_text(f".intel_syntax noprefix\n.code16\n{text}")
    subprocess.run(["as", "--32", "-o", done, source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", done, raw], check=True)
    return raw.read_bytes()


def test_the_16_bit_entry_and_its_bios_services(tmp_path: pathlib.Path) -> None:
    setup = assemble(SETUP, tmp_path)
    with Machine("64M") as m:
        memory_map, words = bytearray(), []
        m.on_pio(0x300, size=1)(lambda access: memory_map.append(access.value))
        m.on_pio(0x302, size=2)(lambda access: words.append(access.value))
        ram = [(r.gpa, r.size) for r in m.memory.regions]
        loaded = start(m, bzimage(setup=setup), protocol="16")
        result = m.run(timeout=10)
        assert result.serial == b"hello, kernel"
        assert result.reason is StopReason.HALTED
    assert loaded.mode == "real"
    expected = [tuple(e) for e in build_e820(ram)]
    assert list(struct.iter_unpack("<QQI", bytes(memory_map))) == expected
    low_kib, equipment, middle, high, extended, a20, disk, apm, no_key, *segments = words
    assert (low_kib, middle, high, extended) == (639, 0x3C00, (64 - 16) * 16, 63 * 1024)
    assert equipment & 0x30 == 0x20, "80 x 25 colour text"
    assert a20 == 1
    assert (disk, apm, no_key) == (0xFFFF, 0xFFFF, 1)
    assert segments == [0x9020, 0x9000, 0x9000, 0xE000]
