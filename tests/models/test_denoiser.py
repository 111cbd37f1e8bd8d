"""Drawing and scoring with flows small enough for closed forms: sharing, replay, chunks, solvers, slopes, learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from toy_denoiser import ToyFlow, asked

from burnish.core import LatentPlan, Transition
from burnish.formulas import gaussian
from burnish.formulas.noise import Noise
from burnish.models.denoiser import DenoisingPolicy, Network
from burnish.objectives.step_clip import StepClip
from burnish.transitions.consistency import Consistency
from burnish.transitions.cps import CPS
from burnish.transitions.ddim import DDIM
from burnish.transitions.dpmpp import DPMpp
from burnish.transitions.flow_sde import FlowSDE
from burnish.transitions.score_action import ScoreAction
from burnish.types import Batch, Latents, Prompt, Rollout, Scores, concatenate, take

CPU = torch.device("cpu")
TRANSITIONS = [DDIM(), FlowSDE(), CPS(), CPS(density=True), DPMpp(), Consistency(), ScoreAction(DDIM())]

ALONE = LatentPlan(group=4, steps=6, stochastic=(0, 1, 2, 3, 4), transition=DDIM(), guidance=1.5)
WINDOW = LatentPlan(group=4, steps=6, stochastic=(2, 3), transition=FlowSDE(), shared_start=True)
SOME = replace(ALONE, trained=(1, 4))
OWN = replace(ALONE, trained_each=2, shared_start=True)
TREE = LatentPlan(
    group=8, steps=6, stochastic=(0, 1, 2, 3, 4), transition=FlowSDE(), forks=((0, 2), (2, 2), (4, 2)), solver="dpm2"
)
FOREST = replace(TREE, group=16, shared_start=True)
SPARSE = replace(TREE, stochastic=(1, 2, 3), forks=((1, 2), (2, 2), (3, 2)))
FLASH = replace(WINDOW, steps=9, stochastic=(1, 2), finish="dpm2", ways=((0, 1, 2, 3, 6, 8, 9),))
STAR = LatentPlan(group=6, steps=6, branches=(0, 2, 4), transition=CPS(), solver="dpm2")
GRIDS = LatentPlan(
    group=8, steps=6, branches=(0, 2), transition=FlowSDE(), solver="unipc",
    ways=((0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 4, 6), (0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 4, 6)),
)  # fmt: skip
LANES = replace(ALONE, candidates=2, trained=(1, 3, 4), solver="dpm2")
GRID = replace(ALONE, grid=(0, 1, 4, 5, 9, 10, 12))
STIRRED = replace(ALONE, transition=ScoreAction(FlowSDE(), 0.1))
PLANS = {
    "alone": ALONE, "window": WINDOW, "some": SOME, "tree": TREE, "forest": FOREST, "sparse": SPARSE, "star": STAR,
    "flash": FLASH, "grids": GRIDS, "own": OWN,
    "lanes": LANES, "grid": GRID, "stirred": STIRRED, "both": replace(LANES, transition=ScoreAction(DDIM()), group=2),
}  # fmt: skip

every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
every_transition = pytest.mark.parametrize("transition", TRANSITIONS, ids=str)


def toy() -> DenoisingPolicy:
    """Its network looks at every row by itself: the rounding of a matrix product depends on the number of rows."""
    policy = ToyFlow().load(CPU)
    whole = policy.network.velocity

    def velocity(x, t, conditions, guidance):
        rows = zip(x.split(1), t.split(1), conditions.split(1), strict=True)
        return torch.cat([whole(*row, guidance) for row in rows])

    policy.network.velocity = velocity
    return policy


def drawn(plan: LatentPlan) -> tuple[DenoisingPolicy, Rollout]:
    """Two prompts by `plan`."""
    policy = toy()
    return policy, policy.sample(asked(plan.group), plan, Noise(0, 1, tuple(range(2 * plan.group))))


def steps(rollout: Rollout) -> Latents:
    (found,) = rollout.decisions
    assert isinstance(found, Latents)
    return found


def same(found: Rollout, expected: Rollout, but: Sequence[str] = ()) -> None:
    for name in {f.name for f in fields(Latents)} - set(but):
        assert torch.equal(getattr(steps(found), name), getattr(steps(expected), name)), name
    assert torch.equal(found.final, expected.final)
    torch.testing.assert_close(found.media, expected.media)  # a sigmoid of more rows rounds otherwise
    assert torch.equal(found.evaluations, expected.evaluations) and found.ids == expected.ids
    assert found.prompts == expected.prompts


# --- what is drawn ----------------------------------------------------------------------------------------------------


@every_plan
def test_the_network_is_evaluated_as_often_as_is_said(plan):
    policy, rollout = drawn(plan)
    assert policy.network.evaluations == pytest.approx(rollout.evaluations.sum().item())


def test_independent_samples_take_every_step_alone():
    _, rollout = drawn(ALONE)
    assert rollout.evaluations.tolist() == [6] * 8
    assert len(steps(rollout).origin.unique()) == len(steps(rollout).node.unique()) == 8 * 5
    assert steps(rollout).step.tolist() == [[0, 1, 2, 3, 4]] * 8
    assert len(torch.unique(rollout.final, dim=0)) == 8


def test_only_trained_steps_are_recorded():
    _, every = drawn(ALONE)
    _, some = drawn(SOME)
    assert steps(some).step.tolist() == [[1, 4]] * 8
    assert torch.equal(some.final, every.final)
    assert torch.equal(steps(some).before, steps(every).before[:, [1, 4]])


def test_what_is_recorded_of_a_step_follows_from_the_transition():
    policy, rollout = drawn(ALONE)
    found = steps(rollout)
    times = policy.times(6)
    assert torch.equal(found.time, torch.stack([times[:5], times[1:6]], -1).expand(8, 5, 2))
    assert torch.equal(found.after[:, :-1], found.before[:, 1:])
    for k in range(5):
        t, s = found.time[:, k].unbind(-1)
        v = policy.velocity(found.before[:, k], t.float(), rollout.prompts, guidance=1.5)
        mean, std = DDIM().move(found.before[:, k], v.detach(), t, s)
        torch.testing.assert_close(found.mean[:, k], mean)
        torch.testing.assert_close(found.std[:, k], std)
        torch.testing.assert_close(found.logp[:, k], gaussian.logp(found.after[:, k], mean, std))
        torch.testing.assert_close(found.entropy[:, k], gaussian.entropy(std))


def test_the_noise_of_a_step_is_standard_normal():
    """Recovered from what is recorded, over all steps of many samples."""
    _, rollout = drawn(replace(ALONE, group=64))
    found = steps(rollout)
    z = (found.after - found.mean) / found.std[..., None, None, None]
    assert z.mean().abs() < 0.01 and (z.std() - 1).abs() < 0.01
    flat = z.flatten(2).transpose(0, 1).flatten(1)  # k, samples and dimensions
    assert (torch.corrcoef(flat) - torch.eye(5)).abs().max() < 0.05


def test_the_last_step_follows_the_velocity_to_the_picture():
    policy, rollout = drawn(ALONE)
    last = steps(rollout).after[:, -1]
    t = policy.times(6)[5]
    v = policy.velocity(last, t.float().expand(8), rollout.prompts, guidance=1.5).detach()
    torch.testing.assert_close(rollout.final, last - float(t) * v)
    assert torch.equal(rollout.media, rollout.final.sigmoid())


def test_a_tree_of_three_forks_has_eight_leaves():
    _, rollout = drawn(TREE)
    found = steps(rollout)
    assert [len(found.origin[:8, k].unique()) for k in range(5)] == [1, 2, 2, 4, 4]
    assert [len(found.node[:8, k].unique()) for k in range(5)] == [2, 2, 4, 4, 8]
    assert len(torch.unique(rollout.final[:8], dim=0)) == 8
    assert rollout.evaluations.sum() == 2 * (1 + 2 + 2 + 4 + 4 + 8) < 16 * 6
    assert rollout.group.tolist() == [0] * 8 + [1] * 8


@every_plan
def test_equal_numbers_are_equal_states(plan):
    """And different numbers are different states: nothing is shared that need not be, or numbered twice."""
    _, rollout = drawn(plan)
    found = steps(rollout)
    for numbers, states in ((found.origin, found.before), (found.node, found.after)):
        numbers, states = numbers.flatten(), states.flatten(0, 1).flatten(1)
        equal = (states.unsqueeze(0) == states.unsqueeze(1)).all(-1)
        assert torch.equal(numbers.unsqueeze(0) == numbers.unsqueeze(1), equal)


def test_siblings_of_a_star_leave_from_one_state():
    _, rollout = drawn(STAR)
    found = steps(rollout)
    assert found.logp.shape == (12, 1)
    assert found.step.flatten().tolist() == [0, 0, 2, 2, 4, 4] * 2
    for i in range(0, 12, 2):
        assert torch.equal(found.before[i], found.before[i + 1]) and found.origin[i] == found.origin[i + 1]
        assert not torch.equal(found.after[i], found.after[i + 1])
    assert rollout.group.tolist() == [i // 2 for i in range(12)] and STAR.compared == 2
    assert rollout.evaluations.sum() == pytest.approx(
        2 * (5 + 2 * 5 + 2 * 3 + 2 * 1)
    )  # the path until the last leave it, and the rest


def test_the_path_of_a_star_is_the_ode():
    """Those that leave last come from states that a draw without noise goes through."""
    policy, rollout = drawn(replace(STAR, solver="euler"))
    x = policy.network.start(Noise(0, 1, (int(steps(rollout).origin[0, 0]) // 7,)).normal((3, 4, 4), "start"), 6)
    times = policy.times(6)
    for i in range(5):
        for sample in (steps(rollout).step[:6, 0] == i).nonzero().flatten().tolist():
            torch.testing.assert_close(steps(rollout).before[sample, 0], x[0])
        v = policy.velocity(x, times[i].float().expand(1), asked(1)[:1]).detach()
        x = x + float(times[i + 1] - times[i]) * v


def test_samples_of_a_group_start_from_one_noise():
    _, rollout = drawn(WINDOW)
    found = steps(rollout)
    assert (found.before[:4, 0] == found.before[:1, 0]).all() and not torch.equal(
        found.before[0, 0], found.before[4, 0]
    )
    assert len(torch.unique(rollout.final, dim=0)) == 8
    assert rollout.evaluations.sum() == 2 * (3 + 4 * 3)


def test_without_random_steps_samples_of_one_start_are_equal():
    """So are their rewards: a window of no width teaches nothing."""
    policy, rollout = drawn(replace(WINDOW, stochastic=(), transition=None))
    assert (rollout.media[:4] == rollout.media[:1]).all() and (rollout.media[4:] == rollout.media[4:5]).all()
    assert policy.network.evaluations == 2 * 6


def test_states_that_are_skipped_cost_nothing():
    """One of each prompt at states 0 and 1, where nothing was drawn yet, all at 2, 3, 6 and 8; none at 4, 5 and 7."""
    policy, rollout = drawn(FLASH)
    assert policy.network.evaluations == rollout.evaluations.sum() == 2 * (2 + 4 * 4)
    assert steps(rollout).step.tolist() == [[1, 2]] * 8
    torch.testing.assert_close(steps(rollout).time[0] * 9, torch.tensor([[8.0, 7.0], [7.0, 6.0]], dtype=torch.float64))
    assert drawn(replace(FLASH, ways=(), finish=None))[0].network.evaluations == 2 * (2 + 4 * 7)


def test_after_the_window_steps_are_those_of_the_second_order_solver():
    """MixGRPO, eqs. 19 to 21, with what was expected at the last random step: from 6/9 to 3/9, 1/9, and straight on."""
    policy, rollout = drawn(FLASH)
    x, before = steps(rollout).after[:, 1].double(), steps(rollout).before[:, 1].double()
    one = [p for _, p in policy.parameters()]
    for weight in one:
        weight.data = weight.data.double()

    def clean(x: torch.Tensor, t: float) -> torch.Tensor:
        return x - t * policy.velocity(x, torch.full((8,), t, dtype=torch.float64), rollout.prompts).detach()

    known, times = clean(before, 7 / 9), [7 / 9, 6 / 9, 3 / 9, 1 / 9]
    level = [math.log((1 - t) / t) for t in times]
    for i in (1, 2):
        h, last, expected = level[i + 1] - level[i], level[i] - level[i - 1], clean(x, times[i])
        ahead = (1 + h / (2 * last)) * expected - h / (2 * last) * known
        x, known = times[i + 1] / times[i] * x - (1 - times[i + 1]) * (math.exp(-h) - 1) * ahead, expected
    torch.testing.assert_close(rollout.final.double(), clean(x, 1 / 9), atol=1e-5, rtol=1e-5)


def test_a_step_is_finished_on_every_grid():
    """Two leave at 0 and two at 2, each on two grids. The path to state 2; of the first two states 1 and 2 once, 3, 4
    and 5 on the fine grid and 4 on the coarse; of the others 3 and 4 once, and 5 on the fine grid alone."""
    policy, rollout = drawn(GRIDS)
    found = steps(rollout)
    assert rollout.evaluations.sum() == pytest.approx(2 * (3 + 2 * (2 + 3 + 1) + 2 * (2 + 1)))
    assert policy.network.evaluations == 2 * (3 + 12 + 6)
    assert torch.equal(found.after[:2], found.after[2:4]) and torch.equal(found.node[:2], found.node[2:4])
    assert not (found.after[0] == found.after[1]).any() and len(torch.unique(rollout.final, dim=0)) == 16
    assert found.weight.tolist() == [[0.5]] * 16 and GRIDS.compared == 2
    assert rollout.group.tolist() == [i // 2 for i in range(16)]


def test_a_grid_ends_where_its_steps_lead():
    policy, rollout = drawn(replace(GRIDS, solver="euler"))
    found, times = steps(rollout), policy.times(6)
    for i in range(16):
        x = found.after[i]
        for a, b in pairwise(GRIDS.ways[i % 8 // 2][int(found.step[i]) + 1 :]):
            v = policy.velocity(x, times[a].float().expand(1), rollout.prompts[i : i + 1]).detach()
            x = x + float(times[b] - times[a]) * v
        torch.testing.assert_close(rollout.final[i : i + 1], x)


def test_before_the_window_steps_are_those_of_the_solver():
    """`finish` is of what comes after: the first random step begins where Euler leads."""
    _, rollout = drawn(FLASH)
    _, plain = drawn(replace(FLASH, finish=None, ways=()))
    assert torch.equal(steps(rollout).before, steps(plain).before) and torch.equal(
        steps(rollout).logp, steps(plain).logp
    )
    assert not torch.allclose(rollout.final, plain.final, atol=1e-4)


def test_the_ode_takes_no_decisions():
    policy, rollout = drawn(LatentPlan(group=4, steps=6))
    assert rollout.decisions == () and rollout.logp.shape == (8, 0)
    assert len(torch.unique(rollout.final, dim=0)) == 8
    assert policy.network.evaluations == 8 * 6


def test_samples_without_decisions_are_taken_and_joined():
    _, rollout = drawn(LatentPlan(group=4, steps=6))
    again = concatenate([take(rollout, torch.arange(4)), take(rollout, torch.arange(4, 8))])
    assert torch.equal(again.final, rollout.final)


def test_a_number_of_samples_that_cannot_be_drawn_together():
    with pytest.raises(ValueError, match="12 samples cannot be drawn by a plan that draws 8 together"):
        toy().sample(asked(6), TREE, Noise(0, 0, tuple(range(12))))


# --- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["fp32", "bf16"])
@every_transition
@every_plan
def test_the_ratio_is_exactly_one_before_an_update(plan, transition, stored):
    plan = replace(plan, transition=transition, stored=stored)
    policy, rollout = drawn(plan)
    with torch.no_grad():
        found = policy.score(rollout)
    assert torch.equal(found.logp, rollout.logp)
    assert torch.equal((found.logp - rollout.logp).exp(), torch.ones_like(found.logp))
    assert torch.equal(found.mean, steps(rollout).mean) and torch.equal(found.std, steps(rollout).std)
    assert torch.equal(policy.logp(rollout), rollout.logp)


@every_plan
def test_the_ratio_is_exactly_one_for_any_part_of_a_draw(plan):
    policy, rollout = drawn(plan)
    order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(1))
    for part in order.split(3):
        assert torch.equal(policy.logp(take(rollout, part)), rollout.logp[part])


def test_states_are_rounded_before_anything_is_computed_from_them():
    _, rollout = drawn(replace(ALONE, stored="bf16"))
    for state in (steps(rollout).before, steps(rollout).after, rollout.final):
        assert torch.equal(state, state.bfloat16().float())


@every_plan
def test_scoring_evaluates_the_network_once_for_each_origin(plan):
    policy, rollout = drawn(plan)
    before = policy.network.evaluations
    policy.score(rollout)
    assert policy.network.evaluations - before == len(steps(rollout).origin.unique())


def test_scoring_says_the_guided_velocity():
    policy, rollout = drawn(SOME)
    found, x = policy.score(rollout).velocity, steps(rollout).before
    for k, t in enumerate(steps(rollout).time[0, :, 0]):
        expected = policy.velocity(x[:, k], t.float().expand(8), rollout.prompts, guidance=1.5)
        torch.testing.assert_close(found[:, k], expected)


def test_other_weights_give_other_log_probabilities():
    _, rollout = drawn(ALONE)
    other = ToyFlow(seed=1).load(CPU)
    assert ((other.logp(rollout) - rollout.logp).abs() > 1e-3).all()


# --- chunks -----------------------------------------------------------------------------------------------------------


@every_plan
def test_samples_do_not_depend_on_how_a_draw_is_cut(plan):
    policy, whole = drawn(plan)
    parts, b = [], 2 * plan.group
    for start in range(0, b, plan.together):
        ids = tuple(range(start, start + plan.together))
        parts.append(policy.sample([asked(plan.group)[i] for i in ids], plan, Noise(0, 1, ids)))
    same(concatenate(parts), whole)


@every_plan
def test_numbers_of_states_are_distinct_across_chunks(plan):
    policy, first = drawn(plan)
    b = len(first)
    second = policy.sample(asked(plan.group), plan, Noise(0, 1, tuple(range(b, 2 * b))))
    for name in ("origin", "node"):
        assert not set(getattr(steps(first), name).flatten().tolist()) & set(
            getattr(steps(second), name).flatten().tolist()
        )
    both = concatenate([first, second])
    assert torch.equal(policy.logp(both), both.logp)


@every_plan
def test_taking_and_joining_are_inverse(plan):
    _, rollout = drawn(plan)
    halves = [take(rollout, part) for part in torch.arange(len(rollout)).split(plan.group)]
    same(concatenate(halves), rollout)


def test_other_seeds_steps_and_streams_give_other_samples():
    policy, prompts, ids = toy(), asked(4), tuple(range(8))
    draws = [Noise(0, 1, ids), Noise(1, 1, ids), Noise(0, 2, ids), Noise(0, 1, ids, "evaluate")]
    found = torch.stack([policy.sample(prompts, ALONE, noise).final for noise in draws])
    assert all((found[i] != found[j]).any() for i in range(4) for j in range(i))


# --- a Gaussian, whose flow is known ----------------------------------------------------------------------------------


class GaussianFlow(Network):
    """The exact velocity of data N(centre, width^2) in one dimension: x_t is (1 - t) centre + length z throughout."""

    def __init__(self, centre: float = 0.0, width: float = 0.5) -> None:
        self.device, self.shape = CPU, (1, 1, 1)
        self.centre = torch.nn.Parameter(torch.tensor(centre))
        self.width = width

    def conditions(self, prompts: Sequence[Prompt]) -> torch.Tensor:
        return torch.zeros(len(prompts))

    def velocity(self, x, t, conditions, guidance):
        t = gaussian.rows(t, x)
        away = (x - (1 - t) * self.centre) / ((1 - t) ** 2 * self.width**2 + t**2)
        return t * away - self.centre - (1 - t) * self.width**2 * away

    def times(self, steps: int) -> torch.Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def start(self, noise, steps):
        return noise

    def decode(self, latents):
        return latents.sigmoid()

    def trained(self):
        return [("centre", self.centre)]

    def export(self, folder: Path) -> None: ...


def one(n: int) -> list[Prompt]:
    return [Prompt("only", "it")] * n


def error(solver: str, steps: int) -> float:
    """Largest distance of 64 pictures from where the flow takes their noise: centre + width z."""
    policy, noise = DenoisingPolicy(GaussianFlow(1.0)), Noise(0, 0, tuple(range(64)))
    final = policy.sample(one(64), LatentPlan(group=64, steps=steps, solver=solver), noise).final
    return float((final - (1.0 + 0.5 * noise.normal((1, 1, 1), "start"))).abs().max())


def test_orders_of_solvers():
    """Four times the steps: 4 and (nearly) 16 times nearer; corrected it is nearer still."""
    euler, dpm2, unipc = ([error(solver, n) for n in (16, 64, 256)] for solver in ("euler", "dpm2", "unipc"))
    assert 3.5 < euler[0] / euler[1] < 4.5 and 3.5 < euler[1] / euler[2] < 4.5, euler
    assert 9 < dpm2[1] / dpm2[2] < 20, dpm2
    assert dpm2[0] < euler[0] / 5
    assert unipc[0] / unipc[1] > 9 and unipc[1] / unipc[2] > 9 and unipc[2] < dpm2[2] / 3, unipc


def test_what_was_drawn_at_random_is_not_corrected():
    """One step is left after the last random one: with nothing to correct, it is every solver's."""
    _, plain = drawn(ALONE)
    for solver in ("dpm2", "unipc"):
        assert torch.equal(drawn(replace(ALONE, solver=solver))[1].final, plain.final)
    _, first = drawn(replace(ALONE, stochastic=(0,), solver="unipc"))
    _, second = drawn(replace(ALONE, stochastic=(0,), solver="dpm2"))
    assert not torch.equal(first.final, second.final)


def test_each_step_is_made_by_the_solver_of_its_own():
    """Before the window by one, behind it by another."""
    window = replace(ALONE, stochastic=(2,))
    found = {
        (solver, finish): drawn(replace(window, solver=solver, finish=finish))[1]
        for solver, finish in (("unipc", "dpm2"), ("dpm2", "dpm2"), ("unipc", "unipc"), ("dpm2", "unipc"))
    }
    before = {key: steps(one).before for key, one in found.items()}
    assert torch.equal(before["unipc", "dpm2"], before["unipc", "unipc"])
    assert torch.equal(before["dpm2", "dpm2"], before["dpm2", "unipc"])
    assert not torch.equal(before["unipc", "dpm2"], before["dpm2", "dpm2"])
    # With the same state after the window, the same solver leads to the same end.
    again = drawn(replace(window, stochastic=(0,), solver="euler", finish="dpm2"))[1]
    other = drawn(replace(window, stochastic=(0,), solver="unipc", finish="dpm2"))[1]
    assert torch.equal(again.final, other.final)


@pytest.mark.parametrize("transition", [DDIM(), CPS(), FlowSDE(), Consistency()], ids=str)
def test_samples_have_the_mean_and_deviation_that_the_steps_imply(transition):
    """Every step is affine, so that mean and variance follow one another exactly: A mean + B, A^2 variance + std^2."""
    network, count = GaussianFlow(1.0), 2000
    plan = LatentPlan(group=1, steps=8, stochastic=tuple(range(7)), transition=transition)
    times, mean, variance = network.times(8), 0.0, 1.0
    for i in range(8):
        x, t, s = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), times[i].expand(2), times[i + 1].expand(2)
        v = network.velocity(x, t, None, 1.0).detach()
        after, std = transition.move(x, v, t, s) if i < 7 else (x + (s - t).view(2, 1, 1, 1) * v, torch.zeros(2))
        b, slope = after.flatten()[0].item(), after.flatten().diff().item()
        mean, variance = slope * mean + b, slope**2 * variance + std[0].item() ** 2
    final = DenoisingPolicy(network).sample(one(count), plan, Noise(0, 0, tuple(range(count)))).final
    assert final.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / count))
    assert final.std().item() == pytest.approx(math.sqrt(variance), rel=4 / math.sqrt(2 * count))


# --- learning ---------------------------------------------------------------------------------------------------------


@every_transition
@pytest.mark.parametrize("plan", [ALONE, TREE, STAR], ids=["alone", "tree", "star"])
def test_gradients_are_finite_differences(plan, transition):
    policy, rollout = drawn(replace(plan, transition=transition))
    for _, weight in policy.parameters():
        weight.data = weight.data.double()
    found = steps(rollout)
    exact = {f.name: getattr(found, f.name) for f in fields(Latents)}
    exact = Latents(**{n: v.double() if v.is_floating_point() else v for n, v in exact.items()})
    rollout = replace(rollout, decisions=(exact,))
    mix = torch.randn(found.logp.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def value() -> torch.Tensor:
        scored = policy.score(rollout)
        return (mix * scored.logp).sum() + scored.mean.square().sum() + scored.velocity.sum()

    weights = [weight for _, weight in policy.parameters()]
    slopes = torch.autograd.grad(value(), weights)
    for weight, slope in zip(weights, slopes, strict=True):
        place, h = int(slope.abs().argmax()), 1e-6
        at = weight.data.view(-1)
        at[place] += h
        up = value().item()
        at[place] -= 2 * h
        down = value().item()
        at[place] += h
        assert slope.flatten()[place].item() == pytest.approx((up - down) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("transition", [DDIM(), FlowSDE(), CPS(), Consistency(), ScoreAction(DDIM())], ids=str)
def test_clipped_updates_move_the_mean_to_where_the_reward_is(transition: Transition):
    """200 updates by StepClip, two of each rollout: in the first ratios are 1, in the second some steps are stopped."""
    policy = DenoisingPolicy(GaussianFlow(0.0))
    (_, centre), n = policy.parameters()[0], 32
    plan = LatentPlan(group=n, steps=4, stochastic=(0, 1, 2), transition=transition)
    optimiser = torch.optim.Adam([centre], lr=0.05)
    objective, keep, stopped, means = StepClip(clip=0.02), torch.ones(n, dtype=torch.bool), 0.0, []
    for step in range(100):
        rollout = policy.sample(one(n), plan, Noise(0, step, tuple(range(n))))
        scores = Scores.of("near", -(rollout.final.flatten() - 2).square())
        advantage = (scores.total - scores.total.mean()) / scores.total.std()
        for turn in range(2):
            loss = objective.loss(Batch(rollout, scores, advantage, keep, 0, step), policy, None)
            optimiser.zero_grad()
            (loss.total / loss.count).backward()
            optimiser.step()
            share, gap = (float(loss.metrics[name].total / loss.metrics[name].count) for name in ("clipped", "law_gap"))
            assert share == gap == 0 if turn == 0 else gap > 0
            stopped += share
        means.append(rollout.final.mean().item())
    assert abs(means[0]) < 0.5 and sum(means[-20:]) / 20 == pytest.approx(2, abs=0.15), (means[0], means[-20:])
    assert stopped > 1 and math.isfinite(centre.item())


def test_a_branch_counts_once_however_many_leaves_it_has():
    plan = LatentPlan(8, steps=5, stochastic=(0, 1, 2, 3), forks=((0, 2), (2, 2)), transition=FlowSDE(0.3, "constant"))
    steps = ToyFlow().load(torch.device("cpu")).sample(asked(8), plan, Noise(0, 0, tuple(range(16)))).decisions[0]
    assert float(steps.weight.sum()) == len(steps.node.unique()) == 4 * (2 + 2 + 4 + 4)
    assert steps.weight[0].tolist() == [0.5, 0.5, 1.0, 1.0]
