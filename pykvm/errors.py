"""The root of every error that pykvm raises on purpose. A leaf module: every room may import it."""

from __future__ import annotations

from collections.abc import Callable

from pykvm.typed import Any


class PykvmError(Exception):
    """Base of all pykvm errors. `str()` is one sentence: the thing, the value, the remedy."""


# Rooms above the driver know why the kernel refuses something (which segment, which CR bit); they
# register here, by the ioctl's name, so that the driver can say it without importing them.
_explainers: dict[str, Callable[[Any], str]] = {}


def register_explainer(ioctl: str, function: Callable[[Any], str]) -> None:
    """`function(object)` returns why `ioctl` was refused, or "" if it cannot tell."""
    _explainers[ioctl] = function


def explain(ioctl: str, subject: Any) -> str:
    """What a registered explainer says about a refused ioctl; never raises."""
    function = _explainers.get(ioctl)
    if function is None:
        return ""
    try:
        return function(subject)
    except Exception:  # an explanation must not hide the error that it explains
        return ""
