"""What the doctor reports: findings in sections. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from pykvm.typed import Any


class Mark(StrEnum):
    """How a finding looks: a tick, a cross, or a remark that is neither."""

    OK = "ok"
    NO = "no"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    `key` is stable, for programs; `title` and `text` are for people; `remedy` is what to do about
    a cross, "" where nothing can be done; `value` is what was measured, ready for JSON.
    """

    key: str
    title: str
    mark: Mark
    text: str
    remedy: str = ""
    value: Any = None
    brief: bool = False
    """Belongs to the short form of the report."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; empty parts are left out."""
        result: dict[str, Any] = {"key": self.key, "title": self.title, "mark": str(self.mark)}
        result["text"] = self.text
        if self.remedy:
            result["remedy"] = self.remedy
        if self.value is not None:
            result["value"] = self.value
        return result


@dataclass(slots=True)
class Section:
    """Findings that belong together."""

    key: str
    title: str
    findings: list[Finding] = field(default_factory=list)

    def add(
        self,
        key: str,
        title: str,
        good: bool | None,
        text: str,
        remedy: str = "",
        value: Any = None,
        brief: bool = False,
    ) -> Finding:
        """Appends a finding: a tick for True, a cross for False, a remark for None."""
        mark = Mark.NOTE if good is None else Mark.OK if good else Mark.NO
        finding = Finding(key, title, mark, text, remedy, value, brief)
        self.findings.append(finding)
        return finding


@dataclass(slots=True)
class Report:
    """All that `examine()` found out. `usable`: pykvm can run guests on this host."""

    device: str
    host: dict[str, str]
    sections: list[Section] = field(default_factory=list)
    usable: bool = False
    summary: str = ""
    remedy: str = ""
    seconds: float = 0.0

    def find(self, key: str) -> Finding | None:
        """The finding with this key, None if that was not looked at."""
        for section in self.sections:
            for finding in section.findings:
                if finding.key == key:
                    return finding
        return None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "usable": self.usable,
            "summary": self.summary,
            "remedy": self.remedy,
            "device": self.device,
            "host": self.host,
            "seconds": round(self.seconds, 3),
            "sections": [
                {
                    "key": section.key,
                    "title": section.title,
                    "findings": [finding.as_dict() for finding in section.findings],
                }
                for section in self.sections
            ],
        }
