"""Components are found by their file: `objective: gspo` is the one public Objective in objectives/gspo.py.

There is no registry to edit. Out of tree the same class is named by import path: `mylab.ideas:MyIdea`. Names and
descriptions are read from the source text, so that listing them imports nothing.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Kind:
    """One kind of component: the word a recipe uses, the abstract class it implements, the folder it lives in."""

    word: str
    base: str  # name of the class in core.py; as text, so that listing does not import torch
    folder: str


KINDS = (
    Kind("policy", "PolicySpec", "policies"),
    Kind("source", "Source", "sources"),
    Kind("plan", "Planner", "plans"),
    Kind("transition", "Transition", "transitions"),
    Kind("reward", "Reward", "rewards"),
    Kind("advantage", "Advantage", "advantages"),
    Kind("objective", "Objective", "objectives"),
    Kind("suite", "Suite", "suites"),
)


def kind_of(base: object) -> Kind | None:
    """The kind that an abstract class of core.py stands for; None for anything else."""
    if not isinstance(base, type) or base.__module__ != "burnish.core":
        return None
    return next((kind for kind in KINDS if kind.base == base.__name__), None)


def choices(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a wrong name: the nearest right one, if one is near, and all of them."""
    known = sorted(known)
    near = get_close_matches(name, known, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else ""
    return f"{guess} (choices: {', '.join(known) or 'none'})"


def names(kind: Kind) -> tuple[str, ...]:
    """Recipe names of the components of a kind that ship with burnish."""
    return tuple(name for name, _ in listing(kind))


@cache
def listing(kind: Kind) -> tuple[tuple[str, str], ...]:
    """(name, first line of its file's docstring) of every shipped component of a kind, read without importing any."""
    found = []
    for name, path in _modules(ROOT / kind.folder):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and kind.base in _bases(node):
                text = ast.get_docstring(tree) or ast.get_docstring(node) or ""
                found.append((name, text.split("\n")[0]))
    return tuple(found)


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and not path.stem.startswith("_"):
            yield path.stem, path
        elif (path / "__init__.py").is_file():
            yield path.name, path / "__init__.py"


def _bases(node: ast.ClassDef) -> set[str]:
    """Names of the bases as written: `Objective`, `Objective[Policy]` and `core.Objective` all give `Objective`."""
    found = set()
    for base in node.bases:
        base = base.value if isinstance(base, ast.Subscript) else base
        found.add(base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else "")
    return found


def component(kind: Kind, name: str, where: str) -> type:
    """The class called `name`, or `module:Class`. Raises ValueError, with the nearest name, if there is none.

    `where` is the place in the recipe, for the message.
    """
    if ":" in name:
        found = load_object(name, where)
        if not isinstance(found, type) or not issubclass(found, base_of(kind)):
            raise ValueError(f"{where}: {name} is not a class that implements burnish.core.{kind.base}")
        return found
    if name not in names(kind):
        raise ValueError(f"{where}: no {kind.word} called {name!r}{choices(name, names(kind))}")
    module = importlib.import_module(f"burnish.{kind.folder}.{name}")
    found = [c for c in _public_classes(module) if issubclass(c, base_of(kind))]
    assert len(found) == 1, f"{module.__name__} must hold exactly one public {kind.base}, and holds {found}"
    return found[0]


def name_of(cls: type) -> str:
    """The name by which a recipe finds a component class: the inverse of `component`."""
    package, _, stem = cls.__module__.rpartition(".")
    if package in {f"burnish.{kind.folder}" for kind in KINDS}:
        return stem
    return f"{cls.__module__}:{cls.__qualname__}"


def base_of(kind: Kind) -> type:
    """The abstract class of a kind."""
    return vars(importlib.import_module("burnish.core"))[kind.base]


def load_object(name: str, where: str) -> object:
    """What `module:name` names. Raises ValueError with a sentence if it cannot be imported."""
    module_name, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module_name)
    except ImportError as problem:
        raise ValueError(f"{where}: cannot import {module_name!r} of {name!r}: {problem}") from problem
    for part in attribute.split("."):
        if part not in vars(found):
            public = [n for n in vars(found) if not n.startswith("_")]
            raise ValueError(f"{where}: {module_name} has no {attribute!r}{_few(attribute, public)}")
        found = vars(found)[part]
    return found


def _few(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _public_classes(module: ModuleType) -> list[type]:
    classes = (value for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_"))
    return [cls for cls in classes if cls.__module__ == module.__name__ and not inspect.isabstract(cls)]
