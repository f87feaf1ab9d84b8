"""`Explanation`: one exit in plain words, as text, as data and as HTML."""

from __future__ import annotations

import html
import textwrap
from dataclasses import dataclass, field

from pykvm.typed import Any

_HEADS = (
    ("instruction", "Instruction"),
    ("why", "Why the guest was left"),
    ("kernel", "What KVM did"),
    ("user", "What user space did"),
    ("guest_next", "What the guest sees next"),
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happened at one exit. Every field is plain text; "" where there is nothing to say.

    `instruction` is address, symbol and disassembly; `why` says what made the processor (or KVM's
    emulator) leave the guest; `kernel` what KVM did before it returned to user space; `user` what
    the device model or the machine did; `guest_next` what the guest will find. `references` name
    sections of the KVM API document, the Intel SDM and the AMD APM.
    """

    title: str
    instruction: str = ""
    why: str = ""
    kernel: str = ""
    user: str = ""
    guest_next: str = ""
    references: tuple[str, ...] = field(default=())

    def sections(self) -> list[tuple[str, str]]:
        """Heading and paragraph of every part that has something to say."""
        return [(head, text) for name, head in _HEADS if (text := getattr(self, name))]

    def text(self, width: int = 80) -> str:
        """For a terminal of `width` columns (at least 20)."""
        width = max(20, width)
        lines = textwrap.wrap(clean(self.title), width)
        for head, text in self.sections():
            lines.append(f"{head}:")
            for paragraph in text.split("\n"):
                lines += textwrap.wrap(
                    clean(paragraph), width, initial_indent="  ", subsequent_indent="  "
                )
        if self.references:
            lines.append("See:")
            for reference in self.references:
                lines += textwrap.wrap(
                    reference, width, initial_indent="  ", subsequent_indent="    "
                )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "title": self.title,
            "instruction": self.instruction,
            "why": self.why,
            "kernel": self.kernel,
            "user": self.user,
            "guest_next": self.guest_next,
            "references": list(self.references),
        }

    def _repr_html_(self) -> str:
        """For notebooks. Everything that a guest or an image says is escaped."""
        parts = [f"<p><b>{html.escape(self.title)}</b></p><dl>"]
        for head, text in self.sections():
            body = html.escape(text).replace("\n", "<br>")
            if head == "Instruction":
                body = f"<code>{body}</code>"
            parts.append(f"<dt>{head}</dt><dd>{body}</dd>")
        if self.references:
            listed = "".join(f"<li>{html.escape(r)}</li>" for r in self.references)
            parts.append(f"<dt>See</dt><dd><ul>{listed}</ul></dd>")
        return "".join(parts) + "</dl>"

    def __str__(self) -> str:
        return self.text()


def clean(text: str) -> str:
    """Text of a guest or an image without power over the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
