"""GARDO: whom it holds, how firmly, and when its reference moves. Section 4, 6 and 18 (4) of the specification."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from laws import laws
from objectives.test_steps import at, batch, lost, mean_of

from burnish.advantages.diverse import Diverse, nearest
from burnish.advantages.group_mean import GroupMean
from burnish.engine.learner import Learner
from burnish.formulas.uncertainty import adapted, uncertain, uncertainty
from burnish.objectives.diffusion_nft import DiffusionNFT
from burnish.objectives.gardo import GARDO
from burnish.objectives.step_clip import StepClip
from burnish.recipe.recipe import Optim
from burnish.types import Batch, Scores, take

ALL = torch.ones(10, dtype=torch.bool)
TEN = torch.arange(10.0, dtype=torch.float64)
PLAIN = StepClip()


def of_scores(main: torch.Tensor, **parts: torch.Tensor) -> Batch:
    """Twelve samples that were drawn as the toy denoiser draws at the start."""
    policy = laws.denoiser({}, moved=0.0)
    of = batch(at(policy, laws.drawn_steps()))
    return replace(of, scores=Scores(main, parts, torch.isfinite(main)))


HACKED = torch.tensor([5.0, 1.0, 2.0, 3.0, 4.0, 0.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0], dtype=torch.float64)
HONEST = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0], dtype=torch.float64)


# --- whom it holds ------------------------------------------------------------------------------------------------


def test_the_excess_by_hand():
    """Of four: preferred to 3, 2, 1, 0; by the others to 0, 2, 1, 3 and 1, 2, 0, 3."""
    main, one, two = (torch.tensor(v) for v in ([9.0, 5.0, 2.0, 1.0], [0.0, 7.0, 3.0, 8.0], [4.0, 5.0, 1.0, 6.0]))
    found = uncertainty(main, [one, two], ALL[:4])
    torch.testing.assert_close(found, torch.tensor([3 - 0.5, 0.0, 1 - 0.5, 0 - 3.0], dtype=torch.float64) / 4)
    ties = uncertainty(torch.tensor([1.0, 1.0]), [torch.tensor([0.0, 1.0])], ALL[:2])
    assert ties.tolist() == [0.0, -0.5], "a tie is not a win"


def test_equal_rewards_hold_nobody():
    excess = uncertainty(TEN, [TEN * 3 - 1, TEN.exp()], ALL)
    assert excess.eq(0).all() and not uncertain(excess, 0.2).any()


def test_samples_that_one_reward_alone_likes_are_held():
    """Trap 4: ranks from best to worst would hold the others."""
    hacked = TEN.clone()
    hacked[[1, 4]] += 100.0
    excess = uncertainty(hacked, [TEN, TEN + 5], ALL)
    assert uncertain(excess, 0.6).nonzero().flatten().tolist() == [1, 4]  # above 0.4, of 0, 0.5 and 0.7


def test_the_share_is_of_those_that_are_0_or_more():
    excess = torch.tensor([-9.0, -8.0, -7.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    assert int(uncertain(excess, 0.5).sum()) == 3  # above 3, the median of 0 .. 6
    assert not uncertain(excess - 100, 0.5).any()


def test_who_was_not_scored_is_not_compared():
    other = TEN.clone()
    other[3] = torch.nan
    valid = ALL.clone()
    valid[7] = False
    excess = uncertainty(TEN, [other], valid)
    assert excess.isnan().nonzero().flatten().tolist() == [3, 7]
    known = excess.isfinite()
    torch.testing.assert_close(excess[known], uncertainty(TEN[known], [other[known]], ALL[:8]))
    assert not uncertain(excess, 0.5)[[3, 7]].any()


def test_rho_rises_above_all_that_was_and_falls_below_it():
    again = {"change": 0.1, "low": 0.02, "high": 0.2}
    assert adapted(0.1, 5.0, [], **again) == 0.1
    assert adapted(0.1, 5.0, [4.0, 4.9], **again) == pytest.approx(0.11)
    assert adapted(0.1, 3.0, [4.0, 4.9], **again) == pytest.approx(0.09)
    assert adapted(0.1, 4.5, [4.0, 4.9], **again) == 0.1
    assert adapted(0.19, 9.0, [1.0], **again) == 0.2 and adapted(0.0201, 0.0, [1.0], **again) == 0.02


def test_it_watches_the_auxiliary_parts_and_remembers_twenty_steps():
    at_work = GARDO(PLAIN, auxiliary=("taste",), window=2, rho=0.2, rho_high=0.3).begin(None)
    for step in range(3):
        at_work.before(of_scores(HACKED, taste=HONEST, noise=HACKED))
        assert at_work.metrics()["held"] == pytest.approx(1 / 12)
        assert len(at_work.state()["past"]) == min(2, step + 1)
    assert at_work._held == {0}
    at_work.before(of_scores(HONEST, taste=HONEST))
    assert at_work._held == frozenset() and at_work.metrics()["rho"] == pytest.approx(0.18)
    at_work.before(of_scores(HACKED, taste=HONEST))
    assert at_work.metrics()["rho"] == pytest.approx(0.18), "not above what was two steps ago"


def test_ranks_as_released_hold_those_whom_the_others_like():
    """Trap 4. Sample 5 is the last for the trained reward, and preferred to five by the other."""
    at_work = GARDO(PLAIN, auxiliary=("taste",), rho=0.2, ranks="released").begin(None)
    at_work.before(of_scores(HACKED, taste=HONEST))
    assert at_work._held == {5}


# --- how firmly ---------------------------------------------------------------------------------------------------


def working(settings: GARDO, held: tuple[int, ...]) -> GARDO:
    found = settings.begin(None)
    found._held = frozenset(held)
    found._told = {"held": len(held) / 12}
    return found


@pytest.mark.parametrize(("bare", "leashed"), [
    (StepClip(), StepClip(kl=0.3)),
    (DiffusionNFT(kl=0.0), DiffusionNFT(kl=0.3)),
])  # fmt: skip
def test_holding_everybody_is_the_leash_of_the_objective_itself(bare, leashed):
    policy = laws.denoiser({**leashed.needs().copies, **GARDO(bare).needs().copies}, moved=0.01)
    of = laws.batch(leashed)
    found = laws.outcome(working(GARDO(bare, kl=0.3), tuple(range(12))), of, policy)
    if isinstance(bare, DiffusionNFT):
        of = replace(of, rollout=replace(of.rollout, decisions=()))
        found = laws.outcome(working(GARDO(bare, kl=0.3), tuple(range(12))), of, policy)
    laws.same(found, laws.outcome(leashed, of, policy), "held as firmly")
    assert laws.outcome(bare, of, policy)[0] != found[0]


def test_holding_nobody_is_the_objective_itself():
    settings = GARDO(PLAIN, kl=0.3)
    policy, of = laws.toy(settings), laws.batch(settings)
    laws.same(laws.outcome(working(settings, ()), of, policy), laws.outcome(PLAIN, of, policy), "nobody was held")
    loss = working(settings, ()).loss(of, policy, laws.NoScorer())
    assert loss.metrics["kl"].count == 0


@pytest.mark.parametrize(("over", "times"), [("all", 1), ("held", 6)])
def test_the_leash_is_the_sum_over_the_held(over, times):
    """Two of twelve: their distance, over the decisions of all that count or over theirs; the metric over theirs."""
    settings = GARDO(PLAIN, kl=0.3, over=over)
    policy, of = laws.toy(settings, moved=0.01), laws.batch(settings)
    kept = [i for i in range(12) if of.keep[i]][:2]
    dropped = next(i for i in range(12) if not of.keep[i])
    whole = lost(PLAIN, of, policy)
    pull = []
    for i in kept:
        one = take(of, torch.tensor([i]))
        pull.append((lost(StepClip(kl=1.0), one, policy).total - lost(PLAIN, one, policy).total).detach())
    at_work = working(settings, (*kept, dropped))
    at_work._told = {"held": 2 / 12}
    found = lost(at_work, of, policy)
    torch.testing.assert_close(found.total.detach(), whole.total.detach() + 0.3 * times * sum(pull))
    assert mean_of(found, "kl") == pytest.approx(float(sum(pull)) / (2 * 3))
    assert found.count == whole.count


def test_the_leash_is_a_mean_over_samples_whatever_the_objective_counts():
    """This one counts three noised samples for each; the distance is taken at one."""
    inner = DiffusionNFT(kl=0.0, draws=3)
    settings = GARDO(inner, kl=0.3, over="all")
    policy, of = laws.toy(settings, moved=0.01), laws.batch(settings)
    of = replace(of, rollout=replace(of.rollout, decisions=()))
    held = take(of, torch.tensor([i for i in range(12) if of.keep[i]][:2]))
    plain, near = (lost(DiffusionNFT(kl=kl), held, policy).total.item() for kl in (0.0, 1.0))
    bare, found = lost(inner, of, policy), lost(working(settings, held.rollout.ids), of, policy)
    gap = (found.total / found.count - bare.total / bare.count).item()
    assert gap == pytest.approx(0.3 * (near - plain) / int(of.keep.sum()), rel=1e-5)


@pytest.mark.parametrize("inner", [StepClip(), DiffusionNFT(kl=0.0)])
def test_parts_of_a_step_add_up(inner):
    settings = GARDO(inner, kl=0.3)
    policy, of = laws.toy(settings, moved=0.01), laws.batch(settings)
    if isinstance(inner, DiffusionNFT):
        of = replace(of, rollout=replace(of.rollout, decisions=()))
    at_work = working(settings, (0, 4, 5, 8))
    parts = [laws.outcome(at_work, take(of, torch.arange(i, i + 4)), policy) for i in (0, 4, 8)]
    laws.same(tuple(sum(p) for p in zip(*parts)), laws.outcome(at_work, of, policy), "parts do not add up")


# --- when the reference moves -------------------------------------------------------------------------------------


def test_it_is_renewed_when_far_or_old():
    at_work = GARDO(PLAIN, renew_above=0.5, renew_after=3).begin(None)
    told = [at_work.after({"kl": kl}) for kl in (0.4, math.nan, 0.1, 0.6, 0.5, 0.0, 0.0, 0.0)]
    assert [bool(t) for t in told] == [False, False, True, True, False, False, True, False]
    assert told[2] == ["reference"]
    never = GARDO(PLAIN, renew_above=math.inf, renew_after=0).begin(None)
    assert not any(never.after({"kl": 1e9}) for _ in range(50))


def test_after_a_step_that_went_far_it_is_near_again():
    """The distance is 0 at the start and right after the reference has been renewed, and grows in between."""
    settings = GARDO(StepClip(clip=0.5), auxiliary=("taste",), kl=0.1, renew_above=1e-6, renew_after=0)
    policy = laws.denoiser(dict(settings.needs().copies), moved=0.0)
    learner = Learner(policy, Optim(lr=1e-2, epochs=2), settings.needs(), seed=0, steps=9)
    at_work = settings.begin(policy)
    of = of_scores(HACKED, taste=HONEST)
    before = policy.state()

    def distance() -> float:
        with torch.no_grad():
            return mean_of(working(settings, tuple(range(12))).loss(of, policy, laws.NoScorer()), "kl")

    assert distance() == 0
    measured = learner.update(at_work, of, laws.NoScorer(), 1)
    assert measured["update/kl"] > 1e-6 and at_work.metrics()["renewed"] == 1.0
    assert distance() == 0
    now = policy.state()
    assert all(torch.equal(now[f"copies/reference/{name}"], now[name]) for name, _ in policy.parameters())
    assert any(not torch.equal(now[name], before[name]) for name, _ in policy.parameters())
    near = replace(settings, renew_above=1e9).begin(policy)
    learner.update(near, of, laws.NoScorer(), 2)
    assert near.metrics()["renewed"] == 0.0 and distance() > 0


def test_what_it_remembers_comes_back():
    one, other = (GARDO(PLAIN, auxiliary=("taste",), renew_after=4).begin(None) for _ in range(2))
    for main in (HACKED, HACKED.flip(0), HONEST):
        one.before(of_scores(main, taste=HONEST))
        one.after({})
    other.restore(one.state())
    for work in (one, other):
        work.before(of_scores(HACKED, taste=HONEST))
        work.after({})
    assert one.state() == other.state() and one.metrics() == other.metrics()
    assert one.metrics()["renewed"] == 1.0, "the fourth step"


@pytest.mark.parametrize(("settings", "words"), [
    ({"inner": StepClip(kl=0.1)}, "set its kl to 0"),
    ({"inner": PLAIN, "rho": 0.3}, "rho_low <= rho <= rho_high"),
    ({"inner": PLAIN, "window": 0}, "window 1 or more"),
])  # fmt: skip
def test_settings_that_cannot_be_are_a_sentence(settings, words):
    with pytest.raises(ValueError, match=words):
        GARDO(**settings)


def test_a_part_that_the_reward_lacks_is_a_sentence():
    with pytest.raises(ValueError, match="the reward has no part tatse; its parts are: taste"):
        GARDO(PLAIN, auxiliary=("tatse",)).begin(None).before(of_scores(HACKED, taste=HONEST))


# --- and those that differ ----------------------------------------------------------------------------------------


def test_the_nearest_sibling_by_hand():
    """Unit vectors at 0, 90, 90 and 180 degrees; the last belongs to another prompt."""
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])
    found, known = nearest(vectors, torch.tensor([0, 0, 0, 0, 1]), ALL[:5])
    assert found.tolist() == [1.0, 0.0, 0.0, 1.0, 0.0] and known.tolist() == [True] * 4 + [False]
    found, _ = nearest(vectors, torch.tensor([0, 0, 0, 0, 1]), torch.tensor([True, True, False, True, True]))
    assert found.tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(("scale", "expected"), [("none", [1.0, 0.0, -1.0, 0.0]), ("group", [2.0, 0.0, -1.0, 0.0])])
def test_only_good_samples_are_multiplied(scale, expected):
    """Advantages 1, 1, -1 and -1 (before); distances 1, 0, 0 and 1, whose mean is 1/2."""
    rollout = take(laws.drawn_steps(), torch.arange(4))
    rollout = replace(rollout, media=torch.tensor([[1.0, 0.5], [0.5, 1.0], [0.5, 1.0], [0.0, 0.5]]).view(4, 1, 1, 2))
    scores = Scores.of("one", torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64))
    found = Diverse(GroupMean(), scale=scale)(scores, rollout)
    expected = torch.tensor([expected[0], 0.0, -1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
