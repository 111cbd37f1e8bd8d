"""Which steps each planner draws at random as training goes on: by hand, and by what ties them together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy_denoiser import ToyFlow, asked

from burnish.advantages.group_norm import GroupNorm
from burnish.core import LatentPlan, Planner
from burnish.formulas import windows
from burnish.formulas.noise import Noise
from burnish.plans.all_steps import AllSteps
from burnish.plans.backward_interval import BackwardInterval
from burnish.plans.candidates import Candidates
from burnish.plans.ode import ODE
from burnish.plans.random_grid import RandomGrid
from burnish.plans.single_branch import SingleBranch
from burnish.plans.tree import Tree
from burnish.plans.truncated import Truncated
from burnish.plans.window import Window
from burnish.plans.window_tree import WindowTree
from burnish.recipe.decode import decode
from burnish.recipe.encode import encode
from burnish.transitions.consistency import Consistency
from burnish.transitions.cps import CPS
from burnish.transitions.ddim import DDIM
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Latents, Rollout, Scores

SDE = FlowSDE()
PLANNERS = [
    AllSteps(SDE),
    Window(SDE),
    SingleBranch(SDE),
    Tree(SDE),
    BackwardInterval(SDE),
    ODE(),
    Truncated(),
    WindowTree(SDE),
    RandomGrid(SDE),
    Candidates(SDE),
]
every = pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: type(planner).__name__)


def drawn(plan: LatentPlan) -> Rollout:
    """Two prompts by `plan`."""
    policy, prompts = ToyFlow().load(torch.device("cpu")), asked(plan.group)
    return policy.sample(prompts, plan, Noise(0, 1, tuple(range(len(prompts)))))


def steps(rollout: Rollout) -> Latents:
    (found,) = rollout.decisions
    assert isinstance(found, Latents)
    return found


# --- what they have in common -----------------------------------------------------------------------------------------


@every
def test_pictures_that_are_looked_at_follow_the_ode(planner):
    plan = planner.evaluation()
    assert (plan.group, plan.stochastic, plan.branches, plan.forks, plan.shared_start) == (1, (), (), (), False)
    solver = vars(planner).get("solver", "euler")
    assert (plan.steps, plan.guidance, plan.solver) == (planner.steps, planner.guidance, solver)


@every
def test_they_may_take_other_steps_and_other_guidance(planner):
    found = replace(planner, guidance=4.5, evaluation_steps=40, evaluation_guidance=1.0)
    plan = found.evaluation()
    assert (plan.steps, plan.guidance) == (40, 1.0)
    assert (found.at(1).steps, found.at(1).guidance) == (planner.steps, 4.5)


def name_of(planner: Planner) -> str:
    return type(planner).__module__.rpartition(".")[2]


def given(planner: Planner) -> dict:
    return {} if isinstance(planner, (ODE, Truncated)) else {"transition": {"flow_sde": {"a": 0.7}}}


@every
def test_a_recipe_writes_the_transition_inside(planner):
    assert decode(Planner, {name_of(planner): given(planner)}, "plan") == planner
    assert decode(Planner, encode(planner), "plan") == planner


def test_a_transition_may_be_its_name():
    assert decode(Planner, {"window": {"transition": "cps"}}, "plan") == Window(CPS())


@pytest.mark.parametrize("data, sentence", [
    ({"window": {}}, "plan.window: Window needs 'transition'"),
    ({"window": {"transition": "flow_sd"}}, r"plan.window.transition: no transition called 'flow_sd'; did you mean"),
    ({"window": {"transition": {"flow_sde": {"b": 1}}}}, r"plan.window.transition.flow_sde.b: FlowSDE has no such"),
    ({"window": {"transition": "cps", "widht": 3}}, r"plan.window.widht: Window has no such field; did you mean"),
    ({"window": {"transition": "cps", "width": 25}}, "plan.window: width must be from 1 to 24, the steps that may be"),
    ({"window": {"transition": "cps", "mode": "decai"}}, "plan.window.mode: no such choice: 'decai'; did you mean"),
    ({"tree": {"transition": "cps", "forks": [0, 3, 19]}}, "plan.tree: forks must be from 0 to 18"),
])  # fmt: skip
def test_a_wrong_recipe_names_the_place(data, sentence):
    with pytest.raises(ValueError, match=sentence):
        decode(Planner, data, "plan")


@pytest.mark.parametrize("make, sentence", [
    (lambda: AllSteps(SDE, group=0), "group must be at least 1"),
    (lambda: AllSteps(SDE, guidance=-1.0), "guidance must be 0 or more"),
    (lambda: AllSteps(SDE, steps=1), "steps must be at least 2, because the last is never drawn at random, got 1"),
    (lambda: AllSteps(SDE, train_share=0.0), "train_share must be above 0 and at most 1"),
    (lambda: AllSteps(SDE, train_share=1.5), "train_share must be above 0 and at most 1"),
    (lambda: AllSteps(SDE, evaluation_steps=-1), "evaluation_steps must be 0"),
    (lambda: AllSteps(SDE, evaluation_guidance=-1.0), "guidance must be 0 or more"),
    (lambda: Window(SDE, width=0), "width must be from 1 to 24, the steps that may be drawn at random, got 0"),
    (lambda: Window(SDE, width=6, until=5), "width must be from 1 to 5"),
    (lambda: Window(SDE, stride=0), "stride must be at least 1"),
    (lambda: Window(SDE, dwell=0), "dwell must be at least 1 training step"),
    (lambda: Window(SDE, rate=-0.1), "rate must be 0"),
    (lambda: Window(SDE, compression=0.0), "compression must be above 0 and at most 1"),
    (lambda: Window(SDE, compression=1.5), "compression must be above 0 and at most 1"),
    (lambda: Window(SDE, until=25), "until must be from 1 to 24, or 0 for all steps but the last, got 25"),
    (lambda: SingleBranch(SDE, at_once=10), "at_once must be from 1 to 9, or 0 for all 9 steps, got 10"),
    (lambda: SingleBranch(SDE, at_once=-1), "at_once must be from 1 to 9"),
    (lambda: SingleBranch(SDE, at_once=4), "group: 6 samples cannot leave 4 branches in equal numbers"),
    (lambda: Tree(SDE, forks=()), "forks must be one step or more, each once and in order"),
    (lambda: Tree(SDE, forks=(3, 0)), "forks must be one step or more, each once and in order"),
    (lambda: Tree(SDE, forks=(0, 0)), "forks must be one step or more, each once and in order"),
    (lambda: Tree(SDE, forks=(-1, 0)), "forks must be from 0 to 18"),
    (lambda: Tree(SDE, forks=(0, 19)), "forks must be from 0 to 18"),
    (lambda: Tree(SDE, pruned=(19,)), "pruned: some of the steps drawn at random"),
    (lambda: Tree(SDE, pruned=(3, 2)), "pruned: some of the steps drawn at random"),
    (lambda: Tree(SDE, pruned=tuple(range(19))), "pruned: some of the steps drawn at random"),
    (lambda: Tree(SDE, pruned=(2,), pruned_moves=-1), "must be 0 or more"),
    (lambda: Tree(SDE, pruned=(3,), pruned_moves=2, between="ode"), "follow the ODE cannot be pruned"),
    (lambda: Tree(SDE, children=1), "children must be at least 2"),
    (lambda: Tree(SDE, group=24), "group: 24 is not a multiple of the 16 leaves of a tree"),
    (lambda: BackwardInterval(SDE, first=1), "first must be from 2 to 20, the number of steps, got 1"),
    (lambda: BackwardInterval(SDE, last=21), "last must be from 2 to 20, the number of steps, got 21"),
    (lambda: BackwardInterval(SDE, stages=0), "stages must be at least 1 training step"),
    (lambda: BackwardInterval(SDE, branches=1), "branches must be at least 2"),
    (lambda: BackwardInterval(SDE, group=6), "group: 6 is not a multiple of the 5 leaves of a tree"),
    (lambda: ODE(group=0), "group must be at least 1"),
    (lambda: WindowTree(SDE, children=1), "children must be at least 2 and dwell at least 1, got 1 and 25"),
    (lambda: WindowTree(SDE, growth=-0.5), "growth must be 0"),
    (lambda: WindowTree(DDIM(), growth=0.5), "growth 0.5: DDIM cannot be made noisier; flow_sde can"),
    (lambda: WindowTree(SDE, group=24), "group: 24 is not a multiple of the 16 leaves of a tree"),
    (lambda: LatentPlan(steps=4, stochastic=(0, 1), transition=SDE, transitions=(SDE,)), "transitions: 1 for 2 steps"),
    (lambda: Truncated(low=3, high=2), "low and high must be steps from 0 to 49, in order, got 3 and 2"),
    (lambda: Truncated(high=50), "low and high must be steps from 0 to 49"),
    (lambda: Truncated(mean=50.0), "mean must be from 0 to 49"),
    (lambda: Truncated(deviation=-1.0), "deviation must be 0 or more"),
    (lambda: LatentPlan(steps=4, stochastic=(1,), transition=SDE, ways=((0, 1, 3, 4),)), "ways: states in order"),
    (lambda: LatentPlan(steps=4, branches=(0,), group=1, transition=SDE, ways=((0, 2, 4),)), "none skipped before 1"),
    (lambda: LatentPlan(steps=4, ways=((0, 2, 3),)), "ways: states in order, from 0 to 4"),
    (lambda: LatentPlan(steps=4, ways=((0, 3, 2, 4),)), "ways: states in order, from 0 to 4"),
    (lambda: LatentPlan(steps=4, ways=((0, 4), (0, 2, 4))), "ways: 2 for 0 branches; one, or equally many"),
    (lambda: SingleBranch(SDE, group=6, strides=(1, 2, 3, 4)), "group: 6 samples cannot take 4 ways in equal numbers"),
    (lambda: SingleBranch(SDE, strides=()), "strides must be one number from 1 on or more"),
    (lambda: SingleBranch(SDE, strides=(2, 1)), "each once and in order"),
    (lambda: SingleBranch(SDE, strides=(0, 1)), "strides must be one number from 1 on or more"),
    (lambda: LatentPlan(steps=4, ways=((0, 2, 4),), waypoint=3), "waypoint: step 3 is not on the way"),
    (lambda: LatentPlan(steps=4, stochastic=(0, 1), transition=SDE, trained_each=3), "trained_each must be from"),
    (lambda: LatentPlan(group=1, steps=4, branches=(0,), transition=SDE, trained_each=1), "trained_each: samples that"),
    (lambda: LatentPlan(steps=4, waypoint=4), "waypoint must be a step from 0 to 3, got 4"),
])  # fmt: skip
def test_wrong_settings(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


# --- all steps --------------------------------------------------------------------------------------------------------


def test_all_steps_but_the_last_are_drawn_and_learned_from():
    plan = AllSteps(SDE).at(3)
    assert plan.stochastic == tuple(range(9)) and plan.trained is None
    assert steps(drawn(AllSteps(SDE, group=2).at(3))).step[0].tolist() == list(range(9))


def test_a_share_is_learned_from():
    """DanceGRPO: nine of fifteen, other ones of every sample."""
    plan = AllSteps(SDE, group=100, steps=16, train_share=0.6).at(1)
    assert plan.stochastic == plan.learned == tuple(range(15)) and plan.trained is None
    rollout = drawn(plan)
    chosen = steps(rollout).step
    assert chosen.shape == (200, 9) and all(row == sorted(set(row)) for row in chosen.tolist())
    counts = torch.bincount(chosen.flatten(), minlength=15)
    assert (counts / 200 - 0.6).abs().max() < 0.15  # every step has its turn
    assert len(set(map(tuple, chosen.tolist()))) > 190
    assert rollout.evaluations.tolist() == [16] * 200 and torch.equal(steps(drawn(plan)).step, chosen)


def test_a_share_is_of_what_all_steps_record():
    """The same draw, less of it kept; and the choice of a sample is its own in any company."""
    plan = AllSteps(SDE, group=3, steps=6, train_share=0.4).at(1)
    some, whole = drawn(plan), drawn(replace(plan, trained_each=None))
    assert torch.equal(some.final, whole.final)
    for name in ("before", "after", "logp", "time", "node"):
        every = getattr(steps(whole), name)
        assert torch.equal(getattr(steps(some), name), torch.stack([r[c] for r, c in zip(every, steps(some).step)]))
    policy = ToyFlow().load(torch.device("cpu"))
    alone = policy.sample(asked(3)[4:5], replace(plan, group=1), Noise(0, 1, (4,)))
    assert torch.equal(steps(alone).step, steps(some).step[4:5])
    before = policy.network.evaluations
    torch.testing.assert_close(policy.logp(some), some.logp, atol=1e-6, rtol=1e-6)
    assert policy.network.evaluations - before == 6 * 2  # two of five steps of each


def test_a_share_too_small_for_a_step_is_one_step():
    assert AllSteps(SDE, train_share=0.01).at(1).trained_each == 1 and AllSteps(SDE).at(1).trained_each is None


def test_a_consistency_model_is_looked_at_with_noise():
    planner = AllSteps(Consistency(), group=3, steps=8, evaluation_steps=4, evaluate_with_noise=True)
    plan = planner.evaluation()
    assert (plan.group, plan.steps, plan.stochastic, plan.transition) == (1, 4, (0, 1, 2), Consistency())
    assert not torch.equal(drawn(plan).final, drawn(AllSteps(Consistency(), steps=4).evaluation()).final)


# --- windows ----------------------------------------------------------------------------------------------------------


def first(planner: Window, steps: int) -> list[int]:
    """Where the window begins in each training step from the first."""
    return [planner.at(step).stochastic[0] for step in range(1, steps + 1)]


def test_a_progressive_window_moves_on_and_comes_round_again():
    planner = Window(SDE, steps=7, width=4, dwell=2)
    assert first(planner, 8) == [0, 0, 1, 1, 2, 2, 0, 0]
    assert planner.at(3).stochastic == (1, 2, 3, 4) and planner.at(3).trained is None


def test_a_stride_as_wide_as_the_window_does_not_overlap():
    assert first(Window(SDE, steps=25, width=4, dwell=1, stride=4), 7) == [0, 4, 8, 12, 16, 20, 0]


def test_mixgrpo_as_released():
    planner = Window(SDE)
    assert [planner.at(step).stochastic for step in (1, 25, 26)] == [(0, 1, 2, 3), (0, 1, 2, 3), (1, 2, 3, 4)]
    assert planner.at(25 * 20 + 1).stochastic == (20, 21, 22, 23) and planner.at(25 * 21 + 1).stochastic == (0, 1, 2, 3)


def test_a_decaying_window_dwells_less_at_late_steps():
    """ceil(5 e^(-0.5 relu(place - 1))): 5, 5, 4, 2."""
    planner = Window(SDE, steps=6, width=2, dwell=5, mode="decay", rate=0.5, threshold=1)
    assert first(planner, 18) == [0] * 5 + [1] * 5 + [2] * 4 + [3] * 2 + [0] * 2


def test_flow_grpo_fast_draws_a_window_in_the_first_half():
    planner = Window(CPS(), steps=10, width=2, dwell=1, mode="random", until=5)
    places = first(planner, 200)
    assert set(places) == {0, 1, 2, 3} and min(places.count(place) for place in range(4)) > 25
    assert places != first(Window(CPS(), steps=10, width=2, dwell=1, mode="random", until=5, seed=1), 200)


def test_a_random_window_stays_as_long_as_it_dwells():
    places = first(Window(SDE, dwell=5, mode="random"), 100)
    assert all(len(set(places[i : i + 5])) == 1 for i in range(0, 100, 5)) and len(set(places)) > 5


# invariant (a)
@pytest.mark.parametrize("shared", [True, False])
def test_a_window_over_all_steps_is_all_steps(shared):
    window = Window(SDE, group=4, steps=6, width=5, shared_start=shared)
    whole = AllSteps(SDE, group=4, steps=6, shared_start=shared)
    for step in (1, 30):
        assert window.at(step) == whole.at(step)
    assert torch.equal(drawn(window.at(1)).final, drawn(whole.at(1)).final)


def test_outside_the_window_samples_of_one_start_move_as_one():
    rollout = drawn(Window(SDE, group=4, steps=6, width=2).at(26))
    assert steps(rollout).step[0].tolist() == [1, 2]
    assert (steps(rollout).before[:4, 0] == steps(rollout).before[0, 0]).all()
    assert rollout.evaluations.sum() == pytest.approx(2 * (2 + 4 * 4))


def test_mixgrpo_flash_takes_as_many_evaluations_as_the_paper_says():
    """Table 1: 16 in the mean over 300 training steps, and 8 where the window stays at the first steps."""
    flash, first_steps = Window(SDE, compression=0.4), Window(SDE, compression=0.2, until=4)
    counts = [len(flash.at(step).ways[0]) - 1 for step in range(1, 301)]
    assert counts[0] == 4 + 8 and counts[-1] == 11 + 4 + 4 and round(sum(counts) / 300) == 16
    assert {len(first_steps.at(step).ways[0]) - 1 for step in range(1, 301)} == {8}
    assert first_steps.at(300).stochastic == (0, 1, 2, 3) and first_steps.at(1).ways == (
        (0, 1, 2, 3, 4, 9, 15, 20, 25),
    )
    assert flash.at(1).finish == "dpm2" and flash.at(1).solver == "euler" and flash.evaluation().ways == ()
    assert max(max(flash.at(step).stochastic) for step in range(1, 600)) == 23 and flash.at(501).ways[0][-2:] == (
        24,
        25,
    )


def test_a_compressed_window_draws_with_fewer_evaluations():
    """Of 9 steps: one shared, one for each of 4 at state 1, and three (2.8) for the seven that were left."""
    planner = Window(SDE, group=4, steps=9, width=2, compression=0.4)
    assert planner.at(1).ways == ((0, 1, 2, 4, 7, 9),)
    assert drawn(planner.at(1)).evaluations.sum() == pytest.approx(2 * (1 + 4 * 4))
    assert drawn(replace(planner, compression=1.0).at(1)).evaluations.sum() == pytest.approx(2 * (1 + 4 * 8))


# --- single branches --------------------------------------------------------------------------------------------------


def test_branches_take_turns():
    assert [SingleBranch(SDE, steps=4).at(step).branches for step in range(1, 6)] == [(0,), (1,), (2,), (0,), (1,)]
    two = SingleBranch(SDE, steps=4, at_once=2)
    assert [two.at(step).branches for step in range(1, 5)] == [(0, 1), (0, 2), (1, 2), (0, 1)]


def test_tempflow_takes_all_steps_at_once():
    plan = SingleBranch(SDE, group=54, at_once=0).at(7)
    assert plan.branches == tuple(range(9)) and plan.compared == 6


def test_g2rpo_takes_the_first_eight_of_sixteen():
    planner = SingleBranch(SDE, group=12, steps=16, until=8)
    assert [planner.at(step).branches for step in range(1, 10)] == [(k,) for k in (*range(8), 0)]


def test_g2rpo_finishes_every_sample_on_a_fine_and_a_coarse_grid():
    """Of the path state 0; of two samples 1 and 2 for both grids, 3, 4 and 5 on the fine one, 4 on the coarse."""
    planner = SingleBranch(SDE, group=4, steps=6, until=3, strides=(1, 2))
    assert planner.at(1).ways == ((0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 4, 6)) and planner.at(1).compared == 2
    assert SingleBranch(SDE, group=4, steps=6, until=3).at(1).ways == ()
    rollout = drawn(planner.at(1))
    assert rollout.evaluations.sum() == pytest.approx(2 * (1 + 2 * 2 + 2 * 3 + 2 * 1))
    assert rollout.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and len(steps(rollout).node.unique()) == 4
    policy = ToyFlow().load(torch.device("cpu"))
    torch.testing.assert_close(policy.logp(rollout), rollout.logp, atol=1e-6, rtol=1e-6)
    assert policy.network.evaluations == 2  # one serves all that leave by the step


def test_a_coarse_grid_that_misses_the_picture_ends_in_what_was_expected():
    """From state 3 of 6 every second one would be 5: the picture is that expected at 3."""
    plan = SingleBranch(SDE, group=4, steps=6, until=3, strides=(1, 2)).at(2)
    assert plan.ways == ((0, 1, 2, 3, 4, 5, 6), (0, 1, 2, 3, 6))
    rollout, policy = drawn(plan), ToyFlow().load(torch.device("cpu"))
    x = steps(rollout).after[:, 0]
    x = x - policy.velocity(x, torch.full((8,), 4 / 6), rollout.prompts) / 6
    coarse = torch.tensor([2, 3, 6, 7])
    expected = (x - policy.velocity(x, torch.full((8,), 0.5), rollout.prompts) / 2)[coarse]
    torch.testing.assert_close(rollout.final[coarse], expected.detach())


# invariant (b)
def test_children_of_one_step_leave_from_one_state():
    rollout = drawn(SingleBranch(SDE, group=6, steps=4, at_once=0).at(1))
    found = steps(rollout)
    assert found.step.flatten().tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert torch.equal(found.before[::2], found.before[1::2]) and (found.after[::2] != found.after[1::2]).any()
    assert torch.equal(found.origin[::2], found.origin[1::2])


def test_an_only_child_has_no_advantage():
    rollout = drawn(SingleBranch(SDE, group=3, steps=4, at_once=0).at(1))
    advantage = GroupNorm()(Scores.of("brightness", rollout.media.mean((1, 2, 3))), rollout)
    assert rollout.group.tolist() == list(range(6)) and (advantage == 0).all()


# --- trees ------------------------------------------------------------------------------------------------------------


# invariant (c)
@pytest.mark.parametrize("between", ["noise", "ode"])
def test_leaves_double_with_every_fork_and_share_what_came_before(between):
    planner = Tree(SDE, group=8, steps=6, forks=(0, 1, 3), between=between)
    rollout = drawn(planner.at(1))
    assert len(torch.unique(rollout.final[:8], dim=0)) == 2**3
    assert rollout.evaluations.sum() < 2 * 8 * 6
    assert rollout.evaluations.sum() == pytest.approx(2 * (1 + 2 + 4 + 4 + 8 + 8))
    expected = [0, 1, 3] if between == "ode" else [0, 1, 2, 3, 4]
    assert steps(rollout).step[0].tolist() == expected


@pytest.mark.parametrize(
    ("planner", "alone", "shared", "own"),
    [
        (Tree(SDE, group=8, steps=6, forks=(0, 1, 3)), AllSteps(SDE, group=8, steps=6), (26, 27 + 19), (40, 48 + 40)),
        (SingleBranch(SDE, group=6), Window(SDE, group=6, steps=10, width=1, shared_start=False), (6, 56), (6, 66)),
    ],
    ids=["tree", "single branch"],
)
def test_shared_ways_take_fewer_evaluations_a_decision_than_samples_drawn_alone(planner, alone, shared, own):
    """Decisions that the loss weighs, each counted once however many samples come of it, and evaluations to draw and to
    score them, all by hand."""

    def cost(plan: LatentPlan) -> tuple[float, int]:
        policy, prompts = ToyFlow().load(torch.device("cpu")), asked(plan.group)
        rollout = policy.sample(prompts, plan, Noise(0, 1, tuple(range(len(prompts)))))
        policy.score(rollout)
        return float(rollout.weight.sum()), policy.evaluations

    for plan, (decisions, evaluations) in ((planner.at(1), shared), (alone.at(1), own)):
        assert cost(plan) == (2 * decisions, 2 * evaluations)  # of two prompts
    assert shared[1] / shared[0] < 0.9 * own[1] / own[0]


def test_branchgrpo_as_released():
    plan = Tree(FlowSDE(a=0.3, schedule="constant")).at(1)
    assert plan.forks == ((0, 2), (3, 2), (6, 2), (9, 2)) and plan.group == 16 and plan.stochastic == tuple(range(19))
    node = steps(drawn(plan)).node[:16]
    nodes = [len(node[:, k].unique()) for k in range(19)]
    assert nodes == [2] * 3 + [4] * 3 + [8] * 3 + [16] * 10


def test_pruned_steps_are_drawn_and_not_learned_from():
    """As in the released script: four steps that move towards the noise, one in 30 training steps, until step 8."""
    planner = Tree(SDE, pruned=(14, 15, 16, 17), pruned_moves=30, pruned_until=8)
    for step, first in ((1, 14), (29, 14), (30, 13), (180, 8), (9999, 8)):
        left_out = set(range(first, first + 4))
        assert planner.at(step).trained == tuple(number for number in range(19) if number not in left_out)
    whole, some = (drawn(Tree(SDE, group=4, steps=6, forks=(0, 2), pruned=left).at(40)) for left in ((), (1, 3)))
    assert torch.equal(whole.final, some.final) and steps(some).step[0].tolist() == [0, 2, 4]
    torch.testing.assert_close(steps(some).logp, steps(whole).logp[:, [0, 2, 4]])
    assert Tree(SDE).at(1).trained is None


def test_how_siblings_are_drawn():
    """In the step of a fork alone: four times as far from the mean, or all alike but for a small part."""
    own, wide, near = (
        steps(drawn(Tree(SDE, group=4, steps=5, forks=(0, 2), siblings=kind, spread=spread).at(1)))
        for kind, spread in (("own", 9.0), ("wide", 4.0), ("near", 0.01))
    )
    std = [float(own.mean[0, j].sub(own.after[0, j]).std()) for j in range(2)]
    z = [(s.after - s.mean) / own.std[:, :, None, None, None] for s in (own, wide, near)]
    torch.testing.assert_close(z[1][:, 0], 4 * z[0][:, 0])
    torch.testing.assert_close(z[1][:, 1], z[0][:, 1], atol=1e-4, rtol=1e-4)
    assert std[0] > 0 and (z[2][0, 0] - z[2][2, 0]).abs().max() < 0.1 < (z[0][0, 0] - z[0][2, 0]).abs().max()
    assert 0.8 < float(z[2][:, 0].std()) < 1.2, "each is from the law that is scored"
    policy = ToyFlow().load(torch.device("cpu"))
    for kind in ("wide", "near"):
        rollout = drawn(Tree(SDE, group=4, steps=5, forks=(0, 2), siblings=kind).at(1))
        torch.testing.assert_close(policy.logp(rollout), rollout.logp, atol=1e-5, rtol=1e-5)


def test_a_tree_with_more_children():
    rollout = drawn(Tree(SDE, group=9, steps=4, forks=(0, 2), children=3).at(1))
    assert len(torch.unique(rollout.final[:9], dim=0)) == 9


def test_a_window_tree_is_noisier_at_every_fork():
    """beta 0.5, depth 4: 0.7 x (1, 1.125, 1.25, 1.375)."""
    plan = WindowTree(SDE, growth=0.5).at(26)
    assert plan.stochastic == (1, 2, 3, 4) and plan.forks == ((1, 2), (2, 2), (3, 2), (4, 2))
    assert [t.a for t in plan.transitions] == pytest.approx([0.7, 0.7875, 0.875, 0.9625])
    rollout = drawn(plan)
    found = steps(rollout)
    for k in range(4):
        alone = FlowSDE(0.7 * (1 + 0.125 * k))
        t, s = found.time[:, k].unbind(1)
        v = ToyFlow().load(torch.device("cpu")).velocity(found.before[:, k], t.float(), rollout.prompts)
        mean, std = alone.move(found.before[:, k], v, t, s)
        torch.testing.assert_close(found.std[:, k], std)
        torch.testing.assert_close(found.mean[:, k], mean)
    again = ToyFlow().load(torch.device("cpu")).logp(rollout)
    torch.testing.assert_close(again, rollout.logp, atol=1e-6, rtol=1e-6)
    assert WindowTree(SDE).at(1).transitions == ()


def test_a_window_tree_shares_all_before_it():
    """One way to the window, then 1, 2, 4, 8 branches, and 16 leaves for the rest."""
    rollout = drawn(WindowTree(SDE, steps=8, dwell=1).at(3))
    assert rollout.evaluations.sum() == pytest.approx(2 * (2 + 1 + 2 + 4 + 8 + 16 * 2))
    assert steps(rollout).step[0].tolist() == [2, 3, 4, 5]
    assert len(torch.unique(rollout.final[:16], dim=0)) == 16
    two = drawn(WindowTree(SDE, group=32, steps=8, dwell=1).at(3))  # trees of one prompt share the way too
    assert two.evaluations.sum() == pytest.approx(2 * (2 + 1 + 4 + 8 + 16 + 32 * 2))


def test_a_window_tree_moves():
    planner = WindowTree(SDE, steps=7, dwell=2)
    assert [planner.at(step).stochastic[0] for step in range(1, 9)] == [0, 0, 1, 1, 2, 2, 0, 0]
    places = [replace(planner, mode="random", dwell=1).at(step).stochastic[0] for step in range(100)]
    assert set(places) == {0, 1, 2} and min(places.count(place) for place in range(3)) > 15


# --- backward intervals -----------------------------------------------------------------------------------------------


def test_the_interval_grows_from_the_picture_backwards():
    planner = BackwardInterval(DDIM())
    plans = [planner.at(step) for step in range(1, 201)]
    lengths = [20 - plan.forks[0][0] for plan in plans]
    assert lengths == sorted(lengths) and set(lengths) == set(range(14, 21))
    assert lengths[0] == 14 and lengths[98] == 19 and lengths[99:] == [20] * 101
    for plan, length in zip(plans, lengths, strict=True):
        assert plan.trained == tuple(range(20 - length, 19)) and plan.stochastic == tuple(range(19))


@pytest.mark.parametrize("shared", ["noise", "ode"])
def test_samples_share_their_way_to_the_interval(shared):
    planner = BackwardInterval(DDIM(), group=6, branches=3, steps=6, first=3, last=4, stages=2, shared=shared)
    rollout = drawn(planner.at(1))
    found = steps(rollout)
    assert found.step[0].tolist() == [3, 4]
    assert [len(found.before[:6, k].flatten(1).unique(dim=0)) for k in range(2)] == [2, 6]
    assert torch.equal(found.before[:3, 0], found.before[:1, 0].expand(3, 3, 4, 4))
    assert rollout.evaluations.sum() == pytest.approx(2 * (2 * 4 + 6 * 2))
    assert steps(drawn(planner.at(2))).step[0].tolist() == [2, 3, 4]


def test_the_way_that_is_shared_is_random_unless_it_is_the_ode():
    found = [
        steps(drawn(BackwardInterval(DDIM(), steps=6, first=3, last=3, shared=shared).at(1))).before[0, 0]
        for shared in ("noise", "ode")
    ]
    assert not torch.equal(*found)


# --- clean samples ----------------------------------------------------------------------------------------------------


def test_the_ode_draws_clean_samples_only():
    rollout = drawn(ODE(group=3).at(1))
    assert rollout.decisions == () and len(torch.unique(rollout.final, dim=0)) == 6


# --- where a gradient begins ------------------------------------------------------------------------------------------


def test_a_truncation_falls_on_every_step_equally_often():
    planner = Truncated(steps=5)
    found = torch.tensor([planner.at(step).waypoint for step in range(1, 1001)])
    counts = torch.bincount(found, minlength=5)
    assert len(counts) == 5 and (counts - 200).abs().max() < 50
    assert found.tolist() != [replace(planner, seed=1).at(step).waypoint for step in range(1, 1001)]
    assert {replace(planner, low=1, high=3).at(step).waypoint for step in range(100)} == {1, 2, 3}


def test_alignprop_as_described():
    """Around step 42 of 50; within the draw."""
    found = torch.tensor([Truncated(law="normal").at(step).waypoint for step in range(1000)]).double()
    assert abs(found.mean() - 42) < 0.5 and 4 < found.std() < 5.5 and found.max() == 49
    assert [Truncated(law="fixed", mean=49.0).at(step).waypoint for step in (0, 1, 7)] == [49, 49, 49]
    assert Truncated().evaluation().waypoint is None


def test_the_state_that_a_step_begins_with_is_kept():
    planner = Truncated(group=2, steps=4, law="fixed", mean=3.0)
    rollout = drawn(planner.at(1))
    policy = ToyFlow().load(torch.device("cpu"))
    v = policy.velocity(rollout.waypoint, torch.full((4,), 0.25), rollout.prompts)
    torch.testing.assert_close(rollout.final, rollout.waypoint - 0.25 * v)
    assert rollout.evaluations.sum() == 4 * 4 and drawn(ODE(group=2).at(1)).waypoint is None


# --- the formulas they are made of ------------------------------------------------------------------------------------


def test_a_stage_lasts_as_long_as_it_says():
    assert [windows.stage(step, [2, 1, 3]) for step in range(9)] == [0, 0, 0, 1, 2, 2, 2, 0, 0]


@pytest.mark.parametrize("start, length", [(0, 25), (13, 25), (14, 23), (20, 13), (200, 1)])
def test_fading_as_mixgrpo_releases_it(start, length):
    """25, 25, 25 e^-0.1 = 22.6, 25 e^-0.7 = 12.4, nearly 0."""
    assert windows.fading(25, start, 0.1, 13) == length


def test_a_compressed_grid_by_hand():
    """0.2 x 21 = 4.2: four steps of 5.25; 0.5 x 3 = 1.5: two; and never none."""
    assert windows.compressed(25, 4, 0.2) == (4, 9, 15, 20, 25)
    assert windows.compressed(6, 3, 0.5) == (3, 5, 6) and windows.compressed(25, 24, 0.1) == (24, 25)
    assert windows.compressed(6, 2, 1.0) == (2, 3, 4, 5, 6)


def test_strides_by_hand():
    assert windows.strided(16, 0, 2) == (0, *range(1, 3), *range(4, 17, 2))
    assert windows.strided(16, 1, 2) == (0, 1, 2, 3, 5, 7, 9, 11, 13, 16)
    assert windows.strided(6, 4, 3) == (0, 1, 2, 3, 4, 5, 6) and windows.strided(6, 3, 3) == (0, 1, 2, 3, 4, 6)
    assert windows.strided(6, 0, 1) == (0, 1, 2, 3, 4, 5, 6)


def test_shares_are_rounded_down():
    assert windows.part_of(100, 0.29) == 29  # 0.29 x 100 is 28.999999999999996
    assert [windows.part_of(10, share) for share in (0.7, 0.69, 1.0, 0.01)] == [7, 6, 10, 1]


def test_growing_is_even():
    assert [windows.growing(2, 4, 5, step) for step in range(8)] == [2, 2, 2, 3, 3, 4, 4, 4]
    assert windows.growing(4, 2, 1, 1) == 4
