"""Numbers one can work on paper, and the identities of section 1 of the specification."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.advantages.global_norm import GlobalNorm
from burnish.advantages.group_mean import GroupMean
from burnish.advantages.group_norm import GroupNorm
from burnish.advantages.kl_in_reward import KlInReward
from burnish.advantages.leave_one_out import LeaveOneOut
from burnish.advantages.per_part import PerPart
from burnish.types import Prompt, Rollout, Scores, TokenPlan, Tokens


def rollout_of(groups: list[int], logp: torch.Tensor | None = None, **more) -> Rollout:
    logp = torch.zeros(len(groups), 2) if logp is None else logp
    tokens = Tokens(
        torch.zeros(logp.shape, dtype=torch.long), logp, torch.ones_like(logp), torch.zeros(logp.shape), logp
    )
    prompts = tuple(Prompt(str(g), "") for g in groups)
    plan = more.pop("plan", TokenPlan())
    media = torch.zeros(len(groups), 3, 1, 1)
    return Rollout(prompts, torch.tensor(groups), (tokens,), media, plan, tuple(range(len(groups))), **more)


def scores_of(total: list[float], **parts: list[float]) -> Scores:
    values = torch.tensor(total, dtype=torch.float64)
    named = {name: torch.tensor(part, dtype=torch.float64) for name, part in parts.items()} or {"all": values}
    return Scores(values, named, torch.isfinite(values))


FOUR = rollout_of([0, 0, 0, 0])


def close(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_by_hand():
    """1, 3, 5 and one invalid: mean 3, standard deviation 2."""
    scores = scores_of([1.0, 3.0, math.nan, 5.0])
    close(GroupMean()(scores, FOUR), [-2.0, 0.0, 0.0, 2.0])
    close(GroupNorm(eps=0.5)(scores, FOUR), [-0.8, 0.0, 0.0, 0.8])
    close(LeaveOneOut()(scores, FOUR), [-3.0, 0.0, 0.0, 3.0])


def test_group_norm_has_squares_that_sum_to_one_less_than_the_group():
    """Section 1, test (a)."""
    total = torch.randn(8, dtype=torch.float64).tolist()
    found = GroupNorm(eps=0.0)(scores_of(total), rollout_of([0] * 8))
    assert found.sum().item() == pytest.approx(0.0, abs=1e-12)
    assert found.square().sum().item() == pytest.approx(7.0)


def _told_apart(values: list[float]) -> bool:
    return all(max(group) - min(group) > 0.5 for group in (values[:6], values[6:]))


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(-3, 3), min_size=12, max_size=12, unique=True).filter(_told_apart),
    scale=st.floats(0.01, 100),
    shift=st.floats(-50, 50),
    kind=st.sampled_from([GroupNorm(eps=0.0), GlobalNorm(eps=0.0), GlobalNorm(scale="raw", eps=0.0)]),
)
def test_normed_advantages_do_not_see_units_of_the_reward(values, scale, shift, kind):
    """Nor does what is divided by nothing see where they begin."""
    rollout = rollout_of([0] * 6 + [1] * 6)
    plain, other = (scores_of([a * v + b for v in values]) for a, b in ((1.0, 0.0), (scale, shift)))
    torch.testing.assert_close(kind(other, rollout), kind(plain, rollout), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        GroupMean()(other, rollout), scale * GroupMean()(plain, rollout), atol=1e-7 * scale, rtol=1e-6
    )


def test_global_norm_keeps_the_share_of_a_group():
    """Centred: -1, 1, -3, 3; their variance with ddof 1 is 20 / 3."""
    scores, rollout = scores_of([0.0, 2.0, 10.0, 16.0]), rollout_of([0, 0, 1, 1])
    std = math.sqrt(20 / 3)
    close(GlobalNorm(eps=0.0)(scores, rollout), [-1 / std, 1 / std, -3 / std, 3 / std])
    raw = torch.tensor([0.0, 2.0, 10.0, 16.0]).double().std().item()
    close(GlobalNorm(scale="raw", eps=0.0)(scores, rollout), [-1 / raw, 1 / raw, -3 / raw, 3 / raw])
    whitened = GlobalNorm(baseline="batch", eps=0.0)(scores, rollout)
    values = torch.tensor([0.0, 2.0, 10.0, 16.0], dtype=torch.float64)
    torch.testing.assert_close(whitened, (values - 7.0) / values.std())


def test_per_part_is_blind_to_the_scale_of_a_part():
    parts = {"small": [0.001, 0.003, 0.005], "large": [5000.0, 1000.0, 3000.0]}
    rollout = rollout_of([0, 0, 0])
    found = PerPart(eps=0.0)(scores_of([1.0, 2.0, 3.0], **parts), rollout)
    close(found, [-1.0 + 1.0, 0.0 - 1.0, 1.0 + 0.0])
    close(PerPart({"large": 0.5}, eps=0.0)(scores_of([1.0, 2.0, 3.0], **parts), rollout), [-0.5, -0.5, 1.0])


def test_per_part_of_a_single_part_is_group_norm():
    scores = scores_of([1.0, 4.0, 2.5, 2.0])
    torch.testing.assert_close(PerPart()(scores, FOUR), GroupNorm()(scores, FOUR))


def test_per_part_names_the_parts_there_are():
    with pytest.raises(ValueError, match=r"no part clipp.*clip"):
        PerPart({"clipp": 2.0})(scores_of([1.0, 2.0], clip=[1.0, 2.0]), rollout_of([0, 0]))


def test_kl_is_paid_before_the_advantage_is_taken():
    """Sequence log-ratios 0.5 + 0.5 and 0 + 0 at beta 2: rewards 3 and 3 become 1 and 3."""
    logp = torch.tensor([[-1.0, -2.0], [-1.0, -1.0]], dtype=torch.float64)
    reference = torch.tensor([[-1.5, -2.5], [-1.0, -1.0]], dtype=torch.float64)
    rollout = rollout_of([0, 0], logp, reference=reference)
    close(KlInReward(GroupMean(), beta=2.0)(scores_of([3.0, 3.0]), rollout), [-1.0, 1.0])
    anchored = rollout_of([0, 0], logp * 0, reference=reference, anchor=logp)
    close(KlInReward(GroupMean(), beta=2.0)(scores_of([3.0, 3.0]), anchored), [-1.0, 1.0])


def test_kl_of_two_different_laws_is_refused():
    logp = torch.zeros(2, 2)
    rollout = rollout_of([0, 0], logp, reference=logp, plan=TokenPlan(guidance=4.0, law="conditional"))
    with pytest.raises(ValueError, match="recomputed"):
        KlInReward(GroupMean())(scores_of([1.0, 2.0]), rollout)
