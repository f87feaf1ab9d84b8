"""The names of `typing` that this package uses, without importing `typing` at run time.

Type checkers see the real ones. At run time annotations are never evaluated, so stand-ins do:
importing `typing` takes 3 to 5 ms, a tenth of the time in which a guest has started and ended.
"""

from __future__ import annotations

from operator import itemgetter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any as Any
    from typing import ClassVar as ClassVar
    from typing import Final as Final
    from typing import Generic as Generic
    from typing import Literal as Literal
    from typing import NamedTuple as NamedTuple
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import Self as Self
    from typing import TextIO as TextIO
    from typing import TypeAlias as TypeAlias
    from typing import TypeVar as TypeVar
    from typing import cast as cast
    from typing import dataclass_transform as dataclass_transform
    from typing import overload as overload
else:

    class _StandIn:
        """Can be subscripted and be a base class; means nothing."""

        __slots__ = ()

        def __class_getitem__(cls, item):
            return cls

        def __init_subclass__(cls, **keywords):
            pass

    class Any(_StandIn): ...

    class ClassVar(_StandIn): ...

    class Final(_StandIn): ...

    class Generic(_StandIn): ...

    class Literal(_StandIn): ...

    class NoReturn(_StandIn): ...

    class Protocol(_StandIn): ...

    class Self(_StandIn): ...

    class TextIO(_StandIn): ...

    class TypeAlias(_StandIn): ...

    def TypeVar(name, *constraints, **keywords):
        return Any

    def cast(kind, value):
        return value

    def overload(function):
        return function

    def dataclass_transform(**keywords):
        return lambda cls: cls

    class _NamedTupleMeta(type):
        def __new__(mcls, name, bases, body):
            if not bases:
                return super().__new__(mcls, name, bases, body)
            fields = tuple(body.get("__annotations__", ()))
            body["_fields"] = fields
            body["_field_defaults"] = {f: body[f] for f in fields if f in body}
            for index, field in enumerate(fields):
                body[field] = property(itemgetter(index))
            body.setdefault("__slots__", ())
            return type(name, (_NamedTuple,), body)

    class _NamedTuple(tuple):
        """What `collections.namedtuple` makes, without generating code for every class."""

        __slots__ = ()
        _fields = ()
        _field_defaults = {}

        def __new__(cls, *values, **named):
            if not named and len(values) == len(cls._fields):
                return tuple.__new__(cls, values)
            rest = cls._fields[len(values) :]
            unknown = named.keys() - set(rest)
            missing = [f for f in rest if f not in named and f not in cls._field_defaults]
            if unknown or missing or len(values) > len(cls._fields):
                raise TypeError(
                    f"{cls.__name__} takes the fields {', '.join(cls._fields)}; "
                    f"missing: {missing}, not expected: {sorted(unknown) or list(values)}"
                )
            defaults = cls._field_defaults
            rest_values = [named[f] if f in named else defaults[f] for f in rest]
            return tuple.__new__(cls, (*values, *rest_values))

        @classmethod
        def _make(cls, values):
            return cls(*values)

        def _replace(self, **changes):
            return type(self)(**{**self._asdict(), **changes})

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self):
            body = ", ".join(f"{n}={v!r}" for n, v in zip(self._fields, self, strict=True))
            return f"{type(self).__name__}({body})"

        def __getnewargs__(self):
            return tuple(self)

    class NamedTuple(metaclass=_NamedTupleMeta):
        """`class X(NamedTuple)`: fields from the annotations, defaults from the assignments."""
