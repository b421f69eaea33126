"""The walls between the rooms of `vg_utils`: what a lower room never imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vg_utils

ROOT = Path(vg_utils.__file__).parent
UPPER = {"refscenes", "figures", "tuning", "asking", "preparing", "pipeline", "cli"}
NEVER = {
    "data": UPPER | {"models", "training", "evaluation", "predictor"},
    "models": UPPER | {"training", "evaluation", "predictor"},
    "evaluation": UPPER | {"training"},
    "training": UPPER | {"predictor"},
    "figures": {"predictor", "refscenes", "training", "tuning", "pipeline", "cli"},
    "refscenes": UPPER - {"refscenes"} | {"models", "training", "evaluation", "predictor"},
    "tuning": {"refscenes", "pipeline", "cli"},
}


def imports(path: Path) -> set[str]:
    """Rooms of the package that a file imports to run; what is for the type checker alone does not run."""
    tree = ast.parse(path.read_text())
    typed = {id(n) for top in ast.walk(tree) if _is_type_checking(top) for n in ast.walk(top)}
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and id(n) not in typed}
    names |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    return {name.split(".")[1] for name in names if name and name.startswith("vg_utils.")}


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


@pytest.mark.parametrize("room", NEVER)
def test_walls(room):
    seen = {path.name: imports(path) & NEVER[room] for path in (ROOT / room).rglob("*.py")}
    assert {name: found for name, found in seen.items() if found} == {}


def test_every_room_has_walls():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms == NEVER.keys()
