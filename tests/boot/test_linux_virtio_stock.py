"""The virtio drivers of Debian's own kernel, in full sizes, where ring 0 is a processor's."""

from __future__ import annotations

import pathlib
import subprocess

import pytest
from linux import disk as ext4
from linux import initramfs
from linux.modules import ModuleTree
from linux_devices import DRIVERS, Devices, vsock_program
from linux_guest import Boot, files, section
from linux_virtio import GUEST, HOST, LIST, network, tree_archive, tree_files

from pykvm import Machine

pytestmark = [pytest.mark.boot, pytest.mark.nested]

BOARDS = ("microvm", "pc")
MIB = 1 << 20


def boot(
    board: str, script: str, drivers: list[str], extra: bytes = b"", **options: object
) -> Boot:
    """The stock kernel with these modules loaded, and the devices that `prepare` adds."""
    tree = ModuleTree(files()["stock"].parents[1])
    modules = tree.in_order([*initramfs.MODULES, *drivers])
    done = Boot(
        files()["stock"],
        script=script,
        bits=64,
        append="quiet nowatchdog rcupdate.rcu_cpu_stall_suppress=1",
        timeout=400,
        load={"fast_boot": True},
        board=board,
        memory="384M",
        extra=initramfs.more({}, modules) + extra,
        **options,  # type: ignore[arg-type]
    )
    assert done.result.exit_code == 0, done.trouble()
    return done


@pytest.mark.parametrize("board", BOARDS)
def test_disks(board: str, tmp_path: pathlib.Path) -> None:
    """64 MiB of random data: written, synced, read back, the same; a file system that is clean."""
    target, image = tmp_path / "target", tmp_path / "image"
    for path in (target, image):
        with path.open("wb") as file:
            file.truncate(64 * MIB)

    def prepare(machine: Machine) -> None:
        machine.add_disk(target, serial="pykvm-64")
        machine.add_disk(image)

    script = section("found", LIST) + section("serial", "cat /sys/block/vda/serial; echo")
    script += section(
        "data",
        "dd if=/dev/urandom of=/tmp/data bs=1M count=64 2>/dev/null; sha256sum </tmp/data"
        "; dd if=/tmp/data of=/dev/vda bs=1M 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches"
        "; rm /tmp/data; sha256sum </dev/vda",
    )
    script += section(
        "files",
        "busybox mke2fs /dev/vdb >/dev/null && mount -t ext4 /dev/vdb /mnt"
        " && busybox tar -x -f /tree.tar -C /mnt && sync && umount /mnt && echo unmounted",
    )
    done = boot(
        board, script, [], initramfs.more({"tree.tar": tree_archive()}), prepare=prepare, cpus=2
    )
    assert done.section("found").splitlines().count("0x0002 virtio_blk") == 2
    assert done.section("serial").strip() == "pykvm-64"
    written, read = done.section("data").split()[::2]
    assert written == read
    told = subprocess.run(["sha256sum", target], capture_output=True, text=True, check=True)
    assert told.stdout.split()[0] == written
    assert done.section("files").endswith("unmounted\n")
    assert ext4.check(image) == ""
    for name, data in tree_files().items():
        assert ext4.read(image, name) == data


@pytest.mark.parametrize("board", BOARDS)
def test_net(board: str) -> None:
    """Ping, and 50 MiB of TCP each way over a TAP."""
    with network(50 * MIB) as net:
        script = f"busybox ifconfig lo up; busybox ifconfig eth0 {GUEST} netmask 255.255.255.0 up\n"
        script += section("ping", f"busybox ping -c 3 -i 0.2 {HOST}")
        script += section("pull", f"busybox nc {HOST} 5001 </dev/null >/tmp/got; echo $?")
        script += section("push", f"busybox nc {HOST} 5002 </tmp/got; echo $?")
        done = boot(board, script, ["virtio_net"], prepare=net.plug)
    assert "3 packets received" in done.section("ping")
    assert done.section("pull") == done.section("push") == "0\n"
    assert net.received[net.SINK] == net.data


@pytest.mark.parametrize("board", BOARDS)
def test_other_devices(board: str, tmp_path: pathlib.Path) -> None:
    """Entropy, consoles, pmem, a shared folder, vsock both ways, a balloon that takes 128 MiB, 128
    MiB of memory plugged and unplugged. Debian's cloud kernel has no 9p."""
    devices = Devices(tmp_path, balloon=128 * MIB, touched=200, nine=False, pmem=True)
    program = initramfs.more({"vsock": vsock_program(tmp_path)})
    try:
        done = boot(
            board, devices.script(), DRIVERS, program, prepare=devices.prepare, on=devices.on
        )
    finally:
        devices.close()
    devices.check(done)
