"""Linux with its root on a virtio disk: read, written, synced, switched off, checked."""

from __future__ import annotations

import pathlib

import pytest
from linux import disk, initramfs
from linux_guest import FRUGAL, Boot, files
from test_linux_stock import boot as boot_stock

pytestmark = pytest.mark.boot

INIT = """#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
mount -t proc proc /proc
echo "root: $(grep -E '^/dev/(root|vda) / ext4 rw' /proc/mounts)"
cat /greeting
echo from the guest >/answer
mkdir /folder && cp /bin/busybox /folder/copy
dd if=/dev/zero of=/zeros bs=64k count=4 2>/dev/null
sync
mount -o remount,ro / && echo "root: read-only"
poweroff -f
"""


def image(folder: pathlib.Path, bits: int) -> pathlib.Path:
    """A small system: busybox, and INIT as the first process."""
    root = folder / "root"
    for name in ("bin", "sbin", "dev", "proc", "mnt"):
        (root / name).mkdir(parents=True)
    (root / "bin/busybox").write_bytes(initramfs.busybox(bits))
    (root / "bin/busybox").chmod(0o755)
    for name in initramfs.APPLETS:
        (root / "bin" / name).symlink_to("busybox")
    (root / "sbin/init").write_text(INIT)
    (root / "sbin/init").chmod(0o755)
    (root / "greeting").write_text("hello from the host\n")
    made = folder / "root.ext4"
    disk.make(made, 32, root)
    return made


def judge(done: Boot, made: pathlib.Path, bits: int) -> None:
    assert "root: read-only" in done.text, done.text[-3000:]
    assert "ext4 rw" in done.text
    assert "hello from the host" in done.text
    assert done.result.exit_code == 0, done.trouble()
    assert disk.check(made) == ""
    assert disk.read(made, "/answer") == b"from the guest\n"
    assert disk.read(made, "/folder/copy") == initramfs.busybox(bits)
    assert disk.read(made, "/zeros") == bytes(4 * 65536)


@pytest.mark.parametrize("board", ["microvm", "pc"])
def test_our_kernel_finds_its_root(board: str, tmp_path: pathlib.Path) -> None:
    """No initramfs: the kernel mounts `root=` itself and starts the disk's /sbin/init."""
    kind = "mmio" if board == "microvm" else "pc"
    made = image(tmp_path, 32)
    done = Boot(
        files()[kind] / "vmlinux",
        script="",
        bits=32,
        append=f"quiet root=/dev/vda rootfstype=ext4 rw {FRUGAL}"
        + (" reboot=t" if kind == "mmio" else ""),
        timeout=300,
        disk=made,
        extra=None,
        board=board,
        memory="48M",
        acpi=kind == "pc",
    )
    judge(done, made, 32)


@pytest.mark.nested
@pytest.mark.parametrize("board", ["microvm", "pc"])
def test_the_stock_kernel_with_its_root_on_a_disk(board: str, tmp_path: pathlib.Path) -> None:
    """As a distribution does it: the initramfs loads the drivers and goes over to the disk."""
    made = image(tmp_path, 64)
    script = (
        "mount -t ext4 -o rw /dev/vda /mnt && umount /proc /sys /dev"
        " && exec switch_root /mnt /sbin/init\n"
    )
    done = boot_stock(board, 2, script, append="root=/dev/vda rw", disk=made)
    assert done.result.reason == "power-off"
    judge(done, made, 64)
