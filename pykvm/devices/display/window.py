"""`Window`: one of several address ranges of a device, seen by the bus as a device of its own."""

from __future__ import annotations

from collections.abc import Callable


class Window:
    """A range that leads into a device which has more than one. It keeps no state itself."""

    __slots__ = ("access_sizes", "max_access", "name", "read", "write")

    def __init__(
        self,
        name: str,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
        max_access: int = 1,
    ) -> None:
        self.name = name
        self.read = read
        self.write = write
        self.max_access = max_access
        self.access_sizes = tuple(n for n in (1, 2, 4, 8) if n <= max_access)

    def reset(self) -> None:
        """Nothing: the device behind it resets itself."""

    def save(self) -> dict[str, object]:
        """Nothing: the device behind it has the state."""
        return {}

    def load(self, state: dict[str, object]) -> None:
        """Nothing to take over."""

    def close(self) -> None:
        """Nothing to give back."""
