"""Every component there is, found by its file, and settings of it to try."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from burnish.core import Advantage, Objective, Planner, PolicySpec, Reward, Source, Suite, Transition
from burnish.types import Prompt

KINDS = {
    "objectives": Objective,
    "advantages": Advantage,
    "rewards": Reward,
    "plans": Planner,
    "transitions": Transition,
    "policies": PolicySpec,
    "sources": Source,
    "suites": Suite,
}
# Settings that wrap a component are tried around the plainest of its kind.
PLAINEST = {
    Advantage: ("advantages", "group_mean"),
    Objective: ("objectives", "step_clip"),
    Reward: ("rewards", "jpeg"),
    Planner: ("plans", "every_token"),
    Transition: ("transitions", "ddim"),
}
# A setting of text that has no default: what to try it with.
EXAMPLES = {"name": "laws.found:brightness", "pairs": "laws.found:captioned"}


def brightness(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """A reward of somebody's own, as `function` takes it."""
    return images.mean((1, 2, 3))


def captioned() -> list[tuple[Prompt, Tensor]]:
    """Pictures for the toy denoiser of the laws."""
    pictures = torch.rand(5, 2, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return [(Prompt(f"data/{i}", "a thing", {"number": i % 3}), one) for i, one in enumerate(pictures)]


def files(kind: str) -> list[str]:
    folder = importlib.import_module(f"burnish.{kind}")
    return sorted(m.name for m in pkgutil.iter_modules(folder.__path__) if not m.name.startswith("_"))


def component(kind: str, name: str) -> type:
    """The one public class of a file that implements the interface of its kind."""
    module = importlib.import_module(f"burnish.{kind}.{name}")
    own = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    public = [c for c in own if issubclass(c, KINDS[kind]) and not c.__name__.startswith("_")]
    assert len(public) == 1, f"burnish/{kind}/{name}.py: one {KINDS[kind].__name__} a file, found {public}"
    return public[0]


def plain(cls: type) -> Any:
    """The component at its defaults; a required component inside it is the plainest one."""
    hints, chosen = get_type_hints(cls), {}
    for f in fields(cls):
        if f.default is MISSING and f.default_factory is MISSING:
            chosen[f.name] = _plainest(hints[f.name], f.name)
    return cls(**chosen)


def _plainest(hint: Any, name: str) -> Any:
    if get_origin(hint) is not None and issubclass(get_origin(hint), Mapping):
        inside = get_args(hint)[1]
        return {"one": 1.0 if inside is float else _plainest(inside, name)}
    return EXAMPLES[name] if hint is str else plain(component(*PLAINEST[hint]))


def variants(cls: type) -> list[Any]:
    """The defaults, and every other choice of a setting that is a choice, one at a time."""
    start, hints = plain(cls), get_type_hints(cls)
    found = [start]
    for f in fields(cls):
        hint = hints[f.name]
        choices = get_args(hint) if get_origin(hint) is Literal else (True, False) if hint is bool else ()
        found += [replace(start, **{f.name: c}) for c in choices if c != start.__dict__[f.name]]
    return found


def needs_weights(cls: type) -> bool:
    """It is made of somebody's weights, which a setting of text names. There are none on every machine."""
    return any(get_type_hints(cls)[f.name] is str and f.name in ("weights", "model") for f in fields(cls))


def undocumented(cls: type) -> list[str]:
    """Settings without a comment on their line (or on one of its lines)."""
    path = Path(inspect.getfile(cls))
    lines = path.read_text().splitlines()
    (node,) = (n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef) and n.name == cls.__name__)
    bare = []
    for entry in node.body:
        if isinstance(entry, ast.AnnAssign) and "ClassVar" not in ast.unparse(entry.annotation):
            text = lines[entry.lineno - 1 : entry.end_lineno]
            if not any("# " in line for line in text):
                bare.append(ast.unparse(entry.target))
    return bare
