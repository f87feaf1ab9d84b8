"""The `pykvm` command. One file per verb; here the verb is found and errors become exit codes.

| code | meaning |
|---|---|
| 0 | the guest ended cleanly |
| `(v << 1) \\| 1` | the guest wrote `v` to the debug-exit port |
| 124 | `--timeout` ran out |
| 125 | a usage or host error: one line on stderr that says what is wrong and what to do |
| 126 | the guest crashed; the report is on stderr |
| 128 + n | the command was ended by signal n (130: Ctrl-C) |
"""

from __future__ import annotations

import gc
import sys

__all__ = ["VERBS", "main"]

VERBS = {
    "run": "boot an image and show what it prints",
    "trace": "boot an image and show every VM exit",
    "gdb": "boot an image under gdb, with symbols, breakpoints and threads",
    "fuzz": "find inputs that crash a function, with AFL++ on a VM that is put back",
    "guests": "list the guests that come with pykvm",
    "doctor": "try out what this host's /dev/kvm can do",
    "bench": "measure against raw C programs and QEMU (in the source tree)",
}
"""The verbs in the order of `--help`; each is the module `pykvm.cli.<verb>` with its `main`."""

_SIGNALLED = 128


def main(arguments: list[str] | None = None) -> int:
    """Runs the command with `arguments` (without the program's name) and returns its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    gc.disable()  # what imports allocate stays: looking for garbage in it takes 10 ms
    from pykvm.cli.common import Terminated, complain, silence_stdout, tolerate_any_encoding

    try:
        tolerate_any_encoding()
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _SIGNALLED + 2
    except Terminated as signal:
        return _SIGNALLED + signal.number
    except BrokenPipeError:
        silence_stdout()
        return _SIGNALLED + 13
    except Exception as error:
        return complain(error)
    finally:
        gc.enable()


def _dispatch(words: list[str]) -> int:
    from pykvm.cli.common import UsageError

    if not words:
        raise UsageError(f"say what to do: {_list_of_verbs()}; `pykvm --help` explains them")
    verb, rest = words[0], words[1:]
    if verb in ("-h", "--help", "help"):
        print(_help())
        return 0
    if verb in ("-V", "--version", "version"):
        from pykvm import __version__

        print(f"pykvm {__version__}")
        return 0
    if verb not in VERBS:
        raise UsageError(_unknown(verb))
    from importlib import import_module

    code: int = import_module(f"pykvm.cli.{verb}").main(rest)
    return code


def _list_of_verbs() -> str:
    *others, last = VERBS
    return f"{', '.join(others)} or {last}"


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, text in VERBS.items())
    return f"""usage: pykvm COMMAND [OPTION …]

A hypervisor that you can read, script, single-step and fuzz.

commands:
{verbs}

examples:
  pykvm run hello64              boot a guest that comes with pykvm
  pykvm run --timeout 5 my.elf   boot your own; its debug-exit code is the exit status
  pykvm trace hello64            show every VM exit on the way
  pykvm doctor                   find out what /dev/kvm can do here

`pykvm COMMAND --help` has the options of a command, `pykvm --version` the version."""


def _unknown(verb: str) -> str:
    import os

    from pykvm.cli.common import near, printable

    shown = printable(verb)
    if verb.startswith("-"):
        return (
            f"there is no option {shown} before the command; write pykvm {_list_of_verbs()} first"
        )
    close = near(verb, VERBS)
    if close:
        return f"there is no command {shown}; did you mean {close[0]}?"
    from pykvm import images

    if verb in images.names() or os.path.isfile(verb):
        return f"{shown} is an image, not a command; boot it with: pykvm run {shown}"
    return f"there is no command {shown}; choose {_list_of_verbs()}"
