"""What every board but the bare one has: COM1, debug-exit, debugcon and the POST port."""

from __future__ import annotations

from collections.abc import Callable

from pykvm.devices.debugcon import DebugCon
from pykvm.devices.debugexit import DebugExit
from pykvm.devices.postcode import PostCode
from pykvm.devices.uart16550 import Uart16550
from pykvm.machine.boards import layout
from pykvm.machine.result import StopReason
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.machine.machine import Machine

CAPTURE_LIMIT = 1 << 20


class Captured:
    """What a guest wrote, the last MiB of it, with the count of all of it."""

    def __init__(self, limit: int = CAPTURE_LIMIT) -> None:
        self._data = bytearray()
        self._limit = limit
        self.total = 0

    def write(self, data: bytes) -> None:
        """Appends; the oldest bytes go when there are too many."""
        self._data += data
        self.total += len(data)
        if len(self._data) > 2 * self._limit:
            del self._data[: -self._limit]

    def since(self, mark: int) -> bytes:
        """The bytes after the first `mark` ever written, as far as they are kept."""
        fresh = min(self.total - mark, len(self._data), self._limit)
        return bytes(self._data[len(self._data) - fresh :]) if fresh else b""


class _Tee:
    """A back end whose output is captured on the way."""

    def __init__(self, captured: Captured, backend: Any) -> None:
        self._captured = captured.write
        self._forward = backend.write
        self._backend = backend

    def write(self, data: bytes) -> None:
        self._captured(data)
        self._forward(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


class Standard:
    """COM1, debug-exit, debugcon and the POST port of a machine."""

    def __init__(self, machine: Machine, serial: Any, debugcon: Any) -> None:
        self.captured = Captured()
        self.debugcon_captured = Captured()
        self.backend: Any = None
        output: Callable[[bytes], object] = self.captured.write
        if callable(serial):
            output = _both(output, serial)
        elif serial is not None:
            self.backend = serial
        self.uart = Uart16550(machine.wiring.line(layout.COM1_IRQ), output, name="COM1")
        if self.backend is not None:
            self.uart.connect(_Tee(self.captured, self.backend))  # type: ignore[arg-type]
        shown: Callable[[bytes], object] = self.debugcon_captured.write
        if debugcon is not None:
            shown = _both(shown, debugcon if callable(debugcon) else debugcon.write)
        self.firmware_log = shown
        self.debugcon = DebugCon(shown)
        self.post = PostCode()
        self.debug_exit = DebugExit(
            lambda value: machine.request_stop(StopReason.DEBUG_EXIT, value)
        )


def _both(first: Callable[[bytes], object], second: Callable[[bytes], object]) -> Any:
    def write(data: bytes) -> None:
        first(data)
        second(data)

    return write


def add_standard_devices(machine: Machine, serial: Any, debugcon: Any) -> Standard:
    """What a kernel expects to find, and what test kernels end with."""
    standard = Standard(machine, serial, debugcon)
    machine.add_device(standard.uart, pio=layout.COM1, length=8)
    machine.add_device(standard.debug_exit, pio=layout.DEBUG_EXIT, length=4)
    machine.add_device(standard.debugcon, pio=layout.DEBUGCON)
    machine.add_device(standard.post, pio=layout.POST_CODE)
    return standard
