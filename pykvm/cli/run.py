"""`pykvm run IMAGE`: boots an image; the guest's serial port is the terminal."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from pykvm.cli.common import (
    SIGINT,
    SIGPIPE,
    Interrupt,
    Parser,
    UsageError,
    end_on_signals,
    print_json,
    settle,
)
from pykvm.cli.image_options import (
    add_image_options,
    add_machine_options,
    add_serial_options,
    make_machine,
)
from pykvm.cli.watching import add_watch_options, check_watching, is_wanted, watched
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.cli.console import Console
    from pykvm.machine import Machine, RunResult

EXAMPLES = """examples:
  pykvm run hello64
  pykvm run boot.bin --load 0x7c00 --entry 0x7c00     a flat 16-bit image
  pykvm run kernel.elf --timeout 5 --exits            an ELF, with an account of its exits
  pykvm run kernel --module "initrd.img quiet" --cmdline "debug"
  pykvm run echo --serial unix:/tmp/console,server
  pykvm run vmlinuz --initrd initrd.img --append "console=ttyS0" --cpus 2
  pykvm run vmlinuz --fast-boot --disk root.img,snapshot --append "console=ttyS0 root=/dev/vda"
  pykvm run --firmware seabios --disk disk.img --cdrom install.iso
  pykvm run --firmware seabios --cdrom a.iso --type-after "login:" --type "root\\n" --display text

Exit status: 0 if the guest ended cleanly, (v << 1) | 1 if it wrote v to the debug-exit port
0xf4, 124 after --timeout, 125 for errors of usage and host, 126 if the guest crashed."""


def main(arguments: list[str]) -> int:
    """Runs the verb."""
    parser = Parser("run", "Boots an image and shows what it prints.", EXAMPLES)
    add_run_options(parser)
    group = parser.add_argument_group("debugger")
    group.add_argument(
        "--gdb",
        metavar="ADDR",
        help="let gdb attach at any time: :1234 (this host only), HOST:PORT or unix:PATH",
    )
    group.add_argument(
        "--gdb-wait", "-S", action="store_true", help="stand still until gdb lets the guest run"
    )
    options = parser.parse_args(arguments)
    if options.gdb_wait and options.gdb is None:
        raise UsageError("--gdb-wait needs to know where gdb connects; add --gdb :1234")
    return run(options)


def add_run_options(parser: Parser) -> None:
    """The image, the machine, and what is shown of it."""
    add_image_options(parser)
    add_machine_options(parser)
    add_serial_options(parser, "stdio")
    add_watch_options(parser)
    group = parser.add_argument_group("reports")
    group.add_argument(
        "--exits", action="store_true", help="afterwards, an account of the exits on stderr"
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="one JSON object on stdout instead of the serial output, which is in it",
    )


def run(options: Namespace) -> int:
    """Boots the image and reports how it ended; returns the exit status."""
    from pykvm.cli.console import Console

    if options.json and (options.serial or "").partition(",")[0] == "stdio":
        raise UsageError(
            "--json needs stdout for itself; leave out --serial stdio (the output is in the JSON)"
        )
    check_watching(options)
    end_on_signals()
    console = Console.for_run(options)
    debugger = None
    if options.gdb is not None:
        from pykvm.cli.gdb import Debugger

        debugger = Debugger(options, console)
    with make_machine(options, serial=console.serial, debugcon=console.debugcon) as machine:
        interrupt = Interrupt(machine.stop)
        with ExitStack() as stack:
            if (options.json or options.exits) and debugger is None:
                stack.enter_context(interrupt)  # their report is wanted after Ctrl-C, too
            stack.enter_context(console.attached(machine))
            if is_wanted(options):
                stack.enter_context(watched(options, machine))
            settle()
            if debugger is not None:
                result = debugger.run(machine, interrupt)
            else:
                result = machine.run(timeout=options.timeout, reboot=not options.no_reboot)
        if options.json:
            print_json(as_dict(options, machine, result))
        if options.exits:
            from pykvm.lab.totals import exit_totals, totals_text

            print(totals_text(exit_totals(machine), result), file=sys.stderr)
        explain(result)
        return ending(result, console, interrupt)


def ending(result: RunResult, console: Console, interrupt: Interrupt) -> int:
    """The exit status: the guest's, unless the user or the reader of the output ended it."""
    if interrupt.came:
        return 128 + int(SIGINT)
    if console.hangup:
        return 128 + int(SIGPIPE)
    return result.exit_code


def explain(result: RunResult) -> None:
    """Says on stderr why a run ended, where that is not obvious."""
    if result.report:
        print(result.report, file=sys.stderr)
    elif result.exit_code == 126:
        print(f"pykvm: {result.reason}: {result.detail}", file=sys.stderr)


def as_dict(options: Namespace, machine: Machine, result: RunResult) -> dict[str, Any]:
    """A run as JSON: stable names, serial output as text."""
    image = machine.image
    return {
        "image": options.image,
        "format": image.format if image else None,
        "mode": image.mode if image else None,
        "entry": image.entry if image else None,
        "reason": str(result.reason),
        "detail": result.detail,
        "value": result.value,
        "exit_code": result.exit_code,
        "vcpu": result.vcpu,
        "elapsed": round(result.elapsed, 6),
        "serial": result.text,
        "debugcon": result.debugcon.decode("utf-8", "replace"),
        "board": machine.board.name,
        "resets": result.resets,
        "assist": {} if machine.assist is None else machine.assist.counts,
        "exits": result.exits,
        "unclaimed": [
            {"bus": bus, "address": address, "count": count}
            for (bus, address), count in sorted(machine.unclaimed_counts.items())
        ],
        "report": result.report,
    }
