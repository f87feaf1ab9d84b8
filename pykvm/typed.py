"""The names of `typing` that this package uses, without importing `typing` at run time.

Type checkers see the real ones. At run time annotations are never evaluated, so stand-ins do:
importing `typing` takes 3 to 5 ms, a tenth of the time in which a guest has started and ended.
"""

from __future__ import annotations

from collections import namedtuple

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
            defaults = [body.pop(field) for field in fields if field in body]
            base = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            body.setdefault("__slots__", ())
            return type(name, (base,), body)

    class NamedTuple(metaclass=_NamedTupleMeta):
        """`class X(NamedTuple)`: fields from the annotations, defaults from the assignments."""
