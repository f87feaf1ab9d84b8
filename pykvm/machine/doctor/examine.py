"""`examine()`: every examination in turn. One that fails says so and does not stop the others."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from pykvm.errors import PykvmError
from pykvm.kvm import Kvm
from pykvm.machine.doctor.result import Report, Section


def examine(device: str = "/dev/kvm") -> Report:
    """Tries out the host; takes about a second. Raises nothing because of what the host lacks.

    `device` is the path of the KVM device.
    """
    from pykvm.machine.doctor import access, host

    started = time.monotonic()
    report = Report(device, host.facts())
    door = Section("device", device)
    report.sections.append(door)
    try:
        kvm = access.open_device(device, door)
        if kvm is not None:
            with kvm:
                report.usable = access.first_vm(kvm, door)
                if report.usable:
                    _examine_kvm(kvm, report)
    except PykvmError as error:
        door.add("examination", "examination", False, f"ended early: {error}")
    _attempt(report, Section("host", "Host"), host.examine)
    _conclude(report)
    report.seconds = time.monotonic() - started
    return report


def _examine_kvm(kvm: Kvm, report: Report) -> None:
    from pykvm.machine.doctor import (
        capabilities,
        debugging,
        devices,
        instructions,
        modes,
        tracking,
    )

    parts: list[tuple[str, str, Callable[[Kvm, Section], object]]] = [
        ("modes", "How guest code runs", modes.examine),
        ("exits", "Exits", tracking.examine_exits),
        ("debugging", "Debugging", debugging.examine),
        ("memory", "Memory tracking", tracking.examine_memory),
        ("interrupts", "Interrupts and events", devices.examine),
        ("instructions", "Instructions in 64-bit ring 0", instructions.examine),
        ("capabilities", "What KVM says it has", capabilities.examine),
    ]
    for key, title, function in parts:
        _attempt(report, Section(key, title), partial(function, kvm))


def _attempt(report: Report, section: Section, function: Callable[[Section], object]) -> None:
    report.sections.append(section)
    try:
        function(section)
    except (PykvmError, OSError) as error:
        section.add("examination", "examination", False, f"ended early: {error}")


def _conclude(report: Report) -> None:
    if not report.usable:
        first = next((f for s in report.sections for f in s.findings if f.mark == "no"), None)
        report.summary = "not usable" + (f": {first.text}" if first else "")
        report.remedy = next(
            (f.remedy for s in report.sections[:1] for f in s.findings if f.remedy), ""
        )
        return
    modes = [
        finding.value.get("how", "")
        for section in report.sections
        if section.key == "modes"
        for finding in section.findings
        if isinstance(finding.value, dict)
    ]
    if modes and all(how == "native" for how in modes):
        how = "guest code runs natively in every mode"
    elif "native" in modes:
        how = (
            "ring 3 runs natively, ring 0 is emulated"
            if _ring3_native(report)
            else ("some modes run natively, the others are emulated")
        )
    else:
        how = "guest code is emulated"
    refused = report.find("instructions_refused")
    lacks = f"; {len(refused.value)} instructions refused" if refused and refused.value else ""
    report.summary = f"usable: {how}{lacks}"


def _ring3_native(report: Report) -> bool:
    hows = {}
    for key in ("mode_long", "mode_ring3"):
        finding = report.find(key)
        hows[key] = finding.value.get("how") if finding and finding.value else None
    return hows == {"mode_long": "emulated", "mode_ring3": "native"}
