"""Device models. Each name is imported when it is first used, so a machine pays for what it has."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykvm.devices.base import (
        Clock,
        Device,
        DeviceStateError,
        IrqLine,
        ManualClock,
        MonotonicClock,
        NullIrqLine,
        RecordingIrqLine,
        Timer,
    )
    from pykvm.devices.debugcon import DebugCon
    from pykvm.devices.debugexit import DebugExit
    from pykvm.devices.postcode import PostCode
    from pykvm.devices.uart16550 import Uart16550

__all__ = [
    "Clock",
    "DebugCon",
    "DebugExit",
    "Device",
    "DeviceStateError",
    "IrqLine",
    "ManualClock",
    "MonotonicClock",
    "NullIrqLine",
    "PostCode",
    "RecordingIrqLine",
    "Timer",
    "Uart16550",
]

_HOMES = {
    "DebugCon": "debugcon",
    "DebugExit": "debugexit",
    "PostCode": "postcode",
    "Uart16550": "uart16550",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'base')}"), name)
    globals()[name] = value
    return value
