"""Enumerations without `enum`, whose import and member making take 3 to 5 ms of a guest's start.

Type checkers see the real classes. At run time these do what the package needs: members that are
integers or strings, unique per value, with `name` and `value`; iteration; look-up by value.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import IntEnum as IntEnum
    from enum import StrEnum as StrEnum
else:

    class Members(type):
        """Makes members of the `NAME = value` lines in a class body."""

        def __init__(cls, name, bases, body):
            super().__init__(name, bases, body)
            cls._members = {}
            for key, value in body.items():
                if not key[0].isupper() or not isinstance(value, int | str | tuple):
                    continue
                member = cls._make(*value) if isinstance(value, tuple) else cls._make(value)
                member.name = key
                cls._members[member.value] = member
                setattr(cls, key, member)

        def __iter__(cls):
            return iter(cls._members.values())

        def __len__(cls):
            return len(cls._members)

        def __contains__(cls, value):
            return value in cls._members

        def __getitem__(cls, name):
            for member in cls._members.values():
                if member.name == name:
                    return member
            raise KeyError(name)

    class Member:
        """What integer and string members share."""

        name = None

        def __new__(cls, value):
            member = cls._members.get(value)
            if member is None:
                raise ValueError(f"{value!r} is not a valid {cls.__name__}")
            return member

        def __reduce__(self):
            return type(self), (self.value,)

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

    class IntEnum(Member, int, metaclass=Members):
        """A number that is one of the class's members."""

        @classmethod
        def _make(cls, value):
            member = int.__new__(cls, value)
            member.value = value
            return member

        __str__ = int.__repr__

    class StrEnum(Member, str, metaclass=Members):
        """A string that is one of the class's members."""

        @classmethod
        def _make(cls, value):
            member = str.__new__(cls, value)
            member.value = value
            return member

        __str__ = str.__str__
