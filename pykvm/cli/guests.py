"""`pykvm guests [NAME]`: the guests that come with pykvm."""

from __future__ import annotations

from pykvm.cli.common import Parser, UsageError, near, print_json, printable
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.images import Area, GuestImage

EXAMPLES = """examples:
  pykvm guests               what there is
  pykvm guests pio-loop      what it is, how to run it, what it should print
  pykvm guests --json | jq -r 'keys[]'"""


def main(arguments: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("guests", "Lists the guests that come with pykvm.", EXAMPLES)
    parser.add_argument("name", nargs="?", metavar="NAME", help="say more about this one")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    from pykvm import images

    names = images.names()
    if options.name is not None:
        if options.name not in names:
            raise UsageError(_unknown(options.name, names))
        guest = images.find(options.name)
        if options.json:
            print_json(as_dict(guest))
        else:
            print(_describe(guest))
        return 0
    guests = [images.find(name) for name in names]
    if options.json:
        print_json({guest.name: as_dict(guest) for guest in guests})
    else:
        print(_list(guests))
    return 0


def _unknown(name: str, names: list[str]) -> str:
    close = near(name, names)
    hint = f"did you mean {' or '.join(close)}?" if close else "`pykvm guests` lists them"
    return f"there is no guest {printable(name)}; {hint}"


def as_dict(guest: GuestImage) -> dict[str, Any]:
    """A guest as JSON."""

    def areas(table: dict[str, Area]) -> dict[str, Any]:
        return {
            area.name: {
                "address": area.address,
                "size": area.size,
                "default": area.default,
                "description": area.description,
            }
            for area in table.values()
        }

    return {
        "name": guest.name,
        "description": guest.description,
        "path": guest.path,
        "format": guest.format,
        "mode": guest.mode,
        "load": guest.load,
        "entry": guest.entry,
        "cpus": guest.cpus,
        "irqchip": guest.irqchip,
        "params": areas(guest.params),
        "results": areas(guest.results),
        "cases": list(guest.cases),
        "expect": {
            "exit_code": guest.expect.exit_code,
            "serial": guest.expect.serial,
            "matches": list(guest.expect.matches),
            "input": guest.expect.input,
            "timeout": guest.expect.timeout,
        },
    }


def _list(guests: list[GuestImage]) -> str:
    width = max(len(guest.name) for guest in guests)
    lines = []
    for guest in guests:
        kind = f"{guest.mode}, {guest.format}"
        lines.append(f"{guest.name:<{width}}  {kind:<20}  {guest.description}")
    lines += ["", "Boot one with: pykvm run NAME; more about one: pykvm guests NAME"]
    return "\n".join(lines)


def _describe(guest: GuestImage) -> str:
    lines = [
        f"{guest.name}: {guest.description}",
        "",
        f"  image    {guest.path} ({guest.format})",
        f"  start    {guest.mode} mode at {guest.entry:#x}",
        f"  machine  {guest.cpus} vCPU{'s' if guest.cpus > 1 else ''}, irqchip {guest.irqchip}",
    ]
    for title, table in (("parameters", guest.params), ("results", guest.results)):
        if table:
            lines += ["", f"  {title}:"]
            width = max(len(name) for name in table)
            for area in table.values():
                size = f"{area.size} bytes at {area.address:#x}"
                default = "" if area.default is None else f"; default {area.default}"
                lines.append(f"    {area.name:<{width}}  {area.description} ({size}{default})")
    if guest.cases:
        lines += ["", f"  test cases: {', '.join(guest.cases)}"]
    expect = guest.expect
    lines += ["", f"  ends with exit status {expect.exit_code}"]
    if expect.timeout is not None and expect.exit_code == 124:
        lines[-1] += f" (it never ends by itself: use --timeout {expect.timeout})"
    if expect.input:
        lines.append(f"  reads from the serial port, for example {expect.input!r}")
    if expect.serial:
        lines += [f"  prints {line!r}" for line in expect.serial.splitlines()]
    lines += ["", f"  {_command(guest)}"]
    return "\n".join(lines)


def _command(guest: GuestImage) -> str:
    """How to run it, as one would type it."""
    words = ["pykvm", "run", guest.name]
    for area in list(guest.params.values())[:1]:
        if area.default is not None:
            words += ["--param", f"{area.name}={area.default}"]
    if guest.expect.timeout is not None:
        words += ["--timeout", str(guest.expect.timeout)]
    return " ".join(words)
