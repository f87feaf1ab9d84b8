"""The lab: looking at a running guest and explaining what it does.

`Lab` is a debugger's session over a machine; `explain` says what an exit means.
"""

from __future__ import annotations

from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.lab.events import Event, EventKind, LabError
    from pykvm.lab.explain import Explanation, explain
    from pykvm.lab.session import Lab

__all__ = ["Event", "EventKind", "Explanation", "Lab", "LabError", "explain"]

_HOMES = {
    "Event": "events", "EventKind": "events", "LabError": "events", "Lab": "session",
    "Explanation": "explain", "explain": "explain",
}  # fmt: skip


def __getattr__(name: str) -> object:
    # Imported when first used: tracing does without most of it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
