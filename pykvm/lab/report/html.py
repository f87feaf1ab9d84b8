"""A recording as one self-contained page: numbers in compressed columns, read by script.

The page asks nothing of the network. Each column is zlib-compressed and in base64; the browser
unpacks it with DecompressionStream.
"""

from __future__ import annotations

import base64
import html
import json
import pathlib
import tempfile
import zlib
from array import array
from contextlib import ExitStack
from os import PathLike

from pykvm.lab.explain.host import host_kind
from pykvm.lab.report.recording import Recording
from pykvm.typed import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from pykvm.machine import RunResult

_HERE = pathlib.Path(__file__).parent
_PARTS = ("data.js", "timeline.js", "lists.js", "page.js")
_TOP = 0xFFFFFFFF
_COLUMNS = ("time", "run", "handle", "low", "high", "serial", "site", "count", "vcpu")
_PIECE = 3 << 14  # bytes turned into base64 at once; a multiple of 3


def write_html(
    recording: Recording,
    path: str | PathLike[str],
    *,
    title: str = "guest",
    result: RunResult | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Writes the page. `facts` are shown in its head; `result` says how the run ended."""
    meta = {
        "title": title,
        "facts": facts or {},
        "host": host_kind(),
        "vcpus": recording.vcpus,
        "count": recording.count,
        "end": "" if result is None else _end(result),
        "serial_lost": recording.serial_lost,
        "sites": [
            [s.name, s.access, s.place, s.address, int(s.is_write), s.size, int(s.has_value),
             None if s.rip is None else f"{s.rip:#x}", s.symbol, s.instruction, int(s.native),
             s.explanation]
            for s in recording.sites
        ],
        "explanations": recording.explanations,
    }  # fmt: skip
    with open(path, "w", encoding="utf-8") as stream:
        page = (_HERE / "page.html").read_text(encoding="utf-8")
        before, _, after = page.partition("<!--data-->")
        stream.write(before.replace("<!--title-->", html.escape(title)).replace(
            "/*style*/", (_HERE / "page.css").read_text(encoding="utf-8")))  # fmt: skip
        # "<" must not end the script element, whatever a guest's symbols are called.
        packed = json.dumps(meta, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        stream.write(f'<script type="application/json" id="meta">{packed}</script>\n')
        _write_columns(recording, stream)
        _script(stream, "serialtext")
        _base64(stream, zlib.compress(recording.serial()))
        stream.write("</script>\n")
        code = "\n".join((_HERE / name).read_text(encoding="utf-8") for name in _PARTS)
        stream.write(after.replace("/*code*/", code))


def _end(result: RunResult) -> str:
    detail = f": {result.detail}" if result.detail else ""
    return f"{result.reason}{detail}"


def _write_columns(recording: Recording, stream: TextIO) -> None:
    packers = [zlib.compressobj(6) for _ in _COLUMNS]
    last = 0
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.SpooledTemporaryFile(1 << 20)) for _ in _COLUMNS]
        for block in recording.blocks():
            times, runs, handles, values, serials, sites, counts, vcpus = zip(*block, strict=True)
            deltas = [b - a for a, b in zip((last, *times), times, strict=False)]
            last = times[-1]
            columns = (
                array("d", deltas),
                array("I", [min(n, _TOP) for n in runs]),
                array("I", [min(n, _TOP) for n in handles]),
                array("I", [n & _TOP for n in values]),
                array("I", [n >> 32 for n in values]),
                array("I", serials),
                array("I", sites),
                array("I", counts),
                array("H", vcpus),
            )
            for column, packer, file in zip(columns, packers, files, strict=True):
                file.write(packer.compress(column.tobytes()))
        for name, packer, file in zip(_COLUMNS, packers, files, strict=True):
            file.write(packer.flush())
            file.seek(0)
            _script(stream, name)
            while piece := file.read(_PIECE):
                _base64(stream, piece)
            stream.write("</script>\n")


def _script(stream: TextIO, name: str) -> None:
    stream.write(f'<script type="application/octet-stream" id="column-{name}">')


def _base64(stream: TextIO, data: bytes) -> None:
    stream.write(base64.b64encode(data).decode("ascii"))
