"""Reading a device's saved state back: every field is checked, as a file may say anything."""

from __future__ import annotations

from pykvm.errors import PykvmError


class DeviceStateError(PykvmError):
    """A saved device state has a missing, unknown or impossible field."""


class StateReader:
    """Takes fields out of a saved state one by one, with bounds.

    All fields are read before the device changes anything, so a refused state leaves it as it was.
    """

    def __init__(self, device: str, state: dict[str, object], version: int | None = None) -> None:
        if not isinstance(state, dict):
            raise DeviceStateError(f"{device}: a saved state is a dict, not {type(state).__name__}")
        self._device = device
        self._left = dict(state)
        if version is not None:
            found = self._take("version")
            if found != version:
                raise DeviceStateError(
                    f"{device}: saved state has version {str(found)[:20]}, "
                    f"but this pykvm reads version {version}"
                )

    def _take(self, name: str) -> object:
        try:
            return self._left.pop(name)
        except KeyError:
            raise DeviceStateError(f"{self._device}: saved state lacks {name!r}") from None

    def _refuse(self, name: str, value: object, wanted: str) -> DeviceStateError:
        return DeviceStateError(
            f"{self._device}: saved state has {name} = {str(value)[:40]}, but it must be {wanted}"
        )

    def integer(self, name: str, high: int, low: int = 0) -> int:
        """The integer field `name`, from `low` to `high`."""
        value = self._take(name)
        if type(value) is not int or not low <= value <= high:
            raise self._refuse(name, value, f"an integer from {low} to {high}")
        return value

    def optional(self, name: str, high: int, low: int = 0) -> int | None:
        """Like `integer`, or `None` where that was saved."""
        if self._left.get(name, 0) is None:
            del self._left[name]
            return None
        return self.integer(name, high, low)

    def boolean(self, name: str) -> bool:
        """The boolean field `name`."""
        value = self._take(name)
        if type(value) is not bool:
            raise self._refuse(name, value, "true or false")
        return value

    def integers(
        self, name: str, most: int, high: int, *, least: int = 0, low: int = 0
    ) -> list[int]:
        """The list field `name`: `least` to `most` integers from `low` to `high`."""
        value = self._take(name)
        wanted = f"a list of {least} to {most} integers from {low} to {high}"
        if not isinstance(value, list | tuple) or not least <= len(value) <= most:
            raise self._refuse(name, value, wanted)
        for item in value:
            if type(item) is not int or not low <= item <= high:
                raise self._refuse(name, value, wanted)
        return list(value)

    def items(self, name: str, most: int) -> list[object]:
        """The list field `name` of at most `most` values, which the caller checks."""
        value = self._take(name)
        if not isinstance(value, list | tuple) or len(value) > most:
            raise self._refuse(name, value, f"a list of at most {most} values")
        return list(value)

    def refuse(self, name: str, value: object, wanted: str) -> None:
        """Raise `DeviceStateError` for a field that contradicts another."""
        raise self._refuse(name, value, wanted)

    def finish(self) -> None:
        """Refuse fields that nobody asked for: they belong to another device or a later version."""
        if self._left:
            names = ", ".join(sorted(map(str, self._left)))[:80]
            raise DeviceStateError(f"{self._device}: saved state has unknown fields: {names}")
