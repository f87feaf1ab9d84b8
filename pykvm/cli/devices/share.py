"""`--share` and `--vsock`."""

from __future__ import annotations

from pykvm.cli.common import Parser
from pykvm.cli.devices.properties import one_of, properties, switch, text, words, wrong
from pykvm.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.machine import Machine


class ShareOption(NamedTuple):
    """One `--share`."""

    path: str
    tag: str = "share"
    readonly: bool = False
    kind: str = "auto"


class VsockOption(NamedTuple):
    """One `--vsock`."""

    cid: int
    path: str


def share(value: str) -> ShareOption:
    """`DIR[,tag=TEXT][,readonly][,kind=auto|fs|9p]`."""
    path, *rest = words(value)
    known = {"tag": text, "readonly": switch, "kind": one_of("auto", "fs", "9p")}
    return ShareOption(path, **properties("a share", rest, known))


def vsock(value: str) -> VsockOption:
    """`cid=N,path=PATH`."""
    found: dict[str, Any] = properties("a vsock", words(value), {"cid": text, "path": text})
    if set(found) != {"cid", "path"}:
        raise wrong("a vsock needs both: cid=3,path=/run/guest.sock")
    if not found["cid"].isdigit() or not 3 <= int(found["cid"]) <= 0xFFFF_FFFE:
        raise wrong(f"cid={found['cid'][:20]} cannot be a guest's; choose 3 to 4294967294")
    return VsockOption(int(found["cid"]), found["path"])


def add_options(parser: Parser) -> None:
    """Folders and sockets."""
    group = parser.add_argument_group("sharing with the host")
    group.add_argument(
        "--share",
        action="append",
        type=share,
        default=[],
        metavar="DIR[,OPTION…]",
        help="a directory that the guest can mount; options: tag=NAME (default: share), readonly, "
        "kind=fs (virtiofsd) or kind=9p (diod); may be given several times",
    )
    group.add_argument(
        "--vsock",
        type=vsock,
        default=None,
        metavar="cid=N,path=PATH",
        help="sockets between host and guest: connect to PATH and say `CONNECT port`; what the "
        "guest connects to at port N is served at PATH_N",
    )


def apply(machine: Machine, options: Namespace) -> None:
    """The shares, in the order of the command line, then the vsock."""
    for s in options.share:
        machine.add_share(s.path, s.tag, kind=s.kind, readonly=s.readonly)
    if options.vsock is not None:
        machine.add_vsock(options.vsock.cid, options.vsock.path)
