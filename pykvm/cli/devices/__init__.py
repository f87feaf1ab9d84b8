"""The options that put devices on a machine: one module per family, imported when one is used.

A family is a module of this package with two functions:

- `add_options(parser)` adds its options, best in a group of their own;
- `apply(machine, options)` puts on the machine what they ask for. Raises `UsageError` and the
  machine's own errors.

`FAMILIES` knows each family's options and their defaults, so that a command line without them costs
nothing. Devices come on the machine in the order of the families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from argparse import Namespace

    from pykvm.cli.parser import Parser
    from pykvm.machine import Machine

#: Module -> its options, as argparse names them ("--no-x" is no_x), with their defaults.
FAMILIES: dict[str, dict[str, Any]] = {
    "disk": {"disk": [], "cdrom": [], "snapshot": False},
    "net": {"net": []},
    "small": {
        "rng": None, "balloon": None, "console": None, "port": [], "virtio_mem": None, "pmem": [],
        "input": [], "gpu": None, "gpu_screenshot": None, "serial2": None,
    },
    "share": {"share": [], "vsock": None},
}  # fmt: skip


def add_options(parser: Parser) -> None:
    """The options of all families; a module is imported when one of its options is there."""
    for family, defaults in FAMILIES.items():
        parser.add_later(defaults, _loader(family))


def _loader(family: str) -> Callable[[Parser], None]:
    def load(parser: Parser) -> None:
        import_module(f"{__name__}.{family}").add_options(parser)

    return load


def used(options: Namespace) -> Iterator[str]:
    """The families of which an option was given."""
    for family, defaults in FAMILIES.items():
        if any(getattr(options, name, value) != value for name, value in defaults.items()):
            yield family


def apply(machine: Machine, options: Namespace) -> None:
    """Puts on the machine what the options ask for."""
    for family in used(options):
        import_module(f"{__name__}.{family}").apply(machine, options)


def needs_pc(options: Namespace) -> bool:
    """Whether a device that was asked for is only on the pc board: `needs_pc` of its family."""
    for family in used(options):
        asks = getattr(import_module(f"{__name__}.{family}"), "needs_pc", None)
        if asks is not None and asks(options):
            return True
    return False
