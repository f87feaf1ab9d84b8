"""`pykvm gdb IMAGE`, and `pykvm run --gdb`: a guest that GDB debugs."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from pykvm.cli.common import SIGINT, Interrupt, Parser, UsageError
from pykvm.devices.chardev.base import Chardev
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.cli.console import Console
    from pykvm.lab.gdb.server import GdbServer
    from pykvm.machine import Machine, RunResult

EXAMPLES = """examples:
  pykvm gdb kernel.elf                       then, in another terminal:
  gdb kernel.elf -ex "target remote :1234"
  pykvm gdb kernel.elf --exec                starts gdb in this terminal
  pykvm gdb smp --listen unix:/tmp/gdb       gdb: target remote /tmp/gdb
  pykvm run vmlinuz --append "nokaslr" --gdb :1234     attach whenever you like

In gdb, `monitor help` lists what pykvm can tell: VM exits, page tables, snapshots.
Exit status: as of `pykvm run`; 0 if gdb killed the guest."""

_DEFAULT = ":1234"


def main(arguments: list[str]) -> int:
    """Runs the verb."""
    from pykvm.cli.run import add_run_options, run

    parser = Parser("gdb", "Boots an image under GDB: it waits for `target remote`.", EXAMPLES)
    add_run_options(parser)
    group = parser.add_argument_group("gdb")
    group.add_argument(
        "--listen",
        dest="gdb",
        metavar="ADDR",
        default=_DEFAULT,
        help="where gdb connects: :1234 (this host only, the default), HOST:PORT or unix:PATH",
    )
    group.add_argument(
        "--exec",
        action="store_true",
        help="start gdb here, connected, with the image's symbols; COM1 shows up in it",
    )
    options = parser.parse_args(arguments)
    options.gdb_wait = True
    if options.exec:
        _prepare_exec(options)
    return run(options)


def _prepare_exec(options: Namespace) -> None:
    """The terminal is GDB's: COM1 is shown in it, unless the user has another place for it."""
    import shutil

    if shutil.which("gdb") is None:
        raise UsageError("--exec needs gdb; install it with: apt-get install gdb")
    if options.json:
        raise UsageError("--json needs stdout for itself; leave --exec out")
    if (options.serial or "").partition(",")[0] == "stdio":
        raise UsageError("gdb needs the terminal for itself; leave out --serial stdio")
    if options.serial is None:
        options.serial = "null"
        options.gdb_console = True


class Debugger:
    """What runs the machine instead of `Machine.run()` when GDB may come."""

    def __init__(self, options: Namespace, console: Console) -> None:
        self._options = options
        self._shown: GdbSerial | None = None
        if getattr(options, "gdb_console", False):
            self._shown = console.serial = GdbSerial()

    def run(self, machine: Machine, interrupt: Interrupt) -> RunResult:
        """Runs the machine under the stub to its end; Ctrl-C ends it, `interrupt` knows."""
        from pykvm.lab.gdb.labtarget import LabTarget
        from pykvm.lab.gdb.server import GdbServer
        from pykvm.lab.session import Lab
        from pykvm.machine.result import StopReason

        options = self._options
        expired = threading.Event()
        target = LabTarget(Lab(machine), reboot=not options.no_reboot)
        with ExitStack() as stack:
            server = stack.enter_context(GdbServer(target, options.gdb, _say))
            if options.timeout is not None:

                def expire() -> None:
                    expired.set()
                    server.end()

                timer = threading.Timer(options.timeout, expire)
                timer.daemon = True
                timer.start()
                stack.callback(timer.cancel)
            if self._shown is not None:
                self._shown.show = server.console
            if getattr(options, "exec", False):
                stack.enter_context(_gdb_here(options, server))
            else:
                interrupt.stop = server.end
                stack.enter_context(interrupt)
                _say(f"gdb can attach with: target remote {server.address}")
            server.serve(wait=options.gdb_wait)
        return target.end_result(StopReason.TIMEOUT if expired.is_set() else StopReason.STOPPED)


def _say(text: str) -> None:
    print(f"pykvm: {text}", file=sys.stderr, flush=True)


class GdbSerial(Chardev):
    """COM1 in GDB's terminal; nothing can be typed."""

    name = "gdb"

    def __init__(self) -> None:
        super().__init__()
        self.show: Callable[[bytes], object] = lambda data: None

    def write(self, data: bytes) -> None:
        """Shows `data`."""
        self.show(data)


@contextmanager
def _gdb_here(options: Namespace, server: GdbServer) -> Iterator[None]:
    """While entered GDB runs in this terminal; when it has gone, the server ends.

    Ctrl-C is GDB's then: it sends the stub its interrupt.
    """
    from _signal import SIG_DFL, SIG_IGN, signal  # type: ignore[import-not-found]

    command = ["gdb", "-q", *_symbols(options), "-ex", f"target remote {server.address}"]
    before = signal(SIGINT, SIG_IGN)
    process = subprocess.Popen(command, preexec_fn=lambda: signal(SIGINT, SIG_DFL))

    def wait() -> None:
        process.wait()
        server.end()

    waiter = threading.Thread(target=wait, name="pykvm-gdb-exec", daemon=True)
    waiter.start()
    try:
        yield
        waiter.join()
    finally:
        if process.poll() is None:
            process.terminate()
        signal(SIGINT, before)


def _symbols(options: Namespace) -> list[str]:
    """The file that GDB is to read: the ELF that runs, or the one of `--symbols`."""
    from pykvm.cli.image_options import find_guest

    candidates = [options.symbols]
    if options.image is not None:
        guest = find_guest(options.image)
        candidates.append(options.image if guest is None else str(guest.path))
    for path in candidates:
        if path is None:
            continue
        with open(path, "rb") as file:
            if file.read(4) == b"\x7fELF":
                return [path]
    return []
