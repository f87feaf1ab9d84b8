"""Recordings made up for tests: any number of exits, without a guest."""

from __future__ import annotations

from pykvm.lab.explain.access import Access, explain_access
from pykvm.lab.report import Recording, Row, Site

TEXT = b"Hello, world\n"


def port_site(port: int, place: str, rip: int, explanation: int, write: bool = True) -> Site:
    """A byte-wide port access."""
    code = "out dx, al" if write else "in al, dx"
    return Site("KVM_EXIT_IO", f"{'out' if write else 'in'} {port:#x}", place, port, write, 1, True,
                rip, "main+0x10", code, False, explanation)  # fmt: skip


def made(count: int, vcpus: int = 1) -> Recording:
    """`count` exits: a character to COM1, a read of an unclaimed port, a halt, and so on."""
    recording = Recording(vcpus=vcpus)
    for access in (
        Access(False, 0x3F8, True, 1, 1, None, "COM1 THR", ""),
        Access(False, 0x60, False, 1, 1, None, "unclaimed (keyboard)", ""),
    ):
        recording.explanations.append(explain_access(access).as_dict())
    recording.explanations.append(
        {"title": "</script><b>HLT", "why": "halted", "references": ["x"]}
    )
    recording.sites += [
        port_site(0x3F8, "COM1 THR", 0x100010, 0),
        port_site(0x60, "unclaimed (keyboard)", 0x100020, 1, write=False),
        Site("KVM_EXIT_HLT", "halted", "", 0, False, 0, False, 0x100030,
             "</script><script>oops()", "hlt", False, 2),
    ]  # fmt: skip
    time = printed = 0
    for number in range(count):
        kind = number % 3
        if kind == 0:
            letter = TEXT[printed % len(TEXT)]
            recording.add_serial(bytes([letter]))
            printed += 1
        value = (letter, 0xFF, 0)[kind]
        time += 2_000 + number * 7919 % 9_000
        recording.add(Row(time, 1_500, 900 + number % 700, value, printed, kind, 1, number % vcpus))
    return recording
