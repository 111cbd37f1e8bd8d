"""What sets the objectives apart, and what they share: section 1 of the specification, on the enumerable policy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from objectives.enumerable import batch_of, slope, toy, unscored, worth
from toys import ToyPolicy, toy_prompts

from burnish.formulas.noise import Noise
from burnish.objectives.cispo import CISPO
from burnish.objectives.gspo import GSPO
from burnish.objectives.ppo_clip import PPOClip
from burnish.objectives.reinforce import Reinforce
from burnish.types import Batch, TokenPlan

K = 4
PROMPTS = toy_prompts(2, group=8)


def drawn(policy: ToyPolicy, **plan) -> Batch:
    rollout = policy.sample(PROMPTS, TokenPlan(**plan), Noise(0, 0, tuple(range(16))))
    return batch_of(rollout, worth(rollout) - 0.1)


def gradient(objective, batch: Batch, policy: ToyPolicy) -> torch.Tensor:
    return slope(objective.loss(batch, policy, unscored), policy)


def test_with_equal_lengths_the_averages_agree_and_a_constant_length_only_scales():
    """Section 1, test (b): GRPO = BNPO = DAPO, and Dr.GRPO is L / L_max of them."""
    policy = toy(K)
    batch = drawn(policy)
    token, sequence, local = (gradient(PPOClip(aggregation=a), batch, policy) for a in ("token", "sequence", "local"))
    torch.testing.assert_close(token, sequence)
    torch.testing.assert_close(token, local)
    torch.testing.assert_close(token * K / 10, gradient(PPOClip(aggregation="constant", length=10), batch, policy))


def test_surrogates_differ_in_nothing_at_the_weights_that_drew():
    policy = toy(K)
    batch = drawn(policy, guidance=2.0, top_k=2)
    found = [gradient(o, batch, policy) for o in (PPOClip(), CISPO(), Reinforce(), GSPO(), GSPO(per_token=True))]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def moved(objective, advantage: float, nats: float) -> torch.Tensor:
    """The gradient when every ratio is e^nats and every advantage is `advantage`."""
    policy = toy(K)
    batch = drawn(policy)
    rollout = replace(batch.rollout, anchor=batch.rollout.logp - nats)
    return gradient(objective, batch_of(rollout, torch.full((16,), advantage, dtype=torch.float64)), policy)


def test_cispo_learns_where_ppo_is_clipped():
    """Section 1, test (e)."""
    assert moved(PPOClip(), 1.0, nats=0.5).norm() == 0
    assert moved(GSPO(), 1.0, nats=0.5).norm() == 0
    assert moved(CISPO(cap=1.2), 1.0, nats=0.5).norm() > 0.01
    torch.testing.assert_close(moved(CISPO(cap=1.2), 1.0, nats=0.5), 1.2 * moved(CISPO(), 1.0, nats=0.0))


def test_dual_clip_stops_a_negative_advantage_that_has_run_away():
    assert moved(PPOClip(), -1.0, nats=2.0).norm() > 0.01
    assert moved(PPOClip(dual_clip=3.0), -1.0, nats=2.0).norm() == 0


def test_clip_high_is_above_and_clip_is_below():
    wide = PPOClip(clip=0.1, clip_high=1.0)
    assert moved(wide, 1.0, nats=0.5).norm() > 0
    assert moved(wide, -1.0, nats=-0.5).norm() == 0


@pytest.mark.parametrize("objective", [PPOClip, CISPO, Reinforce, GSPO])
def test_kl_pulls_back_to_the_reference(objective):
    """With no advantage, a small step down the loss brings the policy nearer, and the metric says how far it was."""
    policy = toy(K)
    batch = drawn(policy)
    far = batch.rollout.logp + 0.5 * torch.randn(16, K, dtype=torch.float64)
    batch = batch_of(replace(batch.rollout, reference=far), torch.zeros(16, dtype=torch.float64))
    leashed = objective(kl=0.1, kl_estimator="k2")
    assert set(leashed.needs().copies) == {"reference"} and not objective().needs().copies
    loss = leashed.loss(batch, policy, unscored)
    k2 = 0.5 * (far - batch.rollout.logp).square().mean()
    torch.testing.assert_close(loss.total / loss.count, 0.1 * k2)
    torch.testing.assert_close(loss.metrics["kl"].total / loss.metrics["kl"].count, k2)
    assert slope(loss, policy).norm() > 0
    assert gradient(objective(), batch, policy).norm() == 0


def test_law_gap_sees_a_law_that_was_not_sampled_from():
    """Section 2, tests (2) and (3)."""
    policy = toy(K)
    for law, low, high in (("sampled", 0.0, 1e-9), ("conditional", 0.1, 99.0), ("guided", 0.01, 99.0)):
        batch = drawn(policy, guidance=3.0, top_k=2, law=law)
        metrics = PPOClip().loss(batch, policy, unscored).metrics
        assert low <= (metrics["law_gap"].total / metrics["law_gap"].count).item() <= high
        ratio = (metrics["ratio_mean"].total / metrics["ratio_mean"].count).item()
        assert (abs(ratio - 1) < 1e-9) == (law == "sampled")


@pytest.mark.parametrize("objective", [PPOClip, CISPO, GSPO])
def test_a_recomputed_anchor_starts_at_one_whatever_was_sampled(objective):
    """AR-GRPO as released: the conditional law on guided samples, with a ratio of exactly 1."""
    policy = toy(K)
    batch = drawn(policy, guidance=3.0, top_k=2, law="conditional")
    loss = objective(anchor="recomputed").loss(batch, policy, unscored)
    assert objective(anchor="recomputed").needs().anchor == "recomputed"
    assert (loss.metrics["ratio_mean"].total / loss.metrics["ratio_mean"].count).item() == 1.0
    torch.testing.assert_close(slope(loss, policy), gradient(Reinforce(), batch, policy))
    stored = batch_of(replace(batch.rollout, anchor=policy.logp(batch.rollout).detach() - 0.5), batch.advantage)
    mean = objective(anchor="recomputed").loss(stored, policy, unscored).metrics["ratio_mean"]
    assert (mean.total / mean.count).item() == pytest.approx(2.718281828**0.5)


def test_clipped_shares_by_hand():
    policy = toy(K)
    batch = drawn(policy)
    nats = torch.zeros(16, K, dtype=torch.float64)
    nats[:4], nats[4:12] = 1.0, -1.0
    advantage = torch.ones(16, dtype=torch.float64)
    advantage[10:] = -1.0
    batch = batch_of(replace(batch.rollout, anchor=batch.rollout.logp - nats), advantage)
    metrics = PPOClip().loss(batch, policy, unscored).metrics
    share = {name: (mean.total / mean.count).item() for name, mean in metrics.items()}
    assert share["clipped_high"] == pytest.approx(4 / 16)
    assert share["clipped_low"] == pytest.approx(2 / 16)
    assert share["clipped"] == pytest.approx(6 / 16)


@pytest.mark.parametrize("make, word", [
    (lambda: PPOClip(clip=0.0), "clip must be"),
    (lambda: PPOClip(dual_clip=0.9), "dual_clip"),
    (lambda: GSPO(clip_high=-1.0), "clip_high"),
    (lambda: CISPO(cap=0.0), "cap"),
])  # fmt: skip
def test_settings_that_cannot_work_are_explained(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_gspo_refuses_an_advantage_of_decisions_unless_told():
    policy = toy(K)
    batch = drawn(policy)
    batch = replace(batch, advantage=torch.randn(16, K, dtype=torch.float64))
    with pytest.raises(ValueError, match="per_token"):
        GSPO().loss(batch, policy, unscored)
    assert gradient(GSPO(per_token=True), batch, policy).norm() > 0
