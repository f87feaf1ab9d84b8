"""What the tests of Linux's virtio drivers share: boots, a tree of files, a network with servers.

Where ring 0 is emulated (and 32-bit programs too), a byte that the guest's programs look at costs a
microsecond or more. So there the sizes are small, and the host compares what the guest copied.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import socket
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from debian_tools import need
from linux import initramfs
from linux.modules import ModuleTree
from linux_guest import FRUGAL, Boot, files

from pykvm import Machine

HOST, GUEST = "198.18.77.1", "198.18.77.2"  # RFC 2544: for tests; nobody's network
TRANSFER = 512 << 10  # bytes each way
LIST = (
    "for d in /sys/bus/virtio/devices/*; do"
    " echo $(cat $d/device) $(busybox basename $(busybox readlink $d/driver)); done"
)


def boot(
    board: str,
    script: str,
    prepare: Callable[[Machine], object],
    extra: bytes = b"",
    *,
    drivers: Sequence[str] = (),
    memory: str = "48M",
    on: dict[str, Callable[[], object]] | None = None,
) -> Boot:
    """Our kernel for the board, with modules for the devices that `prepare` adds."""
    kind = "mmio" if board == "microvm" else "pc"
    if drivers:
        extra = initramfs.more({}, ModuleTree(files()[kind]).in_order(list(drivers))) + extra
    done = Boot(
        files()[kind] / "vmlinux",
        script=script,
        bits=32,
        append=f"quiet {FRUGAL}" + (" reboot=t" if kind == "mmio" else ""),
        timeout=300,
        board=board,
        memory=memory,
        acpi=kind == "pc",
        prepare=prepare,
        extra=extra,
        on=on,
    )
    assert done.result.exit_code == 0, done.trouble()
    return done


def tree_files() -> dict[str, bytes]:
    """A small tree of every size around a block's."""
    random_bytes = random.Random(7).randbytes
    sizes = [0, 1, 511, 512, 513, 1023, 1024, 4095, 4096, 4097, 12345, 40000]
    return {f"tree/d{n % 3}/f{n}": random_bytes(size) for n, size in enumerate(sizes)}


def tree_archive() -> bytes:
    """The same as a tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in tree_files().items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@dataclass
class Network:
    """A TAP cable to the guest, and servers on the host's end."""

    wanted: int
    """Bytes of each transfer."""
    data: bytes = b""
    received: dict[int, bytes] = field(default_factory=dict)
    sockets: list[socket.socket] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    SOURCE, SINK = 5001, 5002

    def plug(self, machine: Machine) -> None:
        """Adds the card, and gives the host's end its address."""
        need("ip", package="iproute2")
        name = f"vt{os.getpid() % 100000}"
        machine.add_net(f"tap={name}", mac="52:54:00:12:34:56")
        subprocess.run(["ip", "address", "add", f"{HOST}/24", "dev", name], check=True)
        self.data = random.Random(5).randbytes(self.wanted)
        self._serve(self.SOURCE, self._give)
        self._serve(self.SINK, self._take)

    def _serve(self, port: int, work: Callable[[socket.socket], None]) -> None:
        listening = socket.create_server((HOST, port))
        self.sockets.append(listening)

        def body() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    work(connection)

        thread = threading.Thread(target=body)
        thread.start()
        self.threads.append(thread)

    def _give(self, connection: socket.socket) -> None:
        connection.sendall(self.data)

    def _take(self, connection: socket.socket) -> None:
        parts = []
        while part := connection.recv(1 << 20):
            parts.append(part)
        self.received[self.SINK] = b"".join(parts)

    def close(self) -> None:
        """Ends the servers."""
        for listening in self.sockets:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            listening.close()
        for thread in self.threads:
            thread.join(30)


@contextlib.contextmanager
def network(size: int) -> Iterator[Network]:
    """A network whose transfers have `size` bytes; it is over with the block."""
    made = Network(size)
    try:
        yield made
    finally:
        made.close()
