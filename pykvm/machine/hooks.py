"""Handlers in two lines: `@machine.on_pio(0x10)` and `@machine.on_mmio(gpa, length)`."""

from __future__ import annotations

from collections.abc import Callable

from pykvm.bus import Read, Write
from pykvm.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from pykvm.bus import Range
    from pykvm.kvm import Vcpu
    from pykvm.machine.machine import Machine


class Access:
    """One access to a hooked range.

    `address` is the port or the guest-physical address, `offset` counts from the start of the
    hooked range, `size` is in bytes. For a write `value` is what the guest wrote; for a read set
    it to what the guest shall get (0 otherwise).
    """

    __slots__ = ("_hook", "is_write", "offset", "size", "value")

    def __init__(self, hook: Hook, is_write: bool, offset: int, size: int, value: int) -> None:
        self._hook = hook
        self.is_write = is_write
        self.offset = offset
        self.size = size
        self.value = value

    @property
    def is_read(self) -> bool:
        """The opposite of `is_write`."""
        return not self.is_write

    @property
    def address(self) -> int:
        """Port number or guest-physical address of the access."""
        return self._hook.start + self.offset

    port = gpa = address

    @property
    def data(self) -> bytes:
        """`value` as the bytes on the bus."""
        return self.value.to_bytes(self.size, "little")

    @property
    def vcpu(self) -> Vcpu:
        """The vCPU whose exit this is (valid while the handler runs)."""
        return self._hook.machine.current_vcpu

    @property
    def machine(self) -> Machine:
        """The machine the hook belongs to."""
        return self._hook.machine

    def __repr__(self) -> str:
        what = "write" if self.is_write else "read"
        return f"<Access {what} {self.address:#x} size={self.size} value={self.value:#x}>"


Handler = Callable[[Access], object]


class Hook:
    """A registered handler: still callable, and removable with `remove()`."""

    def __init__(self, machine: Machine, kind: str, start: int, function: Handler) -> None:
        self.machine = machine
        self.kind = kind
        self.start = start
        self.function = function
        self.__doc__ = function.__doc__
        self.range: Range | None = None

    @property
    def __name__(self) -> str:
        return str(getattr(self.function, "__name__", "handler"))

    def __call__(self, access: Access) -> object:
        return self.function(access)

    def remove(self) -> None:
        """Takes the handler off; what it covered shows through again."""
        if self.range is not None:
            self.range.remove()
            self.range = None

    def callables(self) -> tuple[Read, Write]:
        """The handler as the bus calls it."""
        function, hook = self.function, self

        def read(offset: int, size: int) -> int:
            access = Access(hook, False, offset, size, 0)
            function(access)
            value = access.value
            if value >> 8 * size:  # negative, or too wide: what fits on the bus
                value &= (1 << 8 * size) - 1
            return value

        def write(offset: int, size: int, value: int) -> None:
            function(Access(hook, True, offset, size, value))

        return read, write
