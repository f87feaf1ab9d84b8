"""Conditions of breakpoints: a function of the lab, or an expression over registers and memory.

rax == 3 and rdi > 0x1000
byte(rsi) == 0x41 or qword(rsp + 8) != 0
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

from pykvm.errors import PykvmError
from pykvm.lab.events import LabError
from pykvm.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pykvm.lab.session import Lab

LONGEST = 1000  # characters
_MASK = (1 << 64) - 1
_BINARY: dict[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor,
    ast.LShift: lambda a, b: a << (b & 63), ast.RShift: lambda a, b: a >> (b & 63),
}  # fmt: skip
_COMPARE: dict[type[ast.AST], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_UNARY: dict[type[ast.AST], Callable[[int], int]] = {
    ast.USub: operator.neg, ast.Invert: operator.invert, ast.UAdd: operator.pos,
    ast.Not: lambda a: int(not a),
}  # fmt: skip
_SIZES = {"byte": 1, "word": 2, "dword": 4, "qword": 8}

Condition = Callable[["Lab"], object]


class Expression:
    """An expression that was understood; `value(lab)` works it out, in 64 bits, unsigned."""

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > LONGEST:
            raise LabError(f"the expression has {len(text)} characters; use {LONGEST} at most")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise LabError(f"{text!r} is no expression: {error}") from None
        self._check(self._tree)

    def _check(self, node: ast.AST) -> None:
        for one in ast.walk(node):
            good = (
                isinstance(one, (ast.BoolOp, ast.And, ast.Or, ast.Load))
                or (isinstance(one, ast.BinOp) and type(one.op) in _BINARY)
                or (isinstance(one, ast.UnaryOp) and type(one.op) in _UNARY)
                or (isinstance(one, ast.Compare) and all(type(op) in _COMPARE for op in one.ops))
                or (isinstance(one, ast.Constant) and type(one.value) is int)
                or (isinstance(one, ast.Call) and _is_read(one))
                or isinstance(one, (ast.Name, *_BINARY, *_COMPARE, *_UNARY))
            )
            if not good:
                raise LabError(
                    f"{self.text!r}: {ast.unparse(one)!r} is not possible; use registers, symbols, "
                    "integers, arithmetic, comparisons, and byte(), word(), dword(), qword()"
                )

    def value(self, lab: Lab) -> int:
        """Raises `LabError` for names that are neither a register nor a symbol."""
        try:
            return self._value(self._tree, lab) & _MASK
        except (ZeroDivisionError, PykvmError) as error:
            raise LabError(f"{self.text!r}: {error}") from None

    def __call__(self, lab: Lab) -> bool:
        return bool(self.value(lab))

    def _value(self, node: Any, lab: Lab) -> int:
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int)
            return node.value
        if isinstance(node, ast.Name):
            return lab.lookup(node.id)
        if isinstance(node, ast.BinOp):
            made = _BINARY[type(node.op)](self._value(node.left, lab), self._value(node.right, lab))
            return made & _MASK
        if isinstance(node, ast.UnaryOp):
            return _UNARY[type(node.op)](self._value(node.operand, lab)) & _MASK
        if isinstance(node, ast.BoolOp):
            values = (self._value(part, lab) for part in node.values)
            return int(all(values) if isinstance(node.op, ast.And) else any(values))
        if isinstance(node, ast.Compare):
            left = self._value(node.left, lab)
            for op, right_node in zip(node.ops, node.comparators, strict=True):
                right = self._value(right_node, lab)
                if not _COMPARE[type(op)](left, right):
                    return 0
                left = right
            return 1
        assert isinstance(node, ast.Call)
        assert isinstance(node.func, ast.Name)
        at = self._value(node.args[0], lab) & _MASK
        return int.from_bytes(lab.read(at, _SIZES[node.func.id]), "little")


def _is_read(node: ast.Call) -> bool:
    named = isinstance(node.func, ast.Name) and node.func.id in _SIZES
    return named and len(node.args) == 1 and not node.keywords


def condition(wanted: Condition | str | None) -> Condition | None:
    """What a breakpoint keeps. Raises `LabError` for text that is no expression."""
    return Expression(wanted) if isinstance(wanted, str) else wanted
