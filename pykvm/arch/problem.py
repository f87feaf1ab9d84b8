"""`Problem`: one reason why a state cannot be entered."""

from __future__ import annotations

from pykvm.typed import NamedTuple


class Problem(NamedTuple):
    """A field that is refused: its name (`cr4`, `cs.type`), value, the reason and its source.

    `refuser` is `kvm` (the ioctl fails with EINVAL), `vmx` or `svm` (the entry fails on that CPU).
    """

    field: str
    value: int
    why: str
    source: str
    refuser: str = "kvm"

    def __str__(self) -> str:
        return f"{self.field} = {self.value:#x}: {self.why} ({self.source})"


class Report:
    """Collects problems; of several about the same field and fact, the first stays."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, refuser: str, field: str, value: int, why: str, source: str) -> None:
        """Note a problem, unless the same one is noted already."""
        if not any((p.field, p.why) == (field, why) for p in self.problems):
            self.problems.append(Problem(field, int(value), why, source, refuser))
