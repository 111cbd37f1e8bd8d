"""Objectives on clean samples that are noised again, against sums that can be written down."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from laws import laws
from objectives.test_steps import batch, lost, mean_of, slope
from toy_denoiser import ToyFlow, asked

from burnish.core import Denoiser, LatentPlan
from burnish.formulas.matching import Noised, noised
from burnish.formulas.noise import Noise
from burnish.objectives.awm import AWM
from burnish.objectives.dgpo import DGPO
from burnish.objectives.diffusion_nft import DiffusionNFT
from burnish.objectives.raft import RAFT
from burnish.objectives.reward_weighted import RewardWeighted
from burnish.transitions.ddim import DDIM
from burnish.types import Scores, take

CENTRED = torch.tensor([1.0, -2.0, 0.5, 0.5] * 3, dtype=torch.float64)


def setting(objective, moved: float, advantage: torch.Tensor = CENTRED, low: float = 0.0):
    """(policy, batch, what its samples are noised to)."""
    policy = laws.denoiser(dict(objective.needs().copies), moved)
    of = batch(laws.drawn_steps(), advantage)
    together = of.keep if isinstance(objective, DGPO) else None
    return policy, of, noised(of, objective.draws, objective.times, policy.times(4), low, together)


def velocity(policy: Denoiser, some: Noised, copy: str = "live") -> torch.Tensor:
    if copy == "live":
        return policy.velocity(some.x, some.t, some.prompts)
    with torch.no_grad(), policy.using(copy):
        return policy.velocity(some.x, some.t, some.prompts)


def share(advantage: torch.Tensor, draws: int) -> torch.Tensor:
    """(2 r - 1) of every row."""
    return (advantage / 5).clamp(-1, 1).repeat_interleave(draws).view(-1, 1, 1, 1)


# --- DiffusionNFT -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 0.7, 1.0])
def test_the_gradient_of_nft_where_it_drew(beta):
    """2 max_advantage (2 r - 1) (v_old - v*), which is the paper's 2 beta (2 r - 1) (v_old - v*) as it is scaled."""
    objective = DiffusionNFT(beta=beta, weighting="none", kl=0.0, draws=3)
    policy, of, some = setting(objective, 0.0)
    v = velocity(policy, some)
    pull = 2 * 5 * share(of.advantage, 3) * (v - some.target).detach()
    expected = (pull * v).flatten(1).mean(1).mean()
    torch.testing.assert_close(slope(lost(objective, of, policy), policy), slope(expected, policy))


def test_the_gradient_of_nft_as_released():
    """Between clean samples, t (v - v*), and divided by the mean of its absolute value."""
    objective = DiffusionNFT(kl=0.0, draws=3)
    policy, of, some = setting(objective, 0.0)
    v = velocity(policy, some)
    t = some.t.view(-1, 1, 1, 1)
    miss = (t * (v - some.target)).detach()
    pull = 2 * 5 * share(of.advantage, 3) * t * miss / miss.abs().mean((1, 2, 3), keepdim=True)
    expected = (pull * v).flatten(1).mean(1).mean()
    found = slope(lost(objective, of, policy), policy)
    torch.testing.assert_close(found, slope(expected, policy), atol=1e-6, rtol=1e-5)


def test_nft_as_released_by_hand():
    """One number: x = 1, clean 3, t 1/2, beta 1/2, v_old 1, v 3, r 3/4: v+ 2, v- 0; clean 0 and 1, misses -3 and -2.

    5 / 0.5 x (3/4 x 9/3 + 1/4 x 4/2) = 27.5.
    """
    objective = DiffusionNFT(beta=0.5)
    one = lambda v: torch.full((1, 1), v)  # noqa: E731
    some = Noised(one(1.0), torch.tensor([0.5]), one(3.0), one(-4.0), (), 1)
    old, now, r = one(1.0), one(3.0), 0.75
    good, bad = (objective._error(some, v) for v in (0.5 * old + 0.5 * now, 1.5 * old - 0.5 * now))
    assert float(5 / 0.5 * (r * good + (1 - r) * bad)) == pytest.approx(27.5)


def test_nft_as_the_paper_writes_it():
    """Trap 9: neither multiplied by the largest advantage nor divided by beta; the distance weighs as it did."""
    released, paper = (DiffusionNFT(beta=0.5, kl=0.0, scale=scale) for scale in ("released", "paper"))
    policy, of, _ = setting(released, 0.2)
    values = [lost(objective, of, policy).total for objective in (released, paper)]
    torch.testing.assert_close(values[0], 5 / 0.5 * values[1])
    leashed = [lost(replace(objective, kl=0.3), of, setting(DiffusionNFT(), 0.2)[0]) for objective in (released, paper)]
    torch.testing.assert_close(leashed[0].total - values[0], leashed[1].total - values[1])


@pytest.mark.parametrize("weighting", ["clean", "none"])
def test_nft_of_neither_good_nor_bad(weighting):
    objective = DiffusionNFT(weighting=weighting, kl=0.0)
    policy, of, _ = setting(objective, 0.0, torch.zeros(12, dtype=torch.float64))
    assert slope(lost(objective, of, policy), policy).abs().max() < 1e-12
    assert mean_of(lost(objective, of, policy), "r") == 0.5


def test_nft_of_all_good_is_flow_matching():
    objective = DiffusionNFT(weighting="none", kl=0.0, draws=2)
    policy, of, some = setting(objective, 0.3, torch.full((12,), 9.0, dtype=torch.float64))
    matching = 5 * (velocity(policy, some) - some.target).square().mean()
    loss = lost(objective, of, policy)
    torch.testing.assert_close(loss.total / loss.count, matching)
    torch.testing.assert_close(slope(loss, policy), slope(matching, policy))


@pytest.mark.parametrize("weighting", ["clean", "none"])
def test_good_and_bad_pull_against_one_another(weighting):
    objective = DiffusionNFT(weighting=weighting, kl=0.0)
    policy, of, _ = setting(objective, 0.0)
    other = slope(lost(objective, replace(of, advantage=-of.advantage), policy), policy)
    torch.testing.assert_close(slope(lost(objective, of, policy), policy), -other)


# One sample of each of six prompts, each with an offset of its own and one place: any velocities are within reach.
ADVANTAGES = torch.tensor([-7.0, -5.0, -2.0, 1.0, 4.0, 5.0], dtype=torch.float64)
SHARE = (ADVANTAGES / 5).clamp(-1, 1)[:, None]  # 2 r - 1


def free(objective: DiffusionNFT, moved: float = 0.0):
    """(policy, its batch, v_old of each sample, v* - v_old)."""
    spec = ToyFlow(shape=(2, 1, 1), prompts=6)
    plan = LatentPlan(group=1, steps=4, stochastic=(1,), transition=DDIM())
    rollout = laws.exactly(spec.load(torch.device("cpu")).sample(asked(1, 6), plan, Noise(3, 0, tuple(range(6)))))
    policy = spec.load(torch.device("cpu"))
    for _, weight in policy.parameters():
        weight.data = weight.data.double()
    policy.keep(dict(objective.needs().copies))
    for _, weight in policy.parameters():
        weight.data += moved * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).double()
    of = batch(rollout, ADVANTAGES)
    some = noised(of, objective.draws, objective.times, policy.times(4))
    old = velocity(policy, some, "old")
    return policy, of, old.flatten(1), (some.target - old).flatten(1)


def now(policy: Denoiser, of) -> torch.Tensor:
    """Velocities of the samples at the points that they are noised to."""
    return velocity(policy, noised(of, 1, "steps", policy.times(4))).detach().flatten(1)


@pytest.mark.parametrize("scale", ["released", "paper"])
@pytest.mark.parametrize("beta", [0.1, 0.7, 1.0])
def test_the_velocity_that_nft_as_the_paper_writes_it_leads_to(beta, scale):
    """v_old + (2 r - 1) / beta (v* - v_old), of every sample alone, whatever the loss is multiplied by."""
    policy, of, old, gap = free(objective := DiffusionNFT(beta=beta, weighting="none", kl=0.0, scale=scale), 0.3)
    weights = [weight for _, weight in policy.parameters()]
    search = torch.optim.LBFGS(
        weights, max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def value() -> torch.Tensor:
        search.zero_grad()
        loss = lost(objective, of, policy)
        (loss.total / loss.count).backward()
        return loss.total / loss.count

    assert (now(policy, of) - old).abs().max() > 0.1
    search.step(value)
    torch.testing.assert_close(now(policy, of), old + SHARE / beta * gap, atol=1e-5, rtol=0)
    assert gap.abs().min() > 1e-2


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_velocity_that_nft_as_released_leads_to(beta):
    """Not that one: v_old + (v* - v_old) / beta if r > 1/2, v_old - (v* - v_old) / beta if r < 1/2.

    Divided by the distances, the pulls of v+ and v- are as long wherever v is between these two, and the stronger wins:
    at v_old + k / beta (v* - v_old), -1 < k < 1, the gradient is 2 max_advantage t (1 - 2 r) (v* - v_old) / (2 mean
    |v* - v_old|), over two dimensions; and beyond, where both pull back, the same with 1 for |1 - 2 r|.
    """
    objective = DiffusionNFT(beta=beta, kl=0.0)
    policy, of, _, gap = free(objective)
    t = noised(of, 1, "steps", policy.times(4)).t.double()[:, None]
    offset = dict(policy.parameters())["prompt"]
    began = offset.data.clone()
    for k in (-1.5, -0.9, 0.0, float(SHARE[2]), 0.9, 1.5):
        offset.data = began + k / beta * gap
        pull = -SHARE if abs(k) < 1 else math.copysign(1.0, k)
        loss = lost(objective, of, policy)
        (found,) = torch.autograd.grad(loss.total / loss.count, [offset])
        expected = 2 * 5 * t * pull * gap / gap.abs().mean(1, keepdim=True) / gap.shape[1]
        torch.testing.assert_close(found, expected / len(gap), atol=1e-6, rtol=1e-4)


def test_nft_is_leashed_by_velocities():
    with_it, without = DiffusionNFT(kl=0.3), DiffusionNFT(kl=0.0)
    policy, of, some = setting(with_it, 0.2)
    distance = (velocity(policy, some) - velocity(policy, some, "reference")).square().mean()
    found = slope(lost(with_it, of, policy), policy) - slope(lost(without, of, policy), policy)
    torch.testing.assert_close(found, 0.3 * slope(distance, policy))
    assert with_it.needs().draw_from == "old" and set(without.needs().copies) == {"old"}


# --- DGPO ---------------------------------------------------------------------------------------------------------


def test_dgpo_at_the_reference():
    objective = DGPO()
    policy, of, _ = setting(objective, 0.0)
    loss = lost(objective, of, policy)
    assert (loss.total / loss.count).item() == pytest.approx(math.log(2) / objective.beta)
    assert float(loss.count) == pytest.approx(3 * objective.draws)
    assert mean_of(loss, "weight") == 0.5 and mean_of(loss, "clipped") == 0


@pytest.mark.parametrize("objective", [DGPO(clip=1e9, kl=0.0), DGPO(clip=0.002, kl=0.0), DGPO(clip=0.002, kl=0.1)])
def test_dgpo_has_the_gradient_of_weighed_matching(objective):
    """mean(w A grad l), w detached; with nothing from samples that the clip has stopped."""
    objective = replace(objective, beta=3.0)
    policy, of, some = setting(objective, 0.02, low=objective.low)
    v, reference = velocity(policy, some), velocity(policy, some, "reference")
    error, base = some.error(v), some.error(reference)
    advantage = of.advantage[:, None]
    ratio = (base - error).exp()  # the fast average is still where it began
    going = ~torch.where(advantage > 0, ratio > 1 + objective.clip, ratio < 1 - objective.clip)
    inner = 3.0 * (advantage * (error - base)).view(3, 4, -1).mean(1, keepdim=True)
    w = inner.sigmoid().detach().expand(3, 4, -1).reshape(12, -1)
    expected = (w * advantage * going * error).mean() + objective.kl * (v - reference).square().mean()
    loss = lost(objective, of, policy)
    torch.testing.assert_close(slope(loss, policy), slope(expected, policy))
    assert mean_of(loss, "clipped") == pytest.approx(float((~going).double().mean()))
    assert objective.clip > 1 or 0.1 < mean_of(loss, "clipped") < 0.9


def test_dgpo_at_the_reference_is_as_steep_for_every_beta():
    """As released: beta stands in w alone, which is 1/2 there."""
    slopes = []
    for beta in (1.0, 100.0):
        objective = DGPO(beta=beta, kl=0.0)
        policy, of, _ = setting(objective, 0.0)
        slopes.append(slope(lost(objective, of, policy), policy))
    torch.testing.assert_close(*slopes)


def test_dgpo_draws_from_and_is_held_near_what_is_asked_for():
    assert DGPO().needs().draw_from == "live" and DGPO(draw_from="old").needs().draw_from == "old"
    objective, plain = (DGPO(kl=0.5, clip=1e9, kl_guidance=guidance) for guidance in (3.0, 1.0))
    policy, of, some = setting(objective, 0.1, low=objective.low)
    with policy.using("reference"):
        aims = [policy.velocity(some.x, some.t, some.prompts, guidance).detach() for guidance in (3.0, 1.0)]
    pulls = [slope((velocity(policy, some) - aim).square().mean(), policy) for aim in aims]
    found = slope(lost(objective, of, policy), policy) - slope(lost(plain, of, policy), policy)
    torch.testing.assert_close(found, 0.5 * (pulls[0] - pulls[1]))
    assert found.abs().max() > 1e-3


def test_equal_samples_of_a_group_teach_nothing():
    objective = DGPO(kl=0.0, clip=1e9)
    policy, of, _ = setting(objective, 0.2)
    same = of.rollout.final[::4].repeat_interleave(4, 0)
    of = replace(of, rollout=replace(of.rollout, final=same))
    assert slope(lost(objective, of, policy), policy).abs().max() < 1e-9


def test_a_group_with_a_missing_member_is_a_group():
    objective = DGPO(kl=0.0)
    policy, of, _ = setting(objective, 0.1)
    some = torch.tensor([0, 2, 3, *range(4, 12)])
    loss = lost(objective, take(of, some), policy)
    assert float(loss.count) == pytest.approx(3 * objective.draws)
    masked = replace(of, keep=torch.arange(12) != 1)
    torch.testing.assert_close(lost(objective, masked, policy).total, loss.total)


# --- AWM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weighting", "w"), [
    ("even", lambda e, t: e), ("t", lambda e, t: t * e), ("t2", lambda e, t: t * t * e),
    ("huber", lambda e, t: 4 * t * e.pow(0.25)),
])  # fmt: skip
def test_awm_begins_as_weighed_matching(weighting, w):
    objective = AWM(weighting=weighting, ema_kl=1.0, kl=0.2)
    policy, of, some = setting(objective, 0.0)
    loss = lost(objective, of, policy)
    assert mean_of(loss, "ratio_mean") == 1.0 and mean_of(loss, "ema_kl") == 0 and mean_of(loss, "kl") == 0
    assert (loss.total / loss.count).item() == pytest.approx(0.0, abs=1e-12)
    expected = (of.advantage[:, None] * w(some.error(velocity(policy, some)), some.per_sample(some.t))).mean()
    torch.testing.assert_close(slope(loss, policy), slope(expected, policy))


def test_awm_is_clipped_and_leashed():
    objective = AWM(weighting="even", ema_kl=0.5, kl=0.25, clip=1e-3)
    policy, of, some = setting(objective, 0.02)
    v, there = velocity(policy, some), velocity(policy, some, "average")
    error, old, advantage = some.error(v), some.error(there), of.advantage[:, None]
    ratio = (old - error).exp()
    going = ~torch.where(advantage > 0, ratio > 1.001, ratio < 0.999)
    expected = (-advantage * ratio * going).mean() + 0.75 * (v - there).square().mean()
    loss = lost(objective, of, policy)
    torch.testing.assert_close(slope(loss, policy), slope(expected, policy))
    assert 0.1 < mean_of(loss, "clipped") < 0.9


# --- imitation ----------------------------------------------------------------------------------------------------


def test_rewards_weigh_by_their_softmax():
    objective = RewardWeighted(temperature=1.5, draws=2)
    policy, of, some = setting(objective, 0.1)
    error = some.error(velocity(policy, some)).mean(1)
    loss = lost(objective, of, policy)
    torch.testing.assert_close(loss.total / loss.count, ((1.5 * of.advantage).softmax(0) * error).sum())
    for plain, advantage in ((replace(objective, temperature=0.0), CENTRED), (objective, torch.full_like(CENTRED, 3))):
        loss = lost(plain, replace(of, advantage=advantage), policy)
        torch.testing.assert_close(loss.total / loss.count, error.mean())
    before = policy.evaluations
    loss = lost(RewardWeighted(rule="above", threshold=0.6, draws=2), of, policy)
    torch.testing.assert_close(loss.total / loss.count, error[::4].mean())
    assert policy.evaluations - before == 3 * 2, "three of twelve have a weight"
    assert mean_of(loss, "weight") == 0.25
    assert lost(RewardWeighted(rule="above", threshold=9.0), of, policy).count == 0
    assert lost(RewardWeighted(rule="above"), replace(of, advantage=torch.zeros_like(CENTRED)), policy).count == 0


def test_rewards_weigh_as_they_are():
    """Scores of 0, 1, 2, ... are weights; one below 0 and one of a sample that is left out are none."""
    objective = RewardWeighted(rule="reward", draws=2)
    policy, of, some = setting(objective, 0.1)
    error = some.error(velocity(policy, some)).mean(1)
    total = torch.arange(12.0) - 1
    kept = torch.arange(12) != 5
    weight = total.clamp(min=0) * kept
    scores = Scores.of("one", torch.where(kept, total, torch.nan))
    loss = lost(objective, replace(of, scores=scores, keep=kept), policy)
    torch.testing.assert_close(loss.total / loss.count, (weight * error).sum() / weight.sum())
    for equal in (1.0, 0.0):
        loss = lost(objective, replace(of, scores=Scores.of("one", torch.full((12,), equal))), policy)
        if equal:
            torch.testing.assert_close(loss.total / loss.count, error.mean())
        else:
            assert loss.count == 0


def test_raft_asks_about_nobody_else():
    policy, of, _ = setting(RAFT(draws=2), 0.1)
    before = policy.evaluations
    lost(RAFT(best=1, draws=2), of, policy)
    assert policy.evaluations - before == 3 * 2  # of three groups of four
    nobody = lost(RAFT(best=1, draws=2), replace(of, keep=torch.zeros(12, dtype=torch.bool)), policy)
    assert nobody.total == 0 and nobody.count == 0


def test_raft_imitates_the_best():
    policy, of, some = setting(RAFT(), 0.1)
    error = some.error(velocity(policy, some)).squeeze(1)
    for best, chosen in ((1, [0, 4, 8]), (2, [0, 2, 4, 6, 8, 10]), (4, list(range(12))), (9, list(range(12)))):
        loss = lost(RAFT(best=best), of, policy)
        torch.testing.assert_close(loss.total / loss.count, error[chosen].mean())
        assert of.scores.total[chosen].mean() >= of.scores.total.mean()


def test_an_error_of_noise_is_that_of_the_noise_the_velocity_says():
    policy, of, some = setting(RAFT(draws=3), 0.1)
    v = velocity(policy, some)
    noise, said = some.target + some.clean, some.x + (1 - some.t.view(-1, 1, 1, 1)) * v
    expected = (said - noise).square().mean((1, 2, 3)).view(12, 3)
    torch.testing.assert_close(some.error(v, "noise"), expected, rtol=1e-5, atol=1e-9)
    for objective in (RAFT(best=4, draws=3, target="noise"), RewardWeighted(temperature=0, draws=3, target="noise")):
        loss = lost(objective, of, policy)
        torch.testing.assert_close(loss.total / loss.count, expected.mean(), rtol=1e-5, atol=1e-9)


# --- times and noise ----------------------------------------------------------------------------------------------


def test_times_and_noise_belong_to_the_sample():
    of = batch(laws.drawn_steps())
    schedule = torch.linspace(1, 0, 5, dtype=torch.float64)
    whole = noised(of, 3, "uniform", schedule)
    order = torch.tensor([7, 2])
    some = noised(take(of, order), 3, "uniform", schedule)
    torch.testing.assert_close(some.x.view(2, 3, 2, 2, 2), whole.x.view(12, 3, 2, 2, 2)[order])
    assert whole.t.unique().numel() == 36
    torch.testing.assert_close(whole.x, whole.clean + whole.t.view(-1, 1, 1, 1) * whole.target, atol=1e-6, rtol=1e-6)
    for other in (replace(of, step=of.step + 1), replace(of, seed=of.seed + 1)):
        assert not (noised(other, 3, "uniform", schedule).t == whole.t).any()
    near = replace(of, rollout=replace(of.rollout, final=of.rollout.final * (1 + 1e-6)))
    assert (noised(near, 3, "uniform", schedule).t == whole.t).all(), "another process may round otherwise"


def test_a_group_shares_times_and_noise():
    of = batch(laws.drawn_steps())
    counts = torch.arange(12) != 0
    some = noised(of, 2, "uniform", torch.linspace(1, 0, 5), together=counts)
    noise = (some.target + some.clean).view(3, 4, 2, -1)
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise))
    assert (some.t.view(3, 4, 2) == some.t.view(3, 4, 2)[:, :1]).all() and some.t.unique().numel() == 6
    other = noised(of, 2, "uniform", torch.linspace(1, 0, 5), together=torch.arange(12) != 1)
    assert (other.t[8:] == some.t[8:]).all() and not (other.t[:8] == some.t[:8]).any(), "of the first that counts"


def test_times_follow_their_law():
    of = batch(laws.drawn_steps())
    schedule = torch.tensor([1.0, 0.9, 0.7, 0.3, 0.0])
    draw = lambda times, n, low=0.0: noised(of, n, times, schedule, low).t.view(12, n)  # noqa: E731
    assert (draw("steps", 4).sort(1).values == torch.tensor([0.3, 0.7, 0.9, 1.0])).all()
    assert (draw("steps", 3, 0.5).sort(1).values == torch.tensor([0.7, 0.9, 1.0])).all()
    t = draw("uniform", 500, 0.2)
    assert float(t.min()) >= 0.2 and float(t.mean()) == pytest.approx(0.6, abs=0.002)
    t = draw("logit_normal", 500)
    assert float(t.logit().std()) == pytest.approx(1.0, abs=0.02) and float(t.mean()) == pytest.approx(0.5, abs=0.005)
    with pytest.raises(ValueError, match=r"0\.99 or more"):
        noised(of, 1, "steps", torch.tensor([0.9, 0.0]), 0.99)


def test_what_cannot_be_trained_on_is_explained():
    policy, of, _ = setting(AWM(), 0.0)
    with pytest.raises(ValueError, match="clean latents"):
        lost(AWM(), replace(of, rollout=replace(of.rollout, final=None)), policy)
    with pytest.raises(ValueError, match="between decisions"):
        lost(AWM(), replace(of, advantage=torch.ones(12, 3)), policy)
    with pytest.raises(ValueError, match="decay"):
        DiffusionNFT(decay=1.0)
