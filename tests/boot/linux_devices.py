"""One guest with all of the smaller virtio devices and the shares, and a script that uses each.

The same scenario runs on every board and tier, with sizes that it can bear.
"""

from __future__ import annotations

import pathlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from linux import initramfs
from linux_guest import Boot, section
from linux_virtio import LIST

from pykvm import Machine
from pykvm.devices.chardev.buffer import BufferChardev

MIB = 1 << 20
VSOCK_SOURCE = pathlib.Path(initramfs.__file__).with_name("vsock.c")
DRIVERS = [
    *("virtio-rng", "virtio_balloon", "virtio_console", "virtio_mem", "virtio_pmem", "nd_pmem"),
    *("virtiofs", "vmw_vsock_virtio_transport", "9pnet_virtio", "9p"),
]
FLAGS = (
    *(
        "-m32",
        "-march=i686",
        "-Os",
        "-static",
        "-nostdlib",
        "-ffreestanding",
        "-fno-pic",
        "-no-pie",
    ),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none"),
)
PORT_OF_HOST, PORT_OF_GUEST = 5000, 5001
DATA = bytes(range(256)) * 64


def vsock_program(folder: pathlib.Path) -> bytes:
    """guests/linux/vsock.c, built."""
    built = folder / "vsock"
    subprocess.run(["gcc", *FLAGS, "-o", built, VSOCK_SOURCE], check=True)
    return built.read_bytes()


@dataclass
class Devices:
    """What is plugged in, and what the host's side has seen.

    `balloon`: bytes that it takes; `touched`: MiB that the guest writes before; `nine`: whether
    the kernel has 9p; `pmem`: whether its nd_pmem makes a disk of persistent memory.
    """

    folder: pathlib.Path
    balloon: int
    touched: int
    nine: bool
    pmem: bool
    drivers: list[str] = field(default_factory=lambda: list(DRIVERS))
    machine: Machine | None = None
    held: dict[str, int] = field(default_factory=dict)
    seen: dict[str, object] = field(default_factory=dict)
    listener: socket.socket | None = None
    port: BufferChardev = field(default_factory=BufferChardev)
    console: BufferChardev = field(default_factory=BufferChardev)

    def __post_init__(self) -> None:
        for name in ("fs", "nine"):
            (self.folder / name).mkdir()
            (self.folder / name / "from-host").write_text(f"hello over {name}\n")
        self.persistent = self.folder / "pmem"
        with self.persistent.open("wb") as file:
            file.truncate(4 * MIB)
        self.socket = self.folder / "vsock.sock"
        self.reached = {name: threading.Event() for name in ("balloon", "plugged")}

    def prepare(self, machine: Machine) -> None:
        """Plugs all of them in."""
        self.machine = machine
        machine.add_rng()
        machine.add_balloon("0M")
        machine.add_console(self.console)
        machine.add_port("org.pykvm.test", self.port)
        machine.add_virtio_mem("256M")
        machine.add_pmem(self.persistent)
        machine.add_share(self.folder / "fs", tag="over-fs", kind="fs")
        if self.nine:
            machine.add_share(self.folder / "nine", tag="over-9p", kind="9p")
        machine.add_vsock(77, self.socket)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{self.socket}_{PORT_OF_HOST}")
        self.listener.listen(1)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        assert self.listener is not None
        peer, _ = self.listener.accept()
        with peer:
            got = _all(peer)
            self.seen["from guest"] = got
            peer.sendall(got.upper())

    # -- what the host does when the script says so ------------------------------------------

    @property
    def on(self) -> dict[str, Callable[[], object]]:
        """For `Boot`."""
        return {
            "inflate-now\r\n": self._inflate,
            "deflate-now\r\n": self._deflate,
            "listening\r\n": self._call_guest,
            "plug-now\r\n": self._plug,
            "unplug-now\r\n": self._unplug,
        }

    def _held(self) -> int:
        """Bytes of host memory behind the guest's RAM."""
        assert self.machine is not None
        return sum(n for region in self.machine.memory.regions for _, n in region.extents())

    def _inflate(self) -> None:
        self.held["touched"] = self._held()
        self._settle(self.balloon)
        self.held["inflated"] = self._held()
        self.reached["balloon"].set()

    def _deflate(self) -> None:
        self.reached["balloon"].wait(120)  # the guest goes on when most of it is done
        self._settle(0)

    def _plug(self) -> None:
        self._request(128 * MIB)
        self.reached["plugged"].set()

    def _unplug(self) -> None:
        self.reached["plugged"].wait(120)
        self._request(0)

    def _settle(self, target: int) -> None:
        assert self.machine is not None
        balloon = self.machine.balloon
        assert balloon is not None
        balloon.target = target
        _wait(lambda: balloon.actual == target)
        self.seen[f"balloon {target}"] = balloon.actual

    def _request(self, size: int) -> None:
        assert self.machine is not None
        device = self.machine.memory_device
        assert device is not None
        device.requested = size
        _wait(lambda: device.plugged == size)
        self.seen[f"plugged {size}"] = device.plugged

    def _call_guest(self) -> None:
        with socket.socket(socket.AF_UNIX) as end:
            end.settimeout(120)
            end.connect(str(self.socket))
            end.sendall(b"CONNECT %d\n" % PORT_OF_GUEST)
            reply = b""
            while not reply.endswith(b"\n"):
                reply += end.recv(1)
            self.seen["reply"] = reply
            end.sendall(DATA)
            end.shutdown(socket.SHUT_WR)
            self.seen["echo"] = _all(end)

    # -- what the guest does -------------------------------------------------------------------

    def script(self) -> str:
        """For the guest's init."""
        free = "grep MemFree /proc/meminfo | busybox tr -dc 0-9; echo"
        total = "grep MemTotal /proc/meminfo | busybox tr -dc 0-9; echo"
        # The host's answer to a word on the console takes a while: look until it is there.
        until = (
            "until_free() { n=0; while [ $n -lt 150 ]; do"
            f" v=$({free}); [ $v $1 $2 ] && break; sleep 1; n=$((n+1)); done; echo $v; }}\n"
            "until_total() { n=0; while [ $n -lt 150 ]; do"
            f" v=$({total}); [ $v $1 $2 ] && break; sleep 1; n=$((n+1)); done; echo $v; }}\n"
        )
        quarter = self.balloon >> 12  # KiB
        script = "dmesg -n 1\n" + until + section("found", LIST)
        script += section("random", "dd if=/dev/hwrng bs=64 count=1 2>/dev/null | busybox wc -c")
        script += "echo hello hvc >/dev/hvc0\n"
        script += section(
            "port",
            "cat /sys/class/virtio-ports/vport*/name; for p in /sys/class/virtio-ports/vport*;"
            " do case $(cat $p/name) in org.pykvm.test)"
            " echo hello port >/dev/${p##*/};; esac; done",
        )
        if self.pmem:
            script += section(
                "pmem",
                "echo kept | dd of=/dev/pmem0 conv=notrunc 2>/dev/null && sync"
                " && head -c 5 /dev/pmem0",
            )
        script += section("fs", _share("virtiofs", "over-fs", ""))
        if self.nine:
            script += section("9p", _share("9p", "over-9p", "-o trans=virtio,version=9p2000.L"))
        script += section("to host", f"echo ping | /vsock connect {PORT_OF_HOST}")
        script += section("to guest", f"/vsock listen {PORT_OF_GUEST}; echo status $?")
        script += section(
            "touch",
            f"dd if=/dev/zero of=/tmp/big bs=1M count={self.touched} 2>/dev/null; rm /tmp/big",
        )
        script += f"before=$({free})\n"
        script += "echo inflate-now\n"
        script += section("less", f"until_free -lt $((before - {3 * quarter}))")
        script += "echo deflate-now\n"
        script += section("again", f"until_free -gt $((before - {quarter}))")
        # Movable: what the kernel puts there for good could not be unplugged.
        script += "echo online_movable >/sys/devices/system/memory/auto_online_blocks\n"
        script += f"before=$({total})\n"
        script += "echo plug-now\n"
        script += section("more", "until_total -gt $((before + 100000)); echo $before")
        script += "echo unplug-now\n"
        script += section("as before", "until_total -lt $((before + 1000))")
        return script

    def check(self, done: Boot) -> None:
        """What has to have come of it."""
        found = done.section("found")
        for kind in (3, 4, 5, 19, 24, 26, 27, *((9,) if self.nine else ())):
            assert any(
                line.startswith(f"0x{kind:04x} ") and len(line) > 8 for line in found.splitlines()
            ), f"no driver has device type {kind}:\n{found}"
        assert done.section("random") == "64\n"
        assert "hello hvc" in self.console.text
        assert "org.pykvm.test" in done.section("port")
        assert "hello port" in self.port.text
        if self.pmem:
            assert done.section("pmem") == "kept\n"
            assert self.persistent.read_bytes()[:5] == b"kept\n"
        for name, title in [("fs", "fs"), *([("nine", "9p")] if self.nine else [])]:
            assert done.section(title) == f"hello over {name}\nunmounted\n"
            assert (self.folder / name / "from-guest").read_text() == "from the guest\n"
        assert self.seen["from guest"] == b"ping\n"
        assert done.section("to host") == "PING\n"
        assert str(self.seen["reply"]).startswith("b'OK ")
        assert self.seen["echo"] == DATA
        assert done.section("to guest").endswith("status 0\n")
        assert self.seen[f"balloon {self.balloon}"] == self.balloon
        assert self.seen["balloon 0"] == 0
        less, again = int(done.section("less")), int(done.section("again"))
        assert again - less > self.balloon >> 11  # KiB: at least half of it
        assert self.held["touched"] - self.held["inflated"] > self.balloon * 2 // 3
        assert self.seen[f"plugged {128 * MIB}"] == 128 * MIB
        assert self.seen["plugged 0"] == 0
        more, before = (int(word) for word in done.section("more").split())
        assert more - before > 100_000
        assert int(done.section("as before")) - before < 1000

    def close(self) -> None:
        """Ends the host's server."""
        if self.listener is not None:
            self.listener.close()


def _share(kind: str, tag: str, options: str) -> str:
    return (
        f"mount -t {kind} {options} {tag} /mnt && cat /mnt/from-host && echo from the guest"
        " >/mnt/from-guest && sync && umount /mnt && echo unmounted"
    )


def _all(end: socket.socket) -> bytes:
    parts = []
    while part := end.recv(65536):
        parts.append(part)
    return b"".join(parts)


def _wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
