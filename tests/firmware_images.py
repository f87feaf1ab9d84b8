"""Disk and CD images for firmware to boot, made without root: GRUB, a FAT file system, a kernel.

Built with GRUB's own tools and mtools; `debian_tools` installs what is missing.
"""

from __future__ import annotations

import pathlib
import shutil
import struct
import subprocess

from debian_tools import need, need_file

from pykvm import images

SECTOR = 512
PARTITION = 2048  # first sector of the file system: the gap before it holds GRUB
GRUB = "/usr/lib/grub/i386-pc"
SEABIOS = "/usr/share/seabios/bios-256k.bin"
# What the menu uses; GRUB loads these from the disk, as it does where it was installed.
_MODULES = ("normal", "multiboot", "boot", "echo", "halt", "reboot", "test")

MENU = """
set timeout={timeout}
set default=0
menuentry "first kernel" {{
    multiboot {root}/kernel.elf chosen=first
}}
menuentry "second kernel" {{
    multiboot {root}/kernel.elf chosen=second
}}
"""


def kernel() -> bytes:
    """The shipped multiboot guest: it prints on COM1 what its loader handed over, and halts."""
    return pathlib.Path(images.find("hello-multiboot").path).read_bytes()


def seabios() -> str:
    """SeaBIOS's image from its Debian package."""
    return need_file(SEABIOS, package="seabios")


def run(*command: str) -> None:
    """A tool of the host's; its output is in the error if it fails."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"


def grub_core(folder: pathlib.Path, target: str, prefix: str, *modules: str) -> bytes:
    """GRUB's core image. It is compressed, so it has only what it takes to read the disk."""
    tool = need("grub-mkimage", package="grub-common")
    need_file(f"{GRUB}/boot.img", package="grub-pc-bin")
    out = folder / f"{target}.img"
    run(tool, "-O", target, "-o", str(out), "-p", prefix, "biosdisk", *modules)
    return out.read_bytes()


def grub_modules() -> list[pathlib.Path]:
    """The files of GRUB's module folder: what the menu uses, with all that this depends on."""
    depends = {}
    for line in pathlib.Path(GRUB, "moddep.lst").read_text().splitlines():
        name, _, rest = line.partition(":")
        depends[name] = rest.split()
    wanted: set[str] = set()
    queue = list(_MODULES)
    while queue:
        name = queue.pop()
        if name not in wanted:
            wanted.add(name)
            queue += depends.get(name, [])
    files = [pathlib.Path(GRUB, f"{name}.mod") for name in sorted(wanted)]
    return [file for file in files if file.exists()] + [pathlib.Path(GRUB, "command.lst")]


def grub_disk(folder: pathlib.Path, *, timeout: int = 0, size: int = 8 << 20) -> pathlib.Path:
    """A disk with GRUB in its MBR and gap, and a FAT partition with its menu and the kernel."""
    core = grub_core(folder, "i386-pc", "(hd0,msdos1)/boot/grub", "part_msdos", "fat")
    need("mformat", package="mtools")
    fat = folder / "fat.img"
    sectors = size // SECTOR - PARTITION
    fat.write_bytes(bytes(sectors * SECTOR))
    (folder / "grub.cfg").write_text(MENU.format(timeout=timeout, root="(hd0,msdos1)"))
    (folder / "kernel.elf").write_bytes(kernel())
    run("mformat", "-i", str(fat), "-T", str(sectors), "-h", "16", "-s", "63", "::")
    run("mmd", "-i", str(fat), "::/boot", "::/boot/grub", "::/boot/grub/i386-pc")
    run("mcopy", "-i", str(fat), *map(str, grub_modules()), "::/boot/grub/i386-pc/")
    run("mcopy", "-i", str(fat), str(folder / "grub.cfg"), "::/boot/grub/grub.cfg")
    run("mcopy", "-i", str(fat), str(folder / "kernel.elf"), "::/kernel.elf")
    disk = folder / "disk.img"
    disk.write_bytes(_boot_sector(sectors) + _embedded(core) + fat.read_bytes())
    return disk


def _boot_sector(sectors: int) -> bytes:
    """GRUB's boot.img with a partition table: one active FAT partition."""
    sector = bytearray(pathlib.Path(GRUB, "boot.img").read_bytes())
    assert len(sector) == SECTOR
    struct.pack_into("<Q", sector, 0x5C, 1)  # core.img's first sector
    sector[0x66:0x68] = b"\x90\x90"  # trust the drive number that the firmware gives
    entry = struct.pack("<8BII", 0x80, 0, 33, 0, 0x0E, 0, 0, 0, PARTITION, sectors)
    sector[446 : 446 + 64] = entry + bytes(48)
    sector[510:512] = b"\x55\xaa"
    return bytes(sector)


def _embedded(core: bytes) -> bytes:
    """core.img in the gap between MBR and partition; its first sector knows how long it is."""
    gap = (PARTITION - 1) * SECTOR
    assert len(core) <= gap
    image = bytearray(core)
    start, _, count, segment = struct.unpack_from("<IIHH", image, 0x1F4)
    assert (start, segment) == (2, 0x820)
    assert count == -(-len(core) // SECTOR) - 1
    return bytes(image) + bytes(gap - len(image))


def grub_cdrom(folder: pathlib.Path, *, timeout: int = 0) -> pathlib.Path:
    """An El Torito CD image: GRUB without emulation, the menu and the kernel in ISO 9660."""
    tool = need("xorriso", package="xorriso")
    root = folder / "iso"
    (root / "boot" / "grub" / "i386-pc").mkdir(parents=True)
    core = grub_core(folder, "i386-pc-eltorito", "(cd)/boot/grub", "iso9660")
    for file in grub_modules():
        shutil.copy(file, root / "boot" / "grub" / "i386-pc")
    (root / "boot" / "eltorito.img").write_bytes(core)
    (root / "boot" / "grub" / "grub.cfg").write_text(MENU.format(timeout=timeout, root="(cd)"))
    (root / "kernel.elf").write_bytes(kernel())
    image = folder / "cd.iso"
    run(
        tool, "-as", "mkisofs", "-quiet", "-o", str(image), "-b", "boot/eltorito.img",
        "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", str(root),
    )  # fmt: skip
    return image
