"""`--rng`, `--balloon`, `--console`, `--port`, `--virtio-mem`, `--pmem`, `--input`, `--gpu`,
`--serial2`."""

from __future__ import annotations

import os

from pykvm.cli.common import Parser, UsageError, printable
from pykvm.cli.devices.properties import count, properties, switch, text, words, wrong
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.devices.virtio.console import VirtioConsole
    from pykvm.machine import Machine


def rng(value: str) -> dict[str, Any]:
    """`[source=FILE][,rate=BYTES]`."""
    found = properties("--rng", words(value) if value else [], {"source": text, "rate": count})
    if found.get("rate") == 0:
        raise wrong("rate=0 gives the guest nothing; leave it out for no limit")
    return found


def balloon(value: str) -> dict[str, Any]:
    """`[SIZE][,stats=SECONDS][,must-tell-host][,deflate-on-oom=off][,hinting=off][,…]`."""
    first, *rest = words(value)
    if "=" in first or first in _BALLOON:
        first, rest = "", [first, *rest]
    found = properties("--balloon", rest, _BALLOON)
    if first:
        found["target"] = count("SIZE", first)
    if "stats" in found:
        found["period"] = found.pop("stats")
    return {name.replace("-", "_"): setting for name, setting in found.items()}


_BALLOON = {
    "stats": count, "must-tell-host": switch, "deflate-on-oom": switch, "hinting": switch,
    "reporting": switch,
}  # fmt: skip


def port(value: str) -> tuple[str, str]:
    """`name=NAME,path=WHERE`; all after `path=` is the back end's."""
    head, comma, where = value.partition("path=")
    found = properties("--port", [w for w in head.split(",") if w], {"name": text})
    if "name" not in found or (comma and not where):
        raise wrong(f"{printable(value)} is no port; write it like name=org.example,path=unix:SOCK")
    return found["name"], where or "null"


def virtio_mem(value: str) -> dict[str, Any]:
    """`SIZE[,requested=SIZE][,block=SIZE][,node=N]`."""
    size, *rest = words(value)
    known = {"requested": count, "block": count, "node": count}
    found = properties("--virtio-mem", rest, known)
    found["size"] = count("SIZE", size)
    if "block" in found:
        found["block_size"] = found.pop("block")
    return found


def pmem(value: str) -> tuple[str, dict[str, Any]]:
    """`FILE[,readonly][,snapshot]`."""
    path, *rest = words(value)
    return path, properties("--pmem", rest, {"readonly": switch, "snapshot": switch})


def gpu(value: str) -> tuple[int, int]:
    """`[WIDTHxHEIGHT]`."""
    if not value:
        return 1024, 768
    width, _, height = value.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise wrong(f"{printable(value)} is no size of a screen; write it like 1024x768")
    return int(width), int(height)


def add_options(parser: Parser) -> None:
    """The smaller paravirtual devices."""
    group = parser.add_argument_group("other virtio devices")
    add = group.add_argument
    add(
        "--rng", nargs="?", type=rng, metavar="OPTION…",
        help="random numbers for the guest; --rng=source=FILE,rate=BYTES (a second)",
    )  # fmt: skip
    add(
        "--balloon", nargs="?", type=balloon, metavar="SIZE",
        help="a memory balloon, which takes SIZE from the guest; --balloon=64M,stats=SECONDS,"
        "must-tell-host,deflate-on-oom=off,hinting=off,reporting=off",
    )  # fmt: skip
    add(
        "--console", "--virtio-console", metavar="WHERE",
        help="a virtio console (console=hvc0 in Linux), as --serial; with stdio COM1 goes nowhere "
        "unless --serial says so",
    )  # fmt: skip
    add(
        "--port", action="append", type=port, default=[], metavar="name=NAME,path=WHERE",
        help="a port of the virtio console: /dev/virtio-ports/NAME in the guest",
    )  # fmt: skip
    add(
        "--virtio-mem", type=virtio_mem, metavar="SIZE[,requested=SIZE]",
        help="memory that can grow to SIZE while the guest runs; also block=SIZE, node=N",
    )  # fmt: skip
    add(
        "--pmem", action="append", type=pmem, default=[], metavar="FILE[,readonly|snapshot]",
        help="a file as persistent memory (/dev/pmem0 in Linux)",
    )  # fmt: skip
    add(
        "--input", action="append", choices=("keyboard", "mouse", "tablet"), default=[],
        help="a virtio keyboard, mouse or tablet",
    )  # fmt: skip
    add(
        "--gpu", nargs="?", type=gpu, metavar="WIDTHxHEIGHT",
        help="a virtio display adapter; see --gpu-screenshot",
    )  # fmt: skip
    add(
        "--gpu-screenshot", metavar="FILE.png",
        help="save what the virtio display shows when the run ends",
    )  # fmt: skip
    add("--serial2", metavar="WHERE", help="COM2 at 0x2f8, as --serial (pc board)")


def needs_pc(options: Namespace) -> bool:
    """COM2 is on the pc board."""
    return options.serial2 is not None


def apply(machine: Machine, options: Namespace) -> None:
    """Puts them on the machine; back ends are started with the machine's console."""
    backends: list[Any] = []
    options.console_backends = backends
    if options.gpu_screenshot is not None and options.gpu is None:
        raise UsageError("--gpu-screenshot shows what --gpu displays; add --gpu")
    if options.rng is not None:
        machine.add_rng(**options.rng)
    if options.balloon is not None:
        machine.add_balloon(**options.balloon)
    if options.console is not None or options.port:
        _consoles(machine, options, backends)
    if options.virtio_mem is not None:
        machine.add_virtio_mem(**options.virtio_mem)
    for path, found in options.pmem:
        machine.add_pmem(path, **found)
    for kind in options.input:
        if kind == "keyboard":
            machine.add_keyboard()
        else:
            machine.add_pointer(kind)
    if options.gpu is not None:
        machine.add_gpu(*options.gpu)
    if options.serial2 is not None:
        from pykvm.devices.chardev import open_chardev

        backends.append(open_chardev(options.serial2))
        machine.add_serial2(backends[-1])


def _consoles(machine: Machine, options: Namespace, backends: list[Any]) -> None:
    from pykvm.devices.chardev import open_chardev

    backend, size = None, None
    if options.console is not None:
        backend = open_chardev(options.console)
        backends.append(backend)
        on_terminal = options.console.partition(",")[0] == "stdio"
        size = _terminal_size() if on_terminal else None
    ports = max(8, len(options.port) + 1)
    if ports > 31:
        raise UsageError(f"{len(options.port)} ports are too many; there is room for 30")
    console = machine.add_console(backend, ports=ports, size=size)
    if size is not None:
        _follow_terminal(console)
    for name, where in options.port:
        backends.append(open_chardev(where))
        machine.add_port(name, backends[-1])


def _terminal_size() -> tuple[int, int] | None:
    try:
        columns, rows = os.get_terminal_size(1)
    except OSError:
        return None
    return (columns, rows) if columns and rows else None


def _follow_terminal(console: VirtioConsole) -> None:
    """The guest hears of it when the window changes its size."""
    import signal
    from threading import Thread

    def resize() -> None:
        size = _terminal_size()
        if size is not None:
            console.resize(*size)

    # Not in the handler: it may interrupt a thread that holds the device's lock.
    signal.signal(signal.SIGWINCH, lambda *_: Thread(target=resize, daemon=True).start())
