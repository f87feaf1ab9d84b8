"""The virtio drivers of Debian's own kernel, in full sizes, where ring 0 is a processor's."""

from __future__ import annotations

import pathlib
import subprocess
import time

import pytest
from linux import disk as ext4
from linux import initramfs
from linux.modules import ModuleTree
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
    assert done.result.exit_code == 0, (done.result, done.text[-3000:])
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
def test_entropy_balloon_and_share(board: str, tmp_path: pathlib.Path) -> None:
    """Bytes from the host's generator; memory that goes away and comes back; one folder, two users.

    The balloon counts in what the guest's memory takes on the host: the guest has touched 128 MiB
    before the balloon takes it, and touches it again afterwards.
    """
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "from-host").write_text("hello from the host\n")
    machines: list[Machine] = []
    blocks: dict[str, int] = {}

    def prepare(machine: Machine) -> None:
        machines.append(machine)
        machine.add_rng()
        machine.add_balloon("0M")
        machine.add_share(shared, tag="shared", kind="fs")

    def held() -> int:
        return sum(n for region in machines[0].memory.regions for _, n in region.extents())

    def inflate() -> None:
        blocks["touched"] = held()
        settle(128 * MIB)
        blocks["inflated"] = held()

    def deflate() -> None:
        settle(0)

    def settle(target: int) -> None:
        balloon = machines[0].balloon
        balloon.target = target
        end = time.monotonic() + 120
        while balloon.actual != target and time.monotonic() < end:
            time.sleep(0.05)
        blocks[f"actual {target}"] = balloon.actual

    script = section("found", LIST)
    script += section("random", "head -c 256 /dev/hwrng | busybox wc -c")
    script += section(
        "touch", "dd if=/dev/zero of=/tmp/big bs=1M count=200 2>/dev/null; rm /tmp/big"
    )
    free = "grep MemFree /proc/meminfo | busybox tr -dc 0-9; echo"
    script += section("free", free)
    script += "echo inflate-now\n"
    script += section("less", f"sleep 20; {free}") + "echo deflate-now\n"
    script += section("again", f"sleep 10; {free}")
    script += section(
        "share",
        "mount -t virtiofs shared /mnt && cat /mnt/from-host && echo from the guest"
        " >/mnt/from-guest && sync && umount /mnt && echo unmounted",
    )
    done = boot(
        board,
        script,
        ["virtio-rng", "virtio_balloon", "virtiofs"],
        prepare=prepare,
        on={"inflate-now\r\n": inflate, "deflate-now\r\n": deflate},
    )
    found = done.section("found")
    assert all(f"0x{kind:04x} " in found for kind in (4, 5, 26)), found
    assert done.section("random") == "256\n"
    before, less, again = (int(done.section(name)) for name in ("free", "less", "again"))
    assert blocks["actual 134217728"] == 128 * MIB
    assert blocks["actual 0"] == 0
    assert before - less > 100 << 10  # KiB
    assert again - less > 100 << 10
    assert blocks["touched"] - blocks["inflated"] > 90 * MIB
    assert done.section("share") == "hello from the host\nunmounted\n"
    assert (shared / "from-guest").read_text() == "from the guest\n"
