"""`Record`: small typed value objects, many of them the Python face of a C structure.

Used as dataclasses are (positional or keyword arguments, defaults, equality, `repr`), and typed as
such. Not `@dataclass`, because making one costs about 0.5 ms at import time, and the driver has
dozens of them.
"""

from __future__ import annotations

from pykvm._native import ffi
from pykvm.typed import Any, ClassVar, Self, dataclass_transform


@dataclass_transform()
class Record:
    """A mutable value with named fields, as annotated in the subclass.

    `from_c` and `to_c` copy between a record and a cffi structure whose members have the same
    names: integers as they are, byte arrays as `bytes`, other arrays as tuples of integers.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    _nested: ClassVar[dict[str, type[Record]]] = {}

    def __init_subclass__(cls) -> None:
        own = tuple(n for n, kind in cls.__annotations__.items() if "ClassVar" not in kind)
        cls._fields = tuple(n for n in cls._fields if n not in own) + own

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self._fields
        if len(values) > len(fields):
            raise TypeError(
                f"{type(self).__name__} has {len(fields)} fields, {len(values)} values given"
            )
        given = dict(zip(fields, values, strict=False))
        for name, value in named.items():
            if name not in fields:
                raise TypeError(
                    f"{type(self).__name__} has no field {name!r}; it has {', '.join(fields)}"
                )
            if name in given:
                raise TypeError(f"{type(self).__name__}: two values for the field {name!r}")
            given[name] = value
        for name in fields:
            if name not in given:
                try:
                    given[name] = getattr(type(self), name)
                except AttributeError:
                    raise TypeError(
                        f"{type(self).__name__}: the field {name!r} is missing"
                    ) from None
        self.__dict__.update(given)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        body = ", ".join(f"{n}={_show(getattr(self, n))}" for n in self._fields)
        return f"{type(self).__name__}({body})"

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._fields:
            raise AttributeError(
                f"{type(self).__name__} has no field {name!r}; it has {', '.join(self._fields)}"
            )
        self.__dict__[name] = value

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return type(self)(**{**self.__dict__, **changes})

    def as_dict(self) -> dict[str, Any]:
        """The fields by name; records inside become dictionaries too, tuples lists. For saving."""
        return {n: _plain(getattr(self, n)) for n in self._fields}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        """The record that `as_dict` described. Raises `TypeError` for a field that is wrong."""
        return cls(**{n: _restored(value, cls._nested.get(n)) for n, value in saved.items()})

    @classmethod
    def from_c(cls, struct: Any) -> Self:
        """The record with the values of a cffi structure."""
        return cls(**{name: _read(getattr(struct, name)) for name in cls._fields})

    def to_c(self, struct: Any) -> None:
        """Copies the fields into a cffi structure. Raises `ValueError` naming one that is wrong."""
        for name in self._fields:
            value = getattr(self, name)
            try:
                member = getattr(struct, name)
                if isinstance(member, int):
                    setattr(struct, name, value)
                else:
                    _write(member, value)
            except (OverflowError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{type(self).__name__}.{name} = {_show(value)}: {error}"
                ) from None


def _read(value: Any) -> Any:
    if isinstance(value, int):
        return value
    kind = ffi.typeof(value)
    if kind.kind == "array" and kind.item.kind == "array":
        return tuple(_read(item) for item in value)
    if kind.kind == "array" and ffi.sizeof(kind.item) == 1:
        return bytes(ffi.buffer(value))
    return tuple(int(item) for item in value)


def _write(member: Any, value: Any) -> None:
    kind = ffi.typeof(member)
    if len(value) != kind.length:
        raise ValueError(f"it has {kind.length} elements, not {len(value)}")
    if kind.item.kind == "array":
        for target, item in zip(member, value, strict=True):
            _write(target, item)
    elif isinstance(value, bytes | bytearray | memoryview):
        ffi.buffer(member)[:] = bytes(value)
    else:
        for i, item in enumerate(value):
            member[i] = item


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.as_dict()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _restored(value: Any, kind: type[Record] | None) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_restored(item, kind) for item in value)
    return kind.from_dict(value) if kind is not None and isinstance(value, dict) else value


def _show(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return repr(value)
    return hex(value) if value > 9 or value < 0 else str(value)
