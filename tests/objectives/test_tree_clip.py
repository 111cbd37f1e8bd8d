"""Bounds that widen with the advantage, and the pull towards the best path, against sums that can be written down."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from laws import laws
from objectives.test_steps import at, batch, lost, mean_of, slope
from toy_denoiser import ToyFlow, asked

from burnish.formulas.noise import Noise
from burnish.formulas.ratios import clipped_surrogate
from burnish.objectives.step_clip import StepClip
from burnish.objectives.tree_clip import TreeClip
from burnish.plans.window_tree import WindowTree
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Scores


def of_a_tree(moved: float = 0.0):
    """Three trees of four leaves, at the weights that drew them."""
    old = ToyFlow(shape=(2, 2, 2), prompts=3).load(torch.device("cpu"))
    plan = WindowTree(FlowSDE(), group=4, steps=5, depth=2, growth=0.5).at(1)
    rollout = laws.exactly(old.sample(asked(4, prompts=3), plan, Noise(3, 0, tuple(range(12)))))
    return laws.denoiser({}, moved), batch(at(laws.denoiser({}, 0.0), rollout))


def test_bounds_by_hand():
    """clip 0.1, widen 0.5: at A = 1 and A = -1 the half-widths are 0.1 (1 +- 0.5 x 0.7616)."""
    ratio, advantage = torch.tensor([[1.2], [0.8]]), torch.tensor([[1.0], [-1.0]])
    bound = 0.1 * (1 + 0.5 * torch.tanh(advantage))
    found = clipped_surrogate(ratio, advantage, bound, bound)
    torch.testing.assert_close(found, torch.tensor([[-1.13808], [0.93808]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("widen", [0.0, 0.5])
def test_it_clips_where_its_bounds_say(widen):
    policy, of = of_a_tree(moved=0.05)
    objective = TreeClip(clip=0.01, widen=widen)
    loss = lost(objective, of, policy)
    logp = policy.logp(of.rollout)
    ratio, a, weight = (logp - of.rollout.logp).exp(), of.advantage.unsqueeze(1), of.rollout.weight
    bound = 0.01 * (1 + widen * torch.tanh(a))
    each = torch.maximum(-ratio * a, -torch.minimum(torch.maximum(ratio, 1 - bound), 1 + bound) * a)
    torch.testing.assert_close(loss.total / loss.count, (each * weight).sum() / weight.sum())
    plain = lost(StepClip(clip=0.01), of, policy)
    assert (widen == 0) == torch.allclose(loss.total, plain.total, rtol=1e-9)
    assert 0 < mean_of(loss, "clipped") < 1


def test_the_pull_by_its_definition():
    """The worst leaves are pulled to the velocities of the best of their group, which stays where it is."""
    policy, of = of_a_tree()
    of = replace(of, advantage=torch.zeros(12, dtype=torch.float64))
    total = torch.tensor([0.0, 3, 1, 2, 9, 0, 1, 2, 0, 0, 0, 4], dtype=torch.float64)
    keep = torch.ones(12, dtype=torch.bool)
    keep[4] = False  # the best of the second group does not count: its last is
    of = replace(of, scores=Scores.of("one", total), keep=keep)
    loss = lost(TreeClip(best_path=0.1, scale=2.0), of, policy)
    v, weight = policy.score(of.rollout).velocity, of.rollout.weight
    best = torch.tensor([1] * 4 + [7] * 4 + [11] * 4)
    fade = torch.exp(-torch.tensor([1.5, 1.0, 1.0], dtype=torch.float64) / 2).repeat_interleave(4)
    apart = (v - v[best].detach()).square().flatten(2).mean(2)
    expected = 0.1 * (fade.unsqueeze(1) * apart * weight)[keep].sum() / weight[keep].sum()
    torch.testing.assert_close(loss.total / loss.count, expected)
    torch.testing.assert_close(slope(loss, policy), slope(expected, policy))
    assert (apart[[1, 7, 11]] == 0).all() and expected > 0


def test_wrong_settings():
    for fields, sentence in (
        ({"clip": 0.0}, "clip: must be above 0"),
        ({"widen": 1.0}, "widen: must be from 0 to below 1"),
        ({"best_path": -1.0}, "best_path must be 0 or more"),
    ):
        with pytest.raises(ValueError, match=sentence):
            TreeClip(**fields)
