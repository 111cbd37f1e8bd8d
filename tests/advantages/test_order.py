"""Advantages that look at the order of samples, and at trees, against numbers worked by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from toy_denoiser import ToyFlow, asked

from burnish.advantages.group_mean import GroupMean
from burnish.advantages.tree import Tree
from burnish.advantages.trimmed import Trimmed
from burnish.advantages.width_pruned import WidthPruned
from burnish.advantages.win_rate import WinRate
from burnish.core import Advantage, LatentPlan
from burnish.formulas.noise import Noise
from burnish.formulas.ranks import order, win_rate
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Rollout, Scores, take

ONE = torch.zeros(4, dtype=torch.long)
ALL = torch.ones(4, dtype=torch.bool)


def grown(group: int = 4, prompts: int = 1) -> Rollout:
    """Trees of four leaves: two branches from the first step, and two from each of them in the second."""
    plan = LatentPlan(group=group, steps=3, stochastic=(0, 1), forks=((0, 2), (1, 2)), transition=FlowSDE())
    policy = ToyFlow(prompts=prompts).load(torch.device("cpu"))
    return policy.sample(asked(group, prompts=prompts), plan, Noise(0, 0, tuple(range(group * prompts))))


def one_group(count: int) -> Rollout:
    plan = LatentPlan(group=count, steps=2)
    policy = ToyFlow(prompts=1).load(torch.device("cpu"))
    return policy.sample(asked(count, prompts=1), plan, Noise(0, 0, tuple(range(count))))


def scored(values: list[float]) -> Scores:
    return Scores.of("one", torch.tensor(values, dtype=torch.float64))


def test_win_rates():
    rate = win_rate(torch.tensor([3.0, 1.0, 100.0, 2.0]), ONE, ALL)
    torch.testing.assert_close(rate, torch.tensor([2, 0, 3, 1], dtype=torch.float64) / 3)
    tied = win_rate(torch.tensor([1.0, 1.0, 2.0, 0.0]), ONE, ALL)
    torch.testing.assert_close(tied, torch.tensor([0.5, 0.5, 1.0, 0.0], dtype=torch.float64))
    values = torch.tensor([1.0, torch.nan, 2.0, 0.0])
    missing = win_rate(values, ONE, values.isfinite())
    torch.testing.assert_close(missing, torch.tensor([0.5, 0.5, 1.0, 0.0], dtype=torch.float64))


def test_win_rates_of_some_parts_beside_values_of_others():
    """Two of three siblings are beaten, one, none; `b` stays as it is. Each is normalised in its group and weighed."""
    parts = {"a": torch.tensor([3.0, 2.0, 900.0]), "b": torch.tensor([0.0, 1.0, 5.0]), "c": torch.ones(3)}
    scores = Scores(sum(parts.values()), parts, torch.ones(3, dtype=torch.bool))
    found = WinRate({"a": 0.4, "b": 0.6}, plain=("b",), eps=0.0)(scores, one_group(3))
    rate, b = torch.tensor([0.5, 0.0, 1.0]), parts["b"]
    torch.testing.assert_close(found, 0.4 * (rate - 0.5) / 0.5 + 0.6 * (b - 2) / b.std())
    with pytest.raises(ValueError, match="no part d; its parts are: a, b, c"):
        WinRate({"d": 1.0})(scores, one_group(3))


def test_only_the_order_counts():
    rollout = grown(8)
    values = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain, bent = (WinRate()(scored(v.tolist()), rollout) for v in (values, values.exp() * 1e3))
    torch.testing.assert_close(plain, bent)
    # eight places 0/7 ... 7/7: deviation (ddof 1) sqrt(6) / 7, so the best is 3.5 / sqrt(6)
    assert float(plain.max()) == pytest.approx(3.5 / 6**0.5, abs=1e-3)


def test_equal_ones_are_ordered_by_their_number():
    values = torch.tensor([5.0, 7.0, 5.0, 7.0])
    assert order(values, ONE, ALL, (3, 9, 1, 2)).tolist() == [3, 1, 2, 0]


def test_the_middle_is_left_out():
    found = Trimmed(GroupMean(), best=2, worst=1)(scored([0.0, 7, 3, 4, 5, 6, 1, 2]), grown(8))
    assert found.tolist() == [-3.5, 3.5, 0, 0, 0, 2.5, 0, 0]
    gone = Trimmed(GroupMean(), best=1, worst=1)(scored([0.0, 8.0, torch.nan, 4.0]), grown(4))
    assert gone.tolist() == [-4, 4, 0, 0]
    steps = Trimmed(Tree(), best=1, worst=1)(scored([0.0, 1, 2, 5]), grown())
    assert (steps[1:3] == 0).all() and (steps[[0, 3]] != 0).all()


def test_a_branch_is_worth_the_mean_of_its_leaves():
    """Leaves 0 1 | 2 5. First step: 0.5 and 3.5, so -1 and 1. Second: mean 2, variance (4 + 1 + 0 + 9) / 4."""
    found = Tree()(scored([0.0, 1, 2, 5]), grown())
    assert found[:, 0].tolist() == pytest.approx([-1, -1, 1, 1])
    assert found[:, 1].tolist() == pytest.approx([v / 3.5**0.5 for v in (-2, -1, 0, 3)])


def test_each_branch_counts_once_however_many_leaves_it_has():
    """Leaf 1 is invalid: the branches of the first step are worth 0 and 3.5, their mean is 1.75 and not 7/3."""
    found = Tree()(scored([0.0, torch.nan, 2, 5]), grown())
    assert found[:, 0].tolist() == pytest.approx([-1, 0, 1, 1])
    assert found[:, 1].sum() == pytest.approx(0, abs=1e-12)


def test_likelier_ways_weigh_more():
    rollout = grown()
    steps = rollout.decisions[0]
    logp = torch.tensor([[9.0, 0.0], [9.0, 3.0**0.5], [1.0, 2.0], [1.0, 2.0]])
    rollout = replace(rollout, decisions=(replace(steps, logp=logp),))
    far = torch.tensor([0.0, 3.0**0.5], dtype=torch.float64).softmax(0)
    first, second = float(4 * far[1]), 3.0
    found = Tree(value="path")(scored([0.0, 4.0, 1.0, 5.0]), rollout)
    assert found[:, 0].tolist() == pytest.approx([1, 1, -1, -1] if first > second else [-1, -1, 1, 1])
    torch.testing.assert_close(found[:, 1], Tree()(scored([0.0, 4.0, 1.0, 5.0]), rollout)[:, 1])


def test_likelier_ways_weigh_more_at_every_fork():
    """A branch of two, of two: softmax within each pair of siblings, and not over all leaves at once."""
    plan = LatentPlan(
        group=8, steps=4, stochastic=(0, 1, 2), forks=((0, 2), (1, 2), (2, 2)), transition=FlowSDE(), shared_start=True
    )
    rollout = ToyFlow().load(torch.device("cpu")).sample(asked(8, prompts=1), plan, Noise(0, 0, tuple(range(8))))
    steps = rollout.decisions[0]
    logp = torch.randn(8, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for column, each in ((0, 4), (1, 2)):  # one number a branch
        logp[:, column] = logp[::each, column].repeat_interleave(each)
    worth = torch.tensor([0.0, 4, 1, 5, 9, 2, 6, 7], dtype=torch.float64)
    pairs = (logp[:, 2].view(4, 2).softmax(1) * worth.view(4, 2)).sum(1)
    halves = (logp[::2, 1].view(2, 2).softmax(1) * pairs.view(2, 2)).sum(1)
    rollout = replace(rollout, decisions=(replace(steps, logp=logp),))
    found = Tree(value="path")(scored(worth.tolist()), rollout)
    for column, values in enumerate((halves, pairs, worth)):
        normed = (values - values.mean()) / values.std(correction=0)
        torch.testing.assert_close(found[:, column], normed.repeat_interleave(8 // len(values)))


def test_of_two_branches_the_released_deviation_makes_less():
    found = Tree(ddof=1)(scored([0.0, 1, 2, 5]), grown())
    assert found[:, 0].tolist() == pytest.approx([-(0.5**0.5)] * 2 + [0.5**0.5] * 2)
    torch.testing.assert_close(found[:, 1], Tree()(scored([0.0, 1, 2, 5]), grown())[:, 1] * 0.75**0.5)


def test_trees_of_other_prompts_are_not_compared():
    both = Tree()(scored([0.0, 1, 2, 5, 100, 101, 102, 105]), grown(prompts=2))
    torch.testing.assert_close(both[:4], both[4:])
    assert (Tree()(scored([3.0] * 4), grown()) == 0).all()


def test_a_tree_needs_steps():
    with pytest.raises(ValueError, match=r"advantage\.tree"):
        Tree()(scored([0.0, 1, 2, 5]), replace(grown(), decisions=()))


@dataclass(frozen=True)
class Given(Advantage):
    """These, whatever the scores."""

    values: tuple[tuple[float, ...], ...]

    def __call__(self, scores: Scores, rollout: Rollout) -> torch.Tensor:
        return torch.tensor(self.values)


LATER = LatentPlan(
    group=4, steps=6, stochastic=(0, 1, 2, 3, 4), forks=((0, 2), (1, 2)), transition=FlowSDE(), shared_start=True
)
VALUES = (
    # forks   later
    (1.0, 2.0, 5.0, 7.0, 6.0),
    (1.0, 3.0, -4.0, -1.0, -1.0),
    (8.0, 9.0, 0.5, 0.4, 0.3),
    (8.0, 9.0, -9.0, 2.0, -8.0),
)


def long(prompts: int = 1) -> Rollout:
    """A tree of four leaves, and three steps after its last fork."""
    policy = ToyFlow(prompts=prompts).load(torch.device("cpu"))
    return policy.sample(asked(4, prompts=prompts), LATER, Noise(0, 0, tuple(range(4 * prompts))))


def test_of_every_branch_the_best_decisions_after_the_last_fork_are_kept():
    """Half of three is one; of equal ones the earlier. Forks stay as they are."""
    found = WidthPruned(Given(VALUES))(scored([0.0, 1, 2, 3]), long())
    forks = [list(row[:2]) for row in VALUES]
    assert found[:, :2].tolist() == forks
    later = [[0, 7, 0], [0, -1, 0], [0.5, 0, 0], [0, 2, 0]]
    torch.testing.assert_close(found[:, 2:], torch.tensor(later, dtype=found.dtype))
    more = WidthPruned(Given(VALUES), share=0.7)(scored([0.0, 1, 2, 3]), long())
    assert (more[:, 2:] != 0).sum(1).tolist() == [2, 2, 2, 2]


def test_the_extremes_of_a_group_are_kept():
    """Six of twelve, three from each end."""
    pruned = WidthPruned(Given(VALUES), keep="extremes")
    later = [[5.0, 7, 6], [-4, 0, 0], [0, 0, 0], [-9, 0, -8]]
    torch.testing.assert_close(pruned(scored([0.0, 1, 2, 3]), long())[:, 2:], torch.tensor(later))
    few = replace(pruned, share=0.01)(scored([0.0, 1, 2, 3]), long())[:, 2:]
    assert few[few != 0].tolist() == [7, -9]
    gone = pruned(scored([0.0, 1, torch.nan, 3]), long())[:, 2:]  # nine are left: two of the best, two of the worst
    assert sorted(gone[[0, 1, 3]][gone[[0, 1, 3]] != 0].tolist()) == [-9, -8, 6, 7]


def test_pruning_looks_at_one_group_and_not_at_the_order_of_rows():
    values, rollout = VALUES + tuple(tuple(10 * v for v in row) for row in VALUES), long(prompts=2)
    for keep in ("best", "extremes"):
        alone = WidthPruned(Given(VALUES), keep=keep)(scored([0.0] * 4), long())
        both = WidthPruned(Given(values), keep=keep)(scored([0.0] * 8), rollout)
        torch.testing.assert_close(both, torch.cat([alone, 10 * alone]))
        turned = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
        mixed = WidthPruned(Given(tuple(values[i] for i in turned)), keep=keep)
        torch.testing.assert_close(mixed(scored([0.0] * 8), take(rollout, turned)), both[turned])


def test_samples_that_no_fork_has_divided_are_pruned_from_their_first_step_on():
    """Five decisions of each and not three: two are kept; and of equal ones the first two."""
    alone = replace(long(), plan=LatentPlan(group=4))
    k = long().logp.shape[1]
    found = WidthPruned(Given(VALUES))(scored([0.0, 1, 2, 3]), alone)
    best = torch.tensor(VALUES, dtype=found.dtype).sort(1, descending=True).values[:, : k // 2]
    assert [row[row != 0].sort(descending=True).values.tolist() for row in found] == best.tolist()
    same = WidthPruned(GroupMean())(scored([0.0, 1, 2, 3]), alone)
    assert same[:, : k // 2].tolist() == [[value] * (k // 2) for value in (-1.5, -0.5, 0.5, 1.5)]
    assert not same[:, k // 2 :].any()
    ends = WidthPruned(GroupMean(), share=0.25, keep="extremes")(scored([0.0, 1, 2, 3]), alone)  # five of twenty
    assert ends.tolist() == [[0, 0, -1.5, -1.5, -1.5], [0] * 5, [0] * 5, [1.5, 1.5, 0, 0, 0]]
    with pytest.raises(ValueError, match="share: must be above 0"):
        WidthPruned(Tree(), share=0.0)


def test_trimming_everything_is_refused():
    with pytest.raises(ValueError, match="no sample"):
        Trimmed(GroupMean(), best=0, worst=0)


@dataclass(frozen=True)
class Worth(Advantage):
    """The score itself, as against a baseline from elsewhere."""

    def __call__(self, scores, rollout):
        return scores.total


def test_the_best_and_the_worst_count_if_they_are_far_enough_out():
    """Advantages 2, 0, -0.1, -0.3, -1.6; then 0.2, 0, 0, 0, -0.2; then 1.6 and four times -0.4."""
    trimmed = Trimmed(GroupMean(), best=1, worst=1, least=0.5)
    rollout = replace(take(grown(4, prompts=4), torch.arange(15)), group=torch.arange(15) // 5)
    values = [3.0, 1.0, 0.9, 0.7, -0.6, 1.2, 1.0, 1.0, 1.0, 0.8, 2.6, 0.6, 0.6, 0.6, 0.6]
    found = trimmed(scored(values), rollout)
    expected = torch.zeros(15, dtype=torch.float64)
    expected[[0, 4, 10]] = torch.tensor([2.0, -1.6, 1.6], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    above = replace(trimmed, inner=Worth())(scored(values), rollout)  # all of the last five are good, the worst too
    assert above.nonzero().flatten().tolist() == [0, 4, 5, 10]
    both = replace(trimmed, least=None)(scored(values), rollout)
    assert both.nonzero().flatten().tolist() == [0, 4, 5, 9, 10, 14]
    with pytest.raises(ValueError, match=r"least: must be 0 or more, or None for no bound, not -1"):
        replace(trimmed, least=-1.0)
