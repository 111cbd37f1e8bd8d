"""What a run's folder tells of the run, to whoever wants to go on with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from burnish.engine import checkpoint
from burnish.engine.checkpoint import Checkpoint
from burnish.engine.reporter import step_of
from burnish.recipe.decode import decode
from burnish.recipe.encode import encode
from burnish.recipe.read import as_yaml, data_of, leaves
from burnish.recipe.recipe import Recipe
from burnish.types import Prompt

NOTHING = "nothing"  # is said of a setting that the other does not have

# What may differ between a run and its resumption, by path: none of it changes what a step does, but for rounding;
# `steps` does where the learning rate has a schedule, which is said.
FREE = (
    "steps",
    "device",
    "learners",
    "drawers",
    "scorers",
    "rewards_rest",
    "shard",
    "overlap",
    "suites",
    "evaluate_every",
    "checkpoint_every",
    "keep_checkpoints",
    "samples_every",
    "optim.micro",
    "source.*.rows",
)


def refuse(folder: Path, facts: Mapping[str, Any], resume: bool) -> None:
    """Raises ValueError rather than write over a run, or mix two."""
    recipe = folder / "recipe.yaml"
    if not recipe.exists():
        if resume and not folder.is_dir():
            raise ValueError(f"{folder}: there is no run to resume")
        if checkpoint.latest(folder) is not None:
            raise ValueError(f"{folder} has checkpoints, but no recipe.yaml; put it back, or choose another folder")
        return
    if not resume:
        raise ValueError(f"{folder} holds a run already; resume it, or choose another folder")
    both = _complete(recipe.read_text(encoding="utf-8")), data_of(as_yaml(facts))
    earlier, now = ({path: repr(value) for path, value in leaves(one).items() if not _free(path)} for one in both)
    told = [(path, _told(earlier, path), _told(now, path)) for path in {**now, **earlier}]
    unlike = [one for one in told if one[1] != one[2]]
    if not unlike:
        return
    path, was, given = next((one for one in unlike if NOTHING not in one), unlike[0])
    raise ValueError(f"{folder} was started with {path}: {was}, and cannot go on with {given}; start a new run")


def _told(values: Mapping[str, str], path: str) -> str:
    """What is said at `path`, or above it, where a whole block may be null: of another component nothing is."""
    while path and path not in values:
        path = path.rpartition(".")[0]
    return values.get(path, NOTHING)


def _free(path: str) -> bool:
    return any(fnmatch(path, name) or path.startswith(f"{name}.") for name in FREE)


def steps_of(folder: Path) -> int:
    """How many steps the run was to have."""
    return int(_complete((folder / "recipe.yaml").read_text(encoding="utf-8"))["steps"])


def _complete(text: str) -> Mapping[str, Any]:
    """What a recipe says, with the defaults of what it does not: it may be older than a setting."""
    said = data_of(text)
    try:
        return data_of(as_yaml(encode(decode(Recipe, said))))
    except ValueError:  # it names what is no more
        return said


def beginning(folder: Path, recipe: Recipe, facts: Mapping[str, Any], resume: bool) -> Checkpoint | None:
    """Where to go on from; raises as `refuse` does, now that nobody else can change it, and for edited prompts."""
    refuse(folder, facts, resume)
    newest = checkpoint.latest(folder)
    if newest is None:
        return None
    start = checkpoint.read(newest)
    if start.prompts not in ("", digest(recipe.source.asks())):
        raise ValueError(
            f"{folder}: its prompts were edited since {newest.name}, and what followed would be another run; put them "
            "back, or start a new run"
        )
    return start


def digest(prompts: Sequence[Prompt]) -> str:
    """Of ids, texts and facts, in their order."""
    found = hashlib.blake2b(digest_size=16)
    for prompt in prompts:
        facts = dict(prompt.facts)
        found.update(json.dumps([prompt.id, prompt.text, facts], sort_keys=True, default=str).encode() + b"\n")
    return found.hexdigest() if prompts else ""


def reported(folder: Path, step: int) -> bool:
    """Whether a step was reported, which is the last thing that is done about it."""
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and any(step_of(line) == step for line in metrics.read_text(encoding="utf-8").splitlines())
