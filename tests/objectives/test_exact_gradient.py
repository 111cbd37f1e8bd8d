"""The gradient of every objective against sums over all sequences that can be drawn."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from objectives.enumerable import batch_of, everything, gradient, slope, toy, true_slope, unscored, worth
from toys import ToyPolicy, toy_prompt

from burnish.advantages.group_mean import GroupMean
from burnish.advantages.group_norm import GroupNorm
from burnish.advantages.leave_one_out import LeaveOneOut
from burnish.core import Objective
from burnish.objectives.cispo import CISPO
from burnish.objectives.gspo import GSPO
from burnish.objectives.ppo_clip import PPOClip
from burnish.objectives.reinforce import Reinforce
from burnish.types import Rollout, Scores, TokenPlan, take

K = 3
PROMPT = toy_prompt(0)
PLAIN = TokenPlan()
GUIDED = TokenPlan(guidance=2.5, temperature=0.7, top_k=2)

# Objective, and by what the sum over a sequence is divided.
OBJECTIVES: list[tuple[Objective, float]] = [
    *[(c(aggregation=a), K) for c in (PPOClip, CISPO, Reinforce) for a in ("token", "sequence", "constant", "local")],
    *[(cls(aggregation="constant", length=1), 1) for cls in (PPOClip, CISPO, Reinforce)],
    (PPOClip(clip_high=0.28, dual_clip=3.0, anchor="recomputed"), K),
    (CISPO(anchor="recomputed"), K),
    (GSPO(), K),
    (GSPO(per_token=True, anchor="recomputed"), K),
]  # fmt: skip


def expected_slope(objective: Objective, policy: ToyPolicy, rollout: Rollout, p: torch.Tensor, advantage: torch.Tensor):
    """Sum over sequences of probability x gradient of the loss of that one sample."""
    total = torch.zeros(sum(w.numel() for _, w in policy.parameters()), dtype=torch.float64)
    for i in range(len(rollout)):
        one = batch_of(take(rollout, torch.tensor([i])), advantage[i : i + 1])
        total += p[i] * slope(objective.loss(one, policy, unscored), policy)
    return total


@pytest.mark.parametrize("plan", [PLAIN, GUIDED], ids=["plain", "guided"])
@pytest.mark.parametrize("objective, length", OBJECTIVES, ids=str)
def test_on_policy_gradient_is_that_of_minus_the_expected_reward(objective, length, plan):
    """Section 1, test (b), and the law `sampled`: also under guidance, temperature and top-k."""
    policy = toy(K)
    rollout, p = everything(policy, PROMPT, plan)
    reward = worth(rollout)
    found = expected_slope(objective, policy, rollout, p, reward - 0.3)
    torch.testing.assert_close(found, -true_slope(policy, PROMPT, plan) / length, atol=1e-12, rtol=1e-9)
    assert found.norm() > 1e-2


def test_under_the_conditional_law_it_is_not():
    """What AR-GRPO trains under guidance is not the gradient of what it samples."""
    policy = toy(K)
    plan = replace(PLAIN, guidance=2.5, law="conditional")
    rollout, p = everything(policy, PROMPT, plan)
    found = expected_slope(PPOClip(anchor="recomputed"), policy, rollout, p, worth(rollout))
    truth = -true_slope(policy, PROMPT, plan) / K
    assert torch.cosine_similarity(found, truth, dim=0) < 0.9


def surrogate(objective: Objective, logp: list[float], old: list[float], a: float) -> float:
    """Each loss of one sample in plain floats, from its formula."""
    ratios = [math.exp(n - o) for n, o in zip(logp, old)]
    match objective:
        case PPOClip():
            high = objective.clip if objective.clip_high is None else objective.clip_high
            terms = [-min(r * a, min(max(r, 1 - objective.clip), 1 + high) * a) for r in ratios]
            if objective.dual_clip is not None and a < 0:
                terms = [min(term, -objective.dual_clip * a) for term in terms]
            return sum(terms) / len(terms)
        case GSPO():
            s = math.exp(sum(n - o for n, o in zip(logp, old)) / len(old))
            high = objective.clip if objective.clip_high is None else objective.clip_high
            return -min(s * a, min(max(s, 1 - objective.clip), 1 + high) * a)
        case Reinforce():
            return -a * sum(logp) / len(logp)
    raise AssertionError(f"no formula for {objective}")


@pytest.mark.parametrize("objective", [
    PPOClip(clip=0.1, clip_high=0.25),
    PPOClip(clip=0.1, dual_clip=1.2),
    GSPO(clip=0.05, clip_high=0.1),
    GSPO(clip=0.05, clip_high=0.1, per_token=True),
    Reinforce(),
], ids=str)  # fmt: skip
def test_off_policy_gradient_against_finite_differences(objective):
    old = toy(2)
    rollout, p = everything(old, PROMPT, PLAIN)
    policy = toy(2)
    head = policy.weights["head"]
    head.data += 0.6 * torch.randn(head.shape, generator=torch.Generator().manual_seed(5)).double()
    advantage = worth(rollout)
    found = expected_slope(objective, policy, rollout, p, advantage)

    def value() -> float:
        with torch.no_grad():
            now = policy.logp(rollout).tolist()
        rows = zip(p.tolist(), now, rollout.logp.tolist(), advantage.tolist())
        return sum(q * surrogate(objective, n, o, a) for q, n, o, a in rows)

    flat, h, numeric = head.data.view(-1), 1e-6, []
    for i in range(flat.numel()):
        flat[i] += h
        up = value()
        flat[i] -= 2 * h
        numeric.append((up - value()) / (2 * h))
        flat[i] += h
    start = sum(w.numel() for name, w in policy.parameters() if name in ("prompt", "token"))
    part = found[start : start + flat.numel()]
    torch.testing.assert_close(part, torch.tensor(numeric, dtype=torch.float64), atol=1e-8, rtol=1e-6)
    on_policy = expected_slope(objective, old, rollout, p, advantage)
    assert (found - on_policy).abs().max() > 1e-2  # the point is really another one


def test_off_policy_gradient_of_cispo_by_its_formula():
    """sum over y of p_old(y) x -min(r, cap) A grad log p(y_t): the stopped weight has no finite difference."""
    rollout, p = everything(toy(2), PROMPT, PLAIN)
    policy = toy(2, seed=1)
    cap = 1.3
    found = expected_slope(CISPO(cap=cap), policy, rollout, p, worth(rollout))
    logp = policy.logp(rollout)
    ratio = (logp - rollout.logp).exp().detach()
    assert (ratio > cap).any() and (ratio < cap).any()
    weight = p[:, None] * ratio.clamp(max=cap) * worth(rollout)[:, None] / 2
    torch.testing.assert_close(found, gradient(-(weight * logp).sum(), policy))


def group_slope(advantage, members: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Expected gradient of Reinforce over every group of `members` sequences, and the true one."""
    policy = toy(2)
    rollout, p = everything(policy, PROMPT, PLAIN)
    index = torch.tensor(list(itertools.product(range(len(rollout)), repeat=members)))
    chance = p[index].prod(1)
    many = replace(take(rollout, index.flatten()), group=torch.arange(len(index)).repeat_interleave(members))
    total = worth(many)
    scores = Scores(total, {"worth": total}, torch.ones(len(total), dtype=torch.bool))
    # The loss is linear in the advantage, so each group can be given its chance through it; the mean is over samples.
    weighed = advantage(scores, many) * chance.repeat_interleave(members) * len(index)
    found = slope(Reinforce(aggregation="constant", length=1).loss(batch_of(many, weighed), policy, unscored), policy)
    return found, -true_slope(policy, PROMPT, PLAIN)


@pytest.mark.parametrize("members", [2, 3])
def test_leave_one_out_is_unbiased(members):
    found, truth = group_slope(LeaveOneOut(), members)
    torch.testing.assert_close(found, truth, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("members", [2, 3])
def test_group_mean_is_short_by_one_member_in_the_group(members):
    found, truth = group_slope(GroupMean(), members)
    torch.testing.assert_close(found, truth * (members - 1) / members, atol=1e-12, rtol=1e-9)


def test_group_norm_points_another_way_but_still_down():
    """Its standard deviation is not independent of the sample, so no factor makes it the gradient."""
    found, truth = group_slope(GroupNorm(), 2)
    cosine = torch.cosine_similarity(found, truth, dim=0)
    assert 0.8 < cosine < 0.999
