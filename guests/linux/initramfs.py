"""Makes initial root file systems: busybox, `init`, and for Debian's own kernels their modules.

    python guests/linux/initramfs.py [--bits 32] [--modules cloud-amd64] [--script FILE] OUTPUT

`--bits 32` takes Debian's i386 busybox: its system calls are `int 0x80` when the kernel is started
with `vdso32=0`, which also works where SYSCALL does not. Uncompressed: unpacking costs ring-0 time.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from linux import packages
from linux.cpio import Archive
from linux.modules import ModuleTree
from linux.packages import BuildError

HERE = pathlib.Path(__file__).resolve().parent
ARCHITECTURES = {32: "i386", 64: "amd64"}
# What `init` and the tests' scripts call by name; everything else as `busybox NAME`.
APPLETS = (
    *("sh", "mount", "umount", "insmod", "cat", "echo", "poweroff", "reboot", "setsid", "cttyhack"),
    *("sync", "dmesg", "ls", "sleep", "grep", "nproc", "uname", "mkdir", "df", "cp", "dd", "date"),
    *("chroot", "switch_root", "devmem", "hwclock", "sha256sum", "head", "stty"),
)
# A disk on either transport with an ext4 file system, the power button, kernel messages.
MODULES = ["virtio_pci", "virtio_mmio", "virtio_blk", "ext4", "button"]


def busybox(bits: int) -> bytes:
    """Debian's static busybox for 32-bit or 64-bit user space."""
    tree = packages.unpacked("busybox-static", architecture=ARCHITECTURES[bits])
    return (tree / "bin/busybox").read_bytes()


def kernel_tree(flavour: str) -> pathlib.Path:
    """The unpacked package of Debian's kernel `flavour`, for instance cloud-amd64."""
    return packages.unpacked(packages.kernel_package(flavour))


def kernel_image(flavour: str) -> pathlib.Path:
    """Debian's bzImage of `flavour`, as it came."""
    return next(kernel_tree(flavour).glob("boot/vmlinuz-*"))


def base(bits: int, modules: dict[str, bytes] | None = None) -> bytes:
    """An initramfs without a script: shell on the console. `modules` are loaded in their order."""
    archive = Archive()
    for name in ("dev", "proc", "sys", "mnt", "tmp", "bin"):
        archive.folder(name)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox(bits), 0o755)
    for name in APPLETS:
        archive.link(f"bin/{name}", "busybox")
    for name, data in (modules or {}).items():
        archive.file(f"modules/{name}.ko", data)
    if modules:
        archive.file("modules/order", "".join(f"{name}\n" for name in modules))
    archive.file("init", (HERE / "init").read_text(), 0o755)
    return archive.done()


def script(text: str) -> bytes:
    """A second archive to join to `base`: `init` runs `text` instead of a shell."""
    archive = Archive()
    archive.file("script", text)
    return archive.done()


def more(files: dict[str, bytes] | None = None, modules: dict[str, bytes] | None = None) -> bytes:
    """A further archive to join: `files` by path, and `modules` to load instead of those in `base`,
    in their order."""
    archive = Archive()
    if modules:
        archive.folder("modules")
        for name, data in modules.items():
            archive.file(f"modules/{name}.ko", data)
        archive.file("modules/order", "".join(f"{name}\n" for name in modules))
    for path, data in (files or {}).items():
        archive.file(path, data, 0o755)
    return archive.done()


def main() -> int:
    parser = argparse.ArgumentParser(description="Make an initramfs.")
    parser.add_argument("--bits", type=int, choices=(32, 64), default=64)
    parser.add_argument("--modules", metavar="FLAVOUR", help="of Debian's kernel: cloud-amd64")
    parser.add_argument("--script", type=argparse.FileType(), help="run this, then switch off")
    parser.add_argument("output", type=pathlib.Path)
    arguments = parser.parse_args()
    try:
        modules = {}
        if arguments.modules:
            modules = ModuleTree(kernel_tree(arguments.modules)).in_order(MODULES)
        data = base(arguments.bits, modules)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.script:
        data += script(arguments.script.read())
    arguments.output.write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
