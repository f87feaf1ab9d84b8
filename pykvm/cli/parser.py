"""The argument parser of a verb: `argparse`, loaded when there is something to parse.

Importing argparse takes 8 ms, a sixth of the time to a guest's first character, and the commonest
command line is a verb and one image. So options are noted down here, and a command line without
any gets their defaults; every other one, and `--help`, goes to argparse.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

from pykvm.errors import PykvmError
from pykvm.typed import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


class UsageError(PykvmError):
    """The command line is wrong: one sentence with the remedy."""


class Group:
    """Options under a title of their own in the help."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.arguments: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def add_argument(self, *names: str, **settings: Any) -> None:
        """As `argparse.ArgumentParser.add_argument`."""
        self.arguments.append((names, settings))


class Parser(Group):
    """A parser for one verb: errors are `UsageError`, the help ends with an example."""

    def __init__(self, verb: str, description: str, examples: str) -> None:
        super().__init__("")
        self.verb = verb
        self.description = description
        self.examples = examples
        self.groups: list[Group] = []

    def add_argument_group(self, title: str) -> Group:
        """As `argparse.ArgumentParser.add_argument_group`."""
        group = Group(title)
        self.groups.append(group)
        return group

    def parse_args(self, words: list[str]) -> Namespace:
        """The options by name. Raises `UsageError`; `--help` prints and ends the command."""
        plain = self._without_options(words)
        if plain is not None:
            return plain  # type: ignore[return-value]  # a namespace, if not argparse's
        return self._argparse().parse_args(words)

    def _without_options(self, words: list[str]) -> SimpleNamespace | None:
        """What argparse would make of a command line of positional words only; None if unsure."""
        values: dict[str, Any] = {}
        positional: list[str] = []
        for names, settings in [*self.arguments, *(a for g in self.groups for a in g.arguments)]:
            if settings.get("required") or not isinstance(settings.get("action", ""), str):
                return None
            if not names[0].startswith("-"):
                if settings.keys() & {"type", "choices", "default"}:
                    return None
                if settings.get("nargs", "?") != "?":  # one that may be left out is there if given
                    return None
                positional.append(names[0])
                continue
            default = settings.get("default")
            if settings.get("action") == "store_true":
                default = settings.get("default", False)
            elif isinstance(default, str) and "type" in settings:
                default = settings["type"](default)
            elif isinstance(default, list):
                default = list(default)
            longest = next((n for n in names if n.startswith("--")), names[0])
            name = settings.get("dest") or longest.lstrip("-").replace("-", "_")
            values.setdefault(name, default)
        if len(words) != len(positional) or any(w.startswith("-") for w in words):
            return None
        return SimpleNamespace(**values, **dict(zip(positional, words, strict=True)))

    def _argparse(self) -> ArgumentParser:
        import argparse

        class Formatter(argparse.RawDescriptionHelpFormatter):
            def __init__(self, prog: str) -> None:
                super().__init__(prog, max_help_position=26, width=_help_width())

        class Verb(argparse.ArgumentParser):
            def error(self, message: str) -> NoReturn:
                raise UsageError(f"{message}; see {self.prog} --help")

        parser = Verb(
            prog=f"pykvm {self.verb}",
            description=self.description,
            epilog=self.examples,
            formatter_class=Formatter,
            allow_abbrev=False,
        )
        for names, settings in self.arguments:
            parser.add_argument(*names, **settings)
        for group in self.groups:
            section = parser.add_argument_group(group.title)
            for names, settings in group.arguments:
                section.add_argument(*names, **settings)
        return parser


def _help_width() -> int:
    # Not shutil's function: argparse asks for each option, and shutil takes 5 ms to import.
    for stream in (1, 2):
        try:
            return min(100, max(60, os.get_terminal_size(stream).columns - 2))
        except (OSError, ValueError):
            continue
    return 98
