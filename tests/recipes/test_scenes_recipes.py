"""Recipes of the world's denoisers do two steps on the weights that ship, on prompts that are theirs."""

from __future__ import annotations

import json

import pytest

from burnish.core import LatentPlan
from burnish.engine.loop import train
from burnish.engine.reporter import Reporter
from burnish.recipe import read
from burnish.recipe.check import require

NAMES = [
    name for name, _ in read.shipped() if "/" in name and isinstance(read.read(name).source.plan_at(1), LatentPlan)
]


def test_there_are_recipes():
    assert {"scenes/flow_grpo", "scenes/diffusionnft", "scenes/g2rpo", "scenes/gardo"} <= set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name, tmp_path):
    settings = {"source.on_policy.per_step": 2, "suites.heldout": None, "steps": 2, "checkpoint_every": 2}
    recipe = read.read(name, settings=settings)
    require(recipe)  # raises ValueError if something is missing
    folder = train(recipe, tmp_path / "run", False, Reporter(tmp_path / "run", quiet=True))
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][1:]
    assert len(steps) == 2
    for step in steps:
        assert step["draw/samples"] == 2 * recipe.source.plan_at(1).group and step["score/invalid"] == 0
        assert step["draw/evaluations"] > 0 and 0 <= step["score/total_mean"] <= 1
        assert step.get("update/law_gap", 0) < 1e-5
    assert any(step.get("update/evaluations", 0) > 0 for step in steps)
