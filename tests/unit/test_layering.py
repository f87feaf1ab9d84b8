"""Each room imports only from rooms below it (docs/architecture.md). Read from the source's AST."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2] / "pykvm"

# From the top of the house to its cellar; rooms on one level must not import each other.
LEVELS = [
    ["__main__"],
    ["cli"],
    ["lab", "fuzz"],
    ["machine"],
    ["boot"],
    ["devices"],
    ["datapath"],
    ["arch"],
    ["memory", "bus"],
    ["memory_search"],
    ["kvm"],
    ["sparsefile"],
    ["_native"],
]
LEAVES = {"children", "enums", "errors", "images", "typed"}  # everyone may import them
NEVER = {"devices": {"kvm", "machine", "_native"}, "arch": {"kvm", "_native"}}
HEIGHT = {room: len(LEVELS) - i for i, level in enumerate(LEVELS) for room in level}


def room_of(path: pathlib.Path) -> str:
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path: pathlib.Path) -> set[tuple[str, int]]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "pykvm" and len(parts) > 1:
                found.add((parts[1], node.lineno))
    return found


def only_for_types(path: pathlib.Path) -> set[int]:
    """Lines inside `if TYPE_CHECKING:` blocks: they import nothing at run time."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                lines.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_room_imports_only_from_below(path: pathlib.Path) -> None:
    room = room_of(path)
    if room in LEAVES:
        assert {r for r, _ in imported_rooms(path)} <= LEAVES | {room}
        return
    assert room in HEIGHT, f"{room} is not a room of the house; add it to docs/architecture.md"
    typing_lines = only_for_types(path)
    for other, line in imported_rooms(path):
        if other in LEAVES or other == room or other.startswith("__version"):
            continue
        assert other in HEIGHT, f"{path}:{line}: pykvm.{other} is not a room"
        if line in typing_lines and other not in NEVER.get(room, set()):
            continue
        assert HEIGHT[other] < HEIGHT[room], f"{path}:{line}: {room} imports {other}"
        assert other not in NEVER.get(room, set()), f"{path}:{line}: {room} must not know {other}"


def test_only_the_driver_and_its_loops_touch_the_c_layer() -> None:
    users = {room_of(p) for p in MODULES if any(r == "_native" for r, _ in imported_rooms(p))}
    assert users <= {"kvm", "machine", "datapath", "memory", "memory_search", "bus", "sparsefile"}


def test_the_check_can_fail(tmp_path: pathlib.Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("from pykvm.machine import Machine\n")
    assert imported_rooms(bad) == {("machine", 1)}
    assert HEIGHT["machine"] > HEIGHT["devices"]
