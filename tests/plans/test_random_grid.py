"""Times of steps that are drawn anew in every training step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_denoiser import ToyFlow, asked

from burnish.core import LatentPlan
from burnish.formulas.noise import Noise
from burnish.formulas.windows import scattered
from burnish.objectives.step_clip import StepClip
from burnish.plans.random_grid import RandomGrid
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Batch, Scores

PLANNER = RandomGrid(FlowSDE(), group=2, steps=5, refine=4)


def test_even_grids_have_one_place_in_each_stretch():
    for step in range(50):
        places = scattered(5, 4, True, "test", step)
        assert places[0] == 0 and places[-1] == 20 and len(places) == 6
        assert all(4 * i - 2 <= place < 4 * i + 2 for i, place in enumerate(places[1:-1], 1)), places
    found = {scattered(5, 4, True, "test", step)[2] for step in range(50)}
    assert found == {6, 7, 8, 9}
    assert scattered(5, 1, True, "test") == (0, 1, 2, 3, 4, 5) == scattered(5, 1, False, "test")


def test_grids_of_any_places_rise():
    found = [scattered(3, 2, False, "test", step) for step in range(60)]
    assert all(list(places) == sorted(set(places)) for places in found)
    assert {places[1:-1] for places in found} == {(a, b) for a in range(1, 6) for b in range(a + 1, 6)}


def test_the_steps_of_a_draw_are_on_its_grid():
    policy = ToyFlow().load(torch.device("cpu"))
    for step in (1, 2):
        plan = PLANNER.at(step)
        rollout = policy.sample(asked(2), plan, Noise(0, step, tuple(range(4))))
        times = policy.times(20)[list(plan.grid)]
        assert torch.equal(rollout.decisions[0].time, torch.stack([times[:4], times[1:5]], -1).expand(4, 4, 2))
        assert torch.equal(plan.times(policy.times), times)
    assert PLANNER.at(1).grid != PLANNER.at(2).grid and PLANNER.at(1) == PLANNER.at(1)
    assert PLANNER.evaluation().grid == ()


def test_weights_of_steps_are_those_of_the_grid():
    """They have mean 1 over the steps of the plan: at ratio 1 and advantage 1 the loss is -1, whatever the grid."""
    policy = ToyFlow().load(torch.device("cpu"))
    rollout = policy.sample(asked(2), PLANNER.at(3), Noise(0, 3, tuple(range(4))))
    ones = torch.ones(4)
    batch = Batch(rollout, Scores.of("one", ones), ones, ones > 0)
    loss = StepClip(step_weights="std").loss(batch, policy, None)
    assert (loss.total / loss.count).item() == pytest.approx(-1.0, abs=1e-5)
    even = replace(batch, rollout=replace(rollout, plan=replace(rollout.plan, grid=())))
    loss = StepClip(step_weights="std").loss(even, policy, None)  # the mutation: the weights of another grid
    assert (loss.total / loss.count).item() != pytest.approx(-1.0, abs=1e-3)


@pytest.mark.parametrize("grid", [(0, 1, 2), (1, 2, 3, 4), (0, 2, 2, 4), (0, 3, 2, 4)])
def test_grids_that_cannot_be(grid):
    with pytest.raises(ValueError, match="grid: 4 rising places"):
        LatentPlan(steps=3, grid=grid)
