"""Every recipe of a released denoiser does two steps on a pipeline of the real classes with small random weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import tiny_diffusers
import torch
from toy_denoiser import ToyFlow, asked

from burnish.core import LatentPlan, Reward, Scorer
from burnish.engine.learner import Learner
from burnish.engine.loop import train
from burnish.engine.reporter import Reporter
from burnish.formulas.noise import Noise
from burnish.objectives.step_clip import StepClip
from burnish.recipe import read
from burnish.rewards.jpeg import Jpeg
from burnish.rewards.weighted import Weighted
from burnish.types import Batch, Scores

NAMES = [
    name for name, _ in read.shipped() if "/" not in name and isinstance(read.read(name).source.plan_at(1), LatentPlan)
]


@dataclass(frozen=True)
class Brightness(Reward):
    """Mean of the pixels, with its gradient."""

    differentiable: ClassVar[bool] = True
    videos: ClassVar[bool] = True

    def load(self, device: torch.device) -> Scorer:
        return _Brightness()


class _Brightness(Scorer):
    def __call__(self, images, prompts) -> Scores:
        return Scores.of("brightness", images.flatten(1).mean(1))


# Recipes that read what a reward is made of, or look at pictures with a network.
ENSEMBLE = Weighted(
    {"main": Brightness(), "aesthetic": Jpeg(), "hps": Jpeg()}, {"main": 1.0, "aesthetic": 0.0, "hps": 0.0}
)
INSTEAD = {
    "pref_grpo": {"reward": Weighted({"hps": Brightness(), "clip": Jpeg()}, {"hps": 0.4, "clip": 0.6})},
    "gardo": {"reward": ENSEMBLE, "advantage.diverse.features": ""},
    "dpok": {"advantage.critic.text_encoder": ""},
    "diffppo": {"advantage.critic.text_encoder": ""},
    "continuous_time_rl": {"advantage.reward_shaped_value.text_encoder": ""},
    "tdpo_r": {"advantage.temporal_critic.features": ""},
    "refl": {"source.on_policy.plan.truncated.low": 9, "source.on_policy.plan.truncated.high": 11},
    "diversity_reward": {"advantage.diversity_credit.features": "", "advantage.diversity_credit.reference": ""},
}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    home = tmp_path_factory.mktemp("pipelines")
    kinds = {"sd3": "sd3", "flux": "flux", "sd": "sd", "wan": "wan", "rlcm": "lcm"}
    return {name: getattr(tiny_diffusers, kind)(home / name) for name, kind in kinds.items()}


def test_there_are_recipes():
    assert {"flow_grpo", "cps", "diffusionnft", "tempflow_grpo", "draft"} <= set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name, pipelines, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue star\ntwo crosses\n")
    whole = read.read(name)
    kind = type(whole.policy).__name__.lower()
    [plan] = read.draft(name).data["source"]["on_policy"]["plan"]
    way = f"source.on_policy.plan.{plan}"
    steps = whole.source.plan_at(1).steps
    whole_groups = {"single_branch": 18, "tree": 16, "window_tree": 16, "backward_interval": 5}
    group = whole_groups.get(plan, min(whole.source.plan_at(1).group, 4))
    settings = {
        "policy": replace(pipelines[kind], train="text")
        if name == "texforce"
        else pipelines.get(name, pipelines[kind]),
        "reward": Brightness(),
        "measures": {},
        "suites": {},
        "source.on_policy.prompts": str(tmp_path / "prompts.txt"),
        "source.on_policy.per_step": 2,
        "source.on_policy.rows": 0,
        f"{way}.group": group,
        f"{way}.steps": steps if plan == "backward_interval" else min(steps, 12),
        "optim.micro": group,
        "optim.lr": 1e-3,
        "steps": 2,
        "device": "cpu",
        **INSTEAD.get(name, {}),
    }
    folder = train(read.read(name, settings=settings), tmp_path / "run", False, Reporter(tmp_path / "run", quiet=True))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    first, second = lines[1:]
    assert first["draw/samples"] == 2 * group and first["draw/evaluations"] > 0
    assert first["update/evaluations"] > 0
    if plan == "all_steps":  # every recorded step at least once; dancegrpo 6 of 11, and the first may serve a group
        assert first["update/evaluations"] >= 0.4 * first["draw/evaluations"]
    assert first["update/grad_norm"] > 0 and second["update/grad_norm"] > 0
    if "update/law_gap" in first:
        assert first["update/law_gap"] < 1e-5
    assert first["score/total_mean"] != second["score/total_mean"]


@pytest.mark.parametrize(
    ("name", "each"),
    [("g2rpo", 1), ("tempflow_grpo", 9), ("dynamic_treerpo", 15), ("branchgrpo", 224), ("scenes/branchgrpo", 29)],
)
def test_siblings_are_evaluated_once_in_updates(name, each):
    """Of a prompt: all the states that its samples have learned from. BranchGRPO's own has room for two leaves."""
    recipe = read.read(name)
    plan = recipe.source.plan_at(1)
    policy = ToyFlow().load(torch.device("cpu"))
    rollout = policy.sample(asked(plan.group), plan, Noise(0, 1, tuple(range(2 * plan.group))))
    batch = Batch(
        rollout,
        Scores.of("bright", rollout.media.mean((1, 2, 3))),
        torch.linspace(-1, 1, len(rollout)),
        torch.ones(len(rollout), dtype=torch.bool),
    )
    objective = StepClip(clip=1e-4)
    learner = Learner(policy, recipe.optim, objective.needs(), seed=0, steps=1)
    before = policy.evaluations
    learner.update(objective, batch, Brightness().load(torch.device("cpu")), 1)
    assert policy.evaluations - before == 2 * each
