"""Linux's own virtio drivers in our minimal kernels, on any /dev/kvm, also where ring 0 is
emulated, and so with small sizes."""

from __future__ import annotations

import pathlib
import random

import pytest
from linux import disk as ext4
from linux import initramfs
from linux_devices import DRIVERS, MIB, Devices, vsock_program
from linux_guest import section
from linux_virtio import GUEST, HOST, LIST, TRANSFER, boot, network, tree_archive, tree_files

from pykvm import Machine

pytestmark = pytest.mark.boot

BOARDS = ("microvm", "pc")


@pytest.mark.parametrize("board", BOARDS)
def test_disks(board: str, tmp_path: pathlib.Path) -> None:
    """Random data copied from disk to disk; a file system made, filled, and clean."""
    contents = random.Random(3).randbytes(8 << 20)
    target, image = tmp_path / "target", tmp_path / "image"
    target.write_bytes(bytes(len(contents)))
    image.write_bytes(bytes(16 << 20))

    def prepare(machine: Machine) -> None:
        machine.add_disk(contents, readonly=True)
        machine.add_disk(target)
        machine.add_disk(image)

    script = section("found", LIST)
    script += section(
        "copied",
        "dd if=/dev/vda of=/dev/vdb bs=1M iflag=direct oflag=direct && sync"
        " && busybox cmp -n 65536 /dev/vda /dev/vdb && echo same",
    )
    script += section(
        "files",
        "busybox mke2fs /dev/vdc >/dev/null && mount -t ext4 /dev/vdc /mnt"
        " && busybox tar -x -f /tree.tar -C /mnt && sync && umount /mnt && echo unmounted",
    )
    done = boot(board, script, prepare, initramfs.more({"tree.tar": tree_archive()}))
    assert done.section("found").splitlines().count("0x0002 virtio_blk") == 3
    assert "same" in done.section("copied"), done.section("copied")
    assert done.section("files").endswith("unmounted\n")
    assert target.read_bytes() == contents
    assert ext4.check(image) == ""
    for name, data in tree_files().items():
        assert ext4.read(image, name) == data


@pytest.mark.parametrize("board", BOARDS)
def test_net(board: str) -> None:
    with network(TRANSFER) as net:
        script = f"busybox ifconfig lo up; busybox ifconfig eth0 {GUEST} netmask 255.255.255.0 up\n"
        script += section("ping", f"busybox ping -c 3 -i 0.2 {HOST}")
        script += section("pull", f"busybox nc {HOST} 5001 </dev/null >/tmp/got; echo $?")
        script += section("push", f"busybox nc {HOST} 5002 </tmp/got; echo $?")
        done = boot(board, script, net.plug)
    assert "3 packets received" in done.section("ping")
    assert done.section("pull") == done.section("push") == "0\n"
    assert net.received[net.SINK] == net.data


@pytest.mark.parametrize("board", [BOARDS[0], pytest.param(BOARDS[1], marks=pytest.mark.slow)])
def test_other_devices(board: str, tmp_path: pathlib.Path) -> None:
    """All the others, in one boot; 32-bit user space, a balloon of 16 MiB.

    Not pmem's disk: nd_pmem of this kernel refuses the namespace (ENXIO).
    """
    devices = Devices(tmp_path, balloon=16 * MIB, touched=20, nine=True, pmem=False)
    program = initramfs.more({"vsock": vsock_program(tmp_path)})
    try:
        done = boot(
            board,
            devices.script(),
            devices.prepare,
            program,
            drivers=DRIVERS,
            memory="80M",
            on=devices.on,
        )
    finally:
        devices.close()
    devices.check(done)
