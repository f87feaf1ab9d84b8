"""User-mode networking through passt (https://passt.top): DHCP, DNS, NAT, port forwards.

passt runs as a child with one end of a socket pair, and ends when the other is closed: with the VM,
whatever becomes of it. It needs no privileges; started by root it becomes nobody by itself.
"""

from __future__ import annotations

import ipaddress
import shutil
import signal
import socket
import subprocess
import tempfile

from pykvm.children import die_with_parent
from pykvm.devices.net.backend import NetBackend, NetError
from pykvm.devices.net.ports import StreamPort
from pykvm.devices.net.stream import prepare
from pykvm.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_SETTLE = 0.15  # seconds in which passt says that its options are wrong


class Forward(NamedTuple):
    """A port of the host that leads into the guest; `address` is of the host, "" for all."""

    protocol: str
    address: str
    host_port: int
    guest_port: int

    @property
    def spec(self) -> str:
        """As passt's -t and -u take it."""
        address = f"{self.address}/" if self.address else ""
        return f"{address}{self.host_port}:{self.guest_port}"


def parse_forward(text: str) -> Forward:
    """`tcp:[HOST]:PORT-[ADDRESS]:PORT` or `tcp:[HOST:]PORT-PORT`, as QEMU's hostfwd. `NetError`."""
    wrong = NetError(
        f"{text[:80]!r} is no port forward; write tcp:127.0.0.1:2222-22 (or udp:…): an address and "
        "a port of the host, and the guest's port"
    )
    protocol, _, rest = text.partition(":")
    left, dash, right = rest.rpartition("-")
    address, _, host_port = left.rpartition(":")
    guest_port = right.rpartition(":")[2]
    if protocol not in ("tcp", "udp") or not dash:
        raise wrong
    try:
        ports = int(host_port), int(guest_port)
        address = address.strip("[]")
        if address:
            ipaddress.ip_address("127.0.0.1" if address == "localhost" else address)
    except ValueError:
        raise wrong from None
    if not all(0 < port < 65536 for port in ports):
        raise wrong
    return Forward(protocol, "127.0.0.1" if address == "localhost" else address, *ports)


class UserNet(NetBackend):
    """The host's network as its own processes see it, without privileges.

    - `forwards`: ports of the host that lead into the guest.
    - `mtu`: in bytes, also told by DHCP.
    - `arguments`: more of passt's own options.

    Raises `NetError`.
    """

    name = "user"

    def __init__(
        self, forwards: Sequence[Forward] = (), *, mtu: int | None = None,
        arguments: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.mtu = mtu
        program = shutil.which("passt")
        if program is None:
            raise NetError(
                "user-mode networking needs the program passt; install it (Debian: apt-get "
                "install passt), or use --net tap=NAME"
            )
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        prepare(near)
        prepare(far)
        command = [program, "--foreground", "--stderr", "--fd", str(far.fileno())]
        for protocol, option in (("tcp", "-t"), ("udp", "-u")):
            specs = [fwd.spec for fwd in forwards if fwd.protocol == protocol]
            command += [word for spec in specs for word in (option, spec)]
        if mtu is not None:
            command += ["--mtu", str(mtu)]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [*command, *arguments], pass_fds=[far.fileno()], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=self._log, start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),
            )  # fmt: skip
        except OSError as error:
            near.close()
            self._log.close()
            raise NetError(f"{program} cannot be started: {error.strerror}") from error
        finally:
            far.close()
        self.ports = [StreamPort(near)]
        try:
            code = self._process.wait(_SETTLE)
        except subprocess.TimeoutExpired:
            return
        said = self._said()
        self.close()
        raise NetError(f"passt ended with status {code}: {said}")

    @property
    def pid(self) -> int | None:
        """Of the passt process; None after `close`."""
        return None if self._process is None else self._process.pid

    def _said(self) -> str:
        self._log.seek(0)
        lines = self._log.read(1 << 16).decode(errors="replace").splitlines()
        noise = ("syslog", "Changing to nobody")
        kept = [line for line in lines if line.strip() and not any(n in line for n in noise)]
        return kept[0].strip() if kept else "it said nothing"

    def describe(self) -> str:
        """With the program."""
        return "passt"

    def close(self) -> None:
        """Ends passt and waits for it."""
        super().close()
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._log.close()
