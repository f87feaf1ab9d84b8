"""Images of every kind, linked here and run: the guest itself says whether it was loaded right."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from boot_images import Elf, Seg, multiboot_flat

from pykvm import Machine

HERE = Path(__file__).parent
M = 1 << 20
HIGH = 0xFFFFFFFF80000000
OUT_AL = b"\xe6\xf4"  # out 0xf4, al


def run(image: Any, *, memory: str | int = "16M", **options: Any) -> tuple[int, bytes]:
    """The value the guest ended with, and its serial output."""
    with Machine(memory, irqchip="none") as m:
        m.load(image, **options)
        result = m.run(timeout=20)
        assert result.reason == "debug-exit", result.report or result.reason
        return result.value, bytes(result.serial)


def link(folder: Path, source: str, *options: str, script: str = "") -> Path:
    """Assemble and link `source` without a C library."""
    (folder / "guest.S").write_text(source)
    (folder / "guest.ld").write_text(script)
    chosen = [f"-Wl,-T,{folder / 'guest.ld'}"] if script else []
    command = [
        "gcc",
        "-nostdlib",
        "-ffreestanding",
        "-Wl,--build-id=none,-z,noexecstack,--no-warn-rwx-segments",
    ]
    out = folder / "guest"
    subprocess.run([*command, *chosen, *options, "-o", out, folder / "guest.S"], check=True)
    return out


@pytest.mark.parametrize(
    "address", [0x500, 0x1000, 0x8000, 0xFFF8, 0x10000, 0x54321, 0xFFFF8, 0x100000, 0x10FFE0]
)
def test_real_mode_at_any_address(address: int) -> None:
    # call +0; pop ax; shr ax, 4 to have something that depends on IP; mov al, 7; out
    code = b"\xe8\x00\x00\x58\xb0\x07" + OUT_AL
    assert run(code, load=address)[0] == 7


@pytest.mark.parametrize("address", [0x1000, 0xFFF0])
def test_entry_inside_a_flat_image(address: int) -> None:
    code = b"\xb0\x01" + OUT_AL + b"\xb0\x02" + OUT_AL
    assert run(code, load=address, entry=address)[0] == 1
    assert run(code, load=address, entry=address + 4)[0] == 2


def test_boot_sector_gets_its_drive() -> None:
    code = b"\x88\xd0" + OUT_AL  # mov al, dl
    sector = code.ljust(510, b"\x90") + b"\x55\xaa"
    assert run(sector)[0] == 0x80


@pytest.mark.parametrize(("mode", "width"), [("real", 16), ("protected", 32), ("long", 64)])
def test_the_first_stack_works(mode: str, width: int) -> None:
    # call over a ret: push and pop through the stack; inc/dec encodings tell the mode.
    # 31 c0 xor eax, eax; 48 in 16 and 32 bits is dec ax; in 64 bits a REX prefix of the next.
    code = b"\xb0\x10\xe8" + (b"\x04\x00" if width == 16 else b"\x04\x00\x00\x00")
    code += OUT_AL + b"\xf4\xf4" + b"\x04\x01\xc3"  # add al, 1; ret
    assert run(code, mode=mode)[0] == 0x11


def test_flat_long_mode_sees_four_gib() -> None:
    # mov eax, [0x00c00000]: identity-mapped RAM that nothing wrote
    code = b"\x8b\x04\x25\x00\x00\xc0\x00\x04\x05" + OUT_AL
    assert run(code, mode="long")[0] == 5


HIGHER_HALF = """
        .section .text, "ax"
        .globl _start
_start: lea     value(%rip), %rbx
        mov     $value, %rcx            # the linked, sign-extended address
        cmp     %rbx, %rcx
        jne     bad
        mov     (%rcx), %al
        movabs  $(value - 0xffffffff80000000), %rdx
        cmp     %al, (%rdx)             # the same byte through the identity map
        jne     bad
        add     zero(%rip), %al
        out     %al, $0xf4
bad:    mov     $1, %al
        out     %al, $0xf4
        .data
        .skip   5000
value:  .byte   42
        .bss
        .skip   9000
zero:   .byte   0
"""
HIGHER_SCRIPT = """
ENTRY(_start)
PHDRS {{ text PT_LOAD; data PT_LOAD; }}
SECTIONS {{
  . = 0xffffffff80000000 + {base};
  .text : AT(ADDR(.text) - 0xffffffff80000000) {{ *(.text) }} :text
  . = . + {gap};
  .data : AT(ADDR(.data) - 0xffffffff80000000) {{ *(.data) }} :data
  .bss : AT(ADDR(.bss) - 0xffffffff80000000) {{ *(.bss) }} :data
  /DISCARD/ : {{ *(.note*) }}
}}
"""


@pytest.mark.parametrize("base", ["0x100000", "0x200000", "0x123450"])
@pytest.mark.parametrize("gap", ["0", "0x1000", "0x300000"])
def test_higher_half_elf64(tmp_path: Path, base: str, gap: str) -> None:
    script = HIGHER_SCRIPT.format(base=base, gap=gap)
    kernel = link(tmp_path, HIGHER_HALF, "-static", script=script)
    assert run(kernel)[0] == 42


def test_elf64_by_physical_entry() -> None:
    code = b"\xb0\x09" + OUT_AL
    assert run(Elf([Seg(HIGH + M, code, paddr=M)], entry=M).build())[0] == 9


def test_elf32_loaded_low_but_linked_high(tmp_path: Path) -> None:
    source = """
        .globl _start
_start: mov     value - 0xc0000000, %al # no paging: physical
        out     %al, $0xf4
        .data
value:  .byte   43
"""
    script = """
ENTRY(_start)
SECTIONS {
  . = 0xc0100000;
  .text : AT(ADDR(.text) - 0xc0000000) { *(.text) }
  .data : AT(ADDR(.data) - 0xc0000000) { *(.data) }
  /DISCARD/ : { *(.note*) }
}
"""
    assert run(link(tmp_path, source, "-m32", "-static", script=script))[0] == 43


def test_elf_without_page_alignment(tmp_path: Path) -> None:
    source = """
        .globl _start
_start: mov     value(%rip), %al
        add     zero(%rip), %al
        out     %al, $0xf4
        .data
value:  .byte   44
        .bss
        .skip   100000
zero:   .byte   0
"""
    options = ("-static", "-Wl,-N,-Ttext=0x100123")
    assert run(link(tmp_path, source, *options))[0] == 44


def test_position_independent_elf_runs_where_it_is_put(tmp_path: Path) -> None:
    source = """
        .globl _start
_start: lea     _start(%rip), %rax
        shr     $20, %rax
        out     %al, $0xf4
"""
    kernel = link(tmp_path, source, "-static-pie")
    assert run(kernel)[0] == 0
    assert run(kernel, load=7 * M)[0] == 7


def test_16_bit_code_in_elf(tmp_path: Path) -> None:
    source = ".code16\n.globl _start\n_start: mov $0x1234, %ax\nmov %ah, %al\nout %al, $0xf4\n"
    kernel = link(tmp_path, source, "-m32", "-static", "-Wl,-Ttext=0x8000")
    assert run(kernel, mode="real")[0] == 0x12


def test_multiboot_by_address_fields() -> None:
    # eax is the magic: shr eax, 24; out
    assert run(multiboot_flat(b"\xc1\xe8\x18" + OUT_AL, base=0x20000))[0] == 0x2B


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("multiboot") / "kernel"
    script = out.with_suffix(".ld")
    script.write_text(
        "ENTRY(_start)\nSECTIONS { . = 1M; .text : { *(.multiboot) *(.text .rodata*) }\n"
        ".data : { *(.data) } .bss : { *(.bss) } /DISCARD/ : { *(.note* .eh_frame .comment) } }"
    )
    options = ["-m32", "-O1", "-ffreestanding", "-fno-pic", "-fno-stack-protector"]
    link_options = [
        "-nostdlib",
        "-static",
        f"-Wl,-T,{script},--build-id=none,-z,noexecstack,--no-warn-rwx-segments",
    ]
    source = HERE / "multiboot_kernel.c"
    subprocess.run(["gcc", *options, *link_options, "-o", out, source], check=True)
    return out


def test_multiboot_kernel_reads_its_information(kernel: Path, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(bytes(range(256)) * 40)
    code, serial = run(
        kernel, modules=[f"{initrd} ro", (b"\1\2\3", "second module")], cmdline="console=ttyS0 a b"
    )
    assert code == 0x21
    assert serial.decode().splitlines() == [
        "magic=2badb002 flags=26d lower=27f upper=3c00 if=0 pg=0 pe=1 bss=0 ",
        "name=pykvm",
        "cmdline=console=ttyS0 a b",
        f"module=2800 sum={sum(range(256)) * 40:x} aligned=1 {initrd} ro",
        "module=3 sum=6 aligned=1 second module",
        "area=0 length=9fc00 type=1 ",
        "area=9fc00 length=60400 type=2 ",
        "area=100000 length=f00000 type=1 ",
    ]


def test_reset_loads_everything_again(kernel: Path) -> None:
    with Machine("16M", irqchip="none") as m:
        m.load(kernel, modules=[(b"\1\2\3", "m")], cmdline="x")
        first = m.run(timeout=20)
        m.memory.fill(M, M, 0xAA)
        m.reset()
        second = m.run(timeout=20)
        assert first.exit_code == second.exit_code == 0x21 << 1 | 1
        assert bytes(second.serial).endswith(bytes(first.serial))
