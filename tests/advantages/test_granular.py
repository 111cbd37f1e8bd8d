"""What a step is worth whose samples were finished on several grids, against numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_denoiser import ToyFlow, asked

from burnish.advantages.granular import Granular
from burnish.advantages.group_mean import GroupMean
from burnish.advantages.per_part import PerPart
from burnish.core import Denoiser
from burnish.formulas.noise import Noise
from burnish.objectives.step_clip import StepClip
from burnish.plans.single_branch import SingleBranch
from burnish.rewards.jpeg import Jpeg
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Batch, Rollout, Scores, take

CPU = torch.device("cpu")


def drawn(grids: int = 2, at_once: int = 1) -> tuple[Denoiser, Rollout]:
    """Two samples for each branch, on every grid: of one branch and two grids the samples 0 1 | 0 1."""
    policy = ToyFlow(prompts=1).load(CPU)
    strides = tuple(range(1, grids + 1))
    planner = SingleBranch(FlowSDE(), group=2 * grids * at_once, steps=5, at_once=at_once, strides=strides)
    plan = planner.at(1)
    return policy, policy.sample(asked(plan.group, prompts=1), plan, Noise(0, 0, tuple(range(plan.group))))


def scored(**parts: list[float]) -> Scores:
    found = {name: torch.tensor(values, dtype=torch.float64) for name, values in parts.items()}
    total = torch.stack(list(found.values())).sum(0)
    return Scores(total, found, torch.isfinite(total))


def test_advantages_are_summed_over_grids():
    """Fine: 1 and 3, so -1 and 1. Coarse: 4 and 0, so 2 and -2."""
    found = Granular(GroupMean())(scored(one=[1.0, 3.0, 4.0, 0.0]), drawn()[1])
    assert found.tolist() == [[1.0], [-1.0], [1.0], [-1.0]]


def test_rewards_are_normalised_on_each_grid():
    """Of two values each is 1 / sqrt 2 deviations from their mean, however far apart: on both grids, of both parts."""
    scores = scored(a=[1.0, 3.0, 4.0, 0.0], b=[0.0, 50.0, -1.0, 1.0])
    found = Granular(PerPart(eps=0.0))(scores, drawn()[1])
    assert found[:, 0].tolist() == pytest.approx([(-1 + 1 - 1 - 1) / 2**0.5, (1 - 1 + 1 + 1) / 2**0.5] * 2)


def test_steps_are_not_summed():
    """Two branches, two grids: samples 0 1 | 0 1 of the first, 4 5 | 4 5 of the second."""
    found = Granular(GroupMean())(scored(one=[1.0, 3, 4, 0, 0, 1, 0, 3]), drawn(at_once=2)[1])
    assert found[:, 0].tolist() == [1, -1, 1, -1, -2, 2, -2, 2]


def test_a_picture_without_a_score_adds_nothing():
    """The coarse picture of the first: its sibling has nobody to be compared with there."""
    found = Granular(GroupMean())(scored(one=[1.0, 3.0, torch.nan, 0.0]), drawn()[1])
    assert found[:, 0].tolist() == [-1, 1, 0, 1]


def test_one_grid_changes_nothing():
    scores = scored(one=[1.0, 3.0])
    rollout = drawn(grids=1)[1]
    assert Granular(GroupMean())(scores, rollout)[:, 0].tolist() == GroupMean()(scores, rollout).tolist()


def test_a_step_is_learned_from_once_however_many_grids_it_has():
    """Loss and gradient are those of the samples on one grid alone, with the summed advantages."""
    policy, rollout = drawn(grids=3)
    advantage = Granular(GroupMean())(scored(one=[1.0, 3, 4, 0, 1, 2]), rollout)
    assert advantage[:, 0].tolist() == [0.5, -0.5] * 3
    whole = Batch(rollout, scored(one=[0.0] * 6), advantage, torch.ones(6, dtype=torch.bool))
    alone = take(whole, torch.arange(2))
    (step,) = alone.rollout.decisions
    step = replace(step, weight=torch.ones_like(step.weight))
    alone = replace(alone, rollout=replace(alone.rollout, decisions=(step,)))
    weights, found = [weight for _, weight in policy.parameters()], []
    for batch in (whole, alone):
        loss = StepClip().loss(batch, policy, Jpeg().load(CPU))
        slopes = torch.autograd.grad(loss.total, weights)
        found.append((loss.total.detach(), loss.count, *slopes))
    assert found[0][1] == 2.0 and float(torch.cat([s.flatten() for s in found[0][2:]]).abs().max()) > 0
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
