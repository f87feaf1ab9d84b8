"""`FIRST[,NAME[=VALUE]…]`, as device options are written; a comma in a value is typed twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pykvm.cli.common import printable
from pykvm.typed import Any


def wrong(message: str) -> Exception:
    """An error of a `type=` function of argparse."""
    from argparse import ArgumentTypeError

    return ArgumentTypeError(message)


def words(text: str) -> list[str]:
    """The parts between commas; `,,` stands for a comma in a part."""
    parts = [""]
    at = 0
    while at < len(text):
        if text[at] != ",":
            end = text.find(",", at)
            end = len(text) if end < 0 else end
            parts[-1] += text[at:end]
            at = end
        elif text[at + 1 : at + 2] == ",":
            parts[-1] += ","
            at += 2
        else:
            parts.append("")
            at += 1
    return parts


def switch(name: str, value: str) -> bool:
    """`readonly`, `readonly=on` and `readonly=off`."""
    if value in ("", "on", "off"):
        return value != "off"
    raise wrong(f"{name}={printable(value)} is neither on nor off")


def text(name: str, value: str) -> str:
    """Any text but none."""
    if value:
        return value
    raise wrong(f"{name} has no value; write it like {name}=TEXT")


def count(name: str, value: str) -> int:
    """A number; k, M and G stand for powers of 1024 after it."""
    digits, factor = value, 1
    if value[-1:] and value[-1] in "kKmMgG":
        digits, factor = value[:-1], 1024 ** ("kmg".index(value[-1].lower()) + 1)
    try:
        number = int(digits, 0) * factor
    except ValueError:
        number = -1
    if number < 0:
        raise wrong(f"{name}={printable(value)} is not a number; write it like {name}=100 or 10M")
    return number


def one_of(*choices: str) -> Callable[[str, str], str]:
    """One of a few words."""

    def check(name: str, value: str) -> str:
        if value in choices:
            return value
        raise wrong(f"{name}={printable(value)} is not {', '.join(choices[:-1])} or {choices[-1]}")

    return check


def properties(
    what: str, parts: list[str], known: Mapping[str, Callable[[str, str], Any]]
) -> dict[str, Any]:
    """The properties by name, each read by its function of (name, value).

    `what` names the thing in errors, as in "a disk". Raises argparse's `ArgumentTypeError`.
    """
    found: dict[str, Any] = {}
    for word in parts:
        name, _, value = word.partition("=")
        if name not in known:
            raise wrong(f"{printable(word)} is no property of {what}; use {', '.join(known)}")
        if name in found:
            raise wrong(f"{name} is there twice for {what}; give it once")
        found[name] = known[name](name, value)
    return found
