"""`Recorder`: a tracer that keeps every exit in a `Recording`.

The first exit of each kind from each instruction is looked at closely (disassembled, explained);
of the others only the numbers are kept, which takes some microseconds each.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pykvm.lab.explain import explain_record
from pykvm.lab.report.recording import Recording, Row, Site
from pykvm.lab.tracing import TracedExit, Tracer
from pykvm.lab.tracing.tracer import access_text
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.kvm.accounting import TraceRecord
    from pykvm.machine import Machine

MAX_SITES = 20_000
"""Kinds of exits that are told apart; those of a guest that makes more share one per reason."""
_TEXT = 400  # characters of a symbol or a text that are kept


class Recorder(Tracer):
    """Records a machine's exits: `with Recorder(machine) as recorder: machine.run()`.

    The machine must have been made with `trace=Recorder.RING`. `on_exit`, if given, gets every exit
    explained as with `Tracer`, which costs some 100 µs each. After `limit` exits the machine is
    stopped, and what comes after is not kept. The recording outlives the recorder:
    close it with `recorder.recording.close()`.
    """

    def __init__(
        self,
        machine: Machine,
        on_exit: Callable[[TracedExit], object] | None = None,
        *,
        limit: int | None = None,
    ) -> None:
        self.recording = Recording(vcpus=len(machine.vcpus))
        self._sites: dict[tuple[Any, ...], int] = {}
        self._known: dict[tuple[Any, ...], int] = {}
        self._limit = limit
        self._explain_all = on_exit is not None
        standard = machine.standard
        self._captured = None if standard is None else standard.captured
        self._seen = 0 if self._captured is None else self._captured.total
        self._first = self._seen
        super().__init__(machine, on_exit or _ignore)

    def _take(self, records: list[TraceRecord]) -> None:
        entered = time.monotonic_ns()
        with self._lock:
            serial = self._serial()
            for record in records:
                if self.count == self._limit:
                    break
                self.count += 1
                site = self._site(record)
                self.recording.add(
                    Row(
                        max(0, record.time_ns - self._started_ns),
                        record.run_ns,
                        record.handle_ns,
                        record.value or 0,
                        serial,
                        site,
                        record.count,
                        record.vcpu,
                    )
                )
                if self._explain_all:
                    self._on_exit(self.explain(record))
            if self.count == self._limit:
                self.machine.stop()
            if self._alone:
                self._started_ns += time.monotonic_ns() - entered

    def _serial(self) -> int:
        captured = self._captured
        if captured is None:
            return 0
        if captured.total != self._seen:
            self.recording.add_serial(captured.since(self._seen))
            self._seen = captured.total
        return min(self._seen - self._first, 0xFFFFFFFF)

    def _site(self, record: TraceRecord) -> int:
        key: tuple[Any, ...] = (
            record.reason, record.rip, record.cs_base, record.address, record.is_write, record.size,
            record.native, record.value is None, record.count > 1,
        )  # fmt: skip
        found = self._sites.get(key)
        if found is not None:
            return found
        if len(self._sites) >= MAX_SITES:
            key = (record.reason, record.is_write)
            found = self._sites.get(key)
            if found is None:
                found = self._sites[key] = self._rest(record)
            return found
        found = self._sites[key] = self._look(record)
        return found

    def _look(self, record: TraceRecord) -> int:
        traced = self.explain(record)
        told = explain_record(traced, self.machine, general=True).as_dict()
        words = access_text(record._replace(value=None, count=min(record.count, 2)))
        io = record.name in ("KVM_EXIT_IO", "KVM_EXIT_MMIO")
        return self._add(
            Site(
                record.name,
                (words if io else traced.what)[:_TEXT],
                traced.place[:_TEXT],
                record.address,
                record.is_write,
                record.size,
                record.value is not None,
                traced.address,
                traced.symbol[:_TEXT],
                traced.instruction[:_TEXT],
                record.native,
                self._explanation(told),
            )
        )

    def _rest(self, record: TraceRecord) -> int:
        told = {
            "title": "One of many different exits",
            "why": f"The guest made exits of more than {MAX_SITES} kinds; the rest is not told "
            "apart.",
        }
        return self._add(
            Site(record.name, "others", "", 0, record.is_write, 8, True, None, "", "",
                 False, self._explanation(told))
        )  # fmt: skip

    def _add(self, site: Site) -> int:
        self.recording.sites.append(site)
        return len(self.recording.sites) - 1

    def _explanation(self, told: dict[str, Any]) -> int:
        # The instruction is the site's own: without it most explanations are alike.
        told.pop("instruction", None)
        key = tuple(
            (name, tuple(value) if isinstance(value, list) else value)
            for name, value in told.items()
        )
        found = self._known.get(key)
        if found is None:
            self.recording.explanations.append(told)
            found = self._known[key] = len(self.recording.explanations) - 1
        return found


def _ignore(_: TracedExit) -> None:
    """Nobody listens."""
