"""The argument parser of a verb: `argparse`, loaded when there is something to parse.

Importing argparse takes 8 ms, a sixth of the time to a guest's first character, and the commonest
command line is a verb and one image. So options are noted down here, and a command line without
any gets their defaults; every other one, and `--help`, goes to argparse.
"""

from __future__ import annotations

import os
from collections.abc import Callable
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
        self._later: list[tuple[int, dict[str, Any], Callable[[Parser], None]]] = []
        self._optional: set[str] = set()  # options whose value may be left out

    def add_argument_group(self, title: str) -> Group:
        """As `argparse.ArgumentParser.add_argument_group`."""
        group = Group(title)
        self.groups.append(group)
        return group

    def add_later(self, defaults: dict[str, Any], load: Callable[[Parser], None]) -> None:
        """Options of which only names and defaults are known until one is there, or `--help`.

        `load(parser)` adds them then. Their groups come where this was called.
        """
        self._later.append((len(self.groups), defaults, load))

    def parse_args(self, words: list[str]) -> Namespace:
        """The options by name. Raises `UsageError`; `--help` prints and ends the command."""
        plain = self._without_options(words)
        if plain is not None:
            return plain  # type: ignore[return-value]  # a namespace, if not argparse's
        parser = self._argparse(words)
        # An option whose value may be left out takes one behind "=" only, never the next word.
        return parser.parse_args([f"{word}=" if word in self._optional else word for word in words])

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
            default = _copied(default)
            longest = next((n for n in names if n.startswith("--")), names[0])
            name = settings.get("dest") or longest.lstrip("-").replace("-", "_")
            values.setdefault(name, default)
        for _, defaults, _ in self._later:
            values.update((name, _copied(value)) for name, value in defaults.items())
        if len(words) != len(positional) or any(w.startswith("-") for w in words):
            return None
        return SimpleNamespace(**values, **dict(zip(positional, words, strict=True)))

    def _wanted(self, words: list[str] | None) -> tuple[list[Group], dict[str, Any]]:
        """The groups that these words need (None: all), and the defaults of the others."""
        given = {word.partition("=")[0] for word in words or ()}
        groups = list(self.groups)
        left_out: dict[str, Any] = {}
        for place, defaults, load in reversed(self._later):
            flags = {"--help", "-h", *("--" + name.replace("_", "-") for name in defaults)}
            if words is not None and not given & flags:
                left_out.update((name, _copied(value)) for name, value in defaults.items())
                continue
            family = Parser(self.verb, "", "")
            load(family)
            groups[place:place] = family.groups
        return groups, left_out

    def _argparse(self, words: list[str] | None = None) -> ArgumentParser:
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
        groups, left_out = self._wanted(words)
        parser.set_defaults(**left_out)
        for group in groups:
            section = parser.add_argument_group(group.title)
            for names, settings in group.arguments:
                section.add_argument(*names, **settings)
                if settings.get("nargs") == "?":
                    self._optional.update(names)
        return parser


def _copied(value: Any) -> Any:
    """A list of its own: options that may be given several times are appended to it."""
    return list(value) if isinstance(value, list) else value


def _help_width() -> int:
    # Not shutil's function: argparse asks for each option, and shutil takes 5 ms to import.
    for stream in (1, 2):
        try:
            return min(100, max(60, os.get_terminal_size(stream).columns - 2))
        except (OSError, ValueError):
            continue
    return 98
