"""`--net`."""

from __future__ import annotations

from pykvm.cli.common import Parser
from pykvm.cli.devices.properties import wrong
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.machine import Machine


def net(text: str) -> str:
    """`user[,hostfwd=…]|tap=NAME|hub=PATH|stream=ADDRESS|none[,PROPERTY=VALUE…]`."""
    from pykvm.devices.net.backend import NetError
    from pykvm.devices.net.parse import parse_net

    try:
        parse_net(text)
    except NetError as error:
        raise wrong(str(error)) from None
    return text


def add_options(parser: Parser) -> None:
    """Networks."""
    group = parser.add_argument_group("networks")
    group.add_argument(
        "--net",
        action="append",
        type=net,
        default=[],
        metavar="user|tap=NAME|hub=PATH|none[,OPTION…]",
        help="a network card: user (the host's network without privileges; "
        "hostfwd=tcp:127.0.0.1:2222-22), tap=NAME (an interface of the host; netns=NAME, "
        "offload=off), hub=PATH (VMs with the same path are joined), stream=unix:PATH or "
        "tcp:HOST:PORT (QEMU's -netdev stream; server), none (no cable); options: mac=ADDRESS, "
        "queues=N, mtu=BYTES, pcap=FILE, iops=N, bps=N; may be given several times",
    )


def apply(machine: Machine, options: Namespace) -> None:
    """The networks, in the order of the command line."""
    for text in options.net:
        machine.add_net(text)
