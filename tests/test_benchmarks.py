"""benchmarks/: they are run by hand and rarely, so here it is seen that what they ask of burnish is there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parent.parent / "benchmarks").glob("*.py"))


def absent(script: str) -> list[str]:
    """Names that a script imports from burnish and that are not there."""
    wanted = [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(script))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("burnish")
        for alias in node.names
    ]
    return [f"{module}.{name}" for module, name in wanted if not _there(module, name)]


def _there(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_what_a_benchmark_imports_is_there(script: Path) -> None:
    assert absent(script.read_text()) == []


def test_a_name_that_is_gone_is_told() -> None:
    assert absent("from burnish.engine.layouts.local import in_training, trained") == [
        "burnish.engine.layouts.local.in_training"
    ]
