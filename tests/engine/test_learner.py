"""The learner: how a batch is cut changes memory and nothing else; what cannot be learned from stops the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from toy_denoiser import ToyFlow, asked
from toys import Brightness, ToyPolicy, ToyRaster, toy_prompts

from burnish.core import Copy, Denoiser, LatentPlan, Needs, Objective, Policy, Scorer
from burnish.engine.learner import Learner
from burnish.formulas.noise import Noise
from burnish.objectives.ppo_clip import PPOClip
from burnish.recipe.recipe import Optim
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Batch, Loss, Mean, Scores, TokenPlan, decided, take

REWARD = Brightness().load(torch.device("cpu"))


@dataclass(frozen=True)
class Likelihood(Objective[Policy]):
    """-log p of a sample times its advantage. Notes which samples it was given, and spoils what it is told to."""

    whole_groups: bool = False  # a group may not be split
    factor: float = 1.0  # of the loss; inf and nan make it not finite
    seen: list[tuple[int, ...]] = field(default_factory=list)  # noise keys of every call

    def needs(self) -> Needs:
        return Needs(whole_groups=self.whole_groups, copies={"old": Copy(0.5)})

    def loss(self, batch: Batch, policy: Policy, reward: Scorer) -> Loss:
        self.seen.append(batch.rollout.ids)
        logp = policy.logp(batch.rollout).sum(1)
        count = torch.tensor(float(len(logp)))
        gap = Mean((logp - batch.rollout.logp.sum(1)).abs().sum().detach(), count)
        return Loss((-logp * batch.advantage).sum() * self.factor, count, {"law_gap": gap})


def setup(
    optim: Optim, objective: Objective, groups: int = 3, group: int = 4, steps: int = 5
) -> tuple[ToyPolicy, Learner, Batch]:
    policy = ToyRaster(dtype=torch.float64).load(torch.device("cpu"))
    policy.keep(objective.needs().copies)
    learner = Learner(policy, optim, objective.needs(), seed=0, steps=steps)
    rollout = policy.sample(
        toy_prompts(groups, group), TokenPlan(group=group), Noise(0, 1, tuple(range(groups * group)))
    )
    total = rollout.media.mean((1, 2, 3)).double()
    keep = torch.ones(len(rollout), dtype=torch.bool)
    return policy, learner, Batch(rollout, Scores.of("bright", total), total - total.mean(), keep)


def weights_after(optim: Optim, objective: Objective) -> list[Tensor]:
    policy, learner, batch = setup(optim, objective)
    learner.update(objective, batch, REWARD, 1)
    return [w.detach() for _, w in policy.parameters()]


@pytest.mark.parametrize("micro", [1, 5, 7, 12, 100])
@pytest.mark.parametrize("minibatches", [1, 3])
def test_the_micro_split_does_not_change_the_update(micro: int, minibatches: int) -> None:
    objective = PPOClip(kl=0.0)
    optim = Optim(lr=0.1, clip_norm=0.0, epochs=2, minibatches=minibatches)
    whole = weights_after(optim, objective)
    split = weights_after(replace(optim, micro=micro), objective)
    for a, b in zip(whole, split, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)


def test_one_update_is_one_step_of_adamw_on_the_mean_loss() -> None:
    objective = Likelihood()
    policy, learner, batch = setup(Optim(lr=0.1, clip_norm=0.05, micro=5), objective)
    other = ToyRaster(dtype=torch.float64).load(torch.device("cpu"))
    plain = [w for _, w in other.parameters()]
    adam = torch.optim.AdamW(plain, lr=0.1, weight_decay=0.0)
    (-other.logp(batch.rollout).sum(1) * batch.advantage).mean().backward()
    norm = float(torch.nn.utils.clip_grad_norm_(plain, 0.05))
    assert norm > 0.05, "or the clip is not tested"
    adam.step()
    metrics = learner.update(objective, batch, REWARD, 1)
    assert metrics["update/grad_norm"] == pytest.approx(norm)
    for (_, a), b in zip(policy.parameters(), plain, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_agreement_is_the_cosine_with_the_mean_of_earlier_gradients() -> None:
    objective = Likelihood()
    policy, learner, batch = setup(Optim(lr=0.0, weight_decay=0.0, betas=(0.75, 0.999)), objective)
    first, second = batch, replace(batch, advantage=batch.advantage.roll(5))

    def gradient(one: Batch) -> Tensor:
        loss = (-policy.logp(one.rollout).sum(1) * one.advantage).mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [w for _, w in policy.parameters()])])

    a, b = gradient(first), gradient(second)
    expected = (0.0, 1.0, float(torch.cosine_similarity(b, a, 0)))
    found = [learner.update(objective, one, REWARD, i) for i, one in enumerate((first, first, second, first), 1)]
    assert 0.001 < abs(expected[2]) < 0.99, "or it tells nothing"
    assert [one["update/agreement"] for one in found][:3] == pytest.approx(expected)
    # The newest weighs 1/4: after a, a, b the mean is (9 a + 12 a + 16 b) / 64.
    assert found[3]["update/agreement"] == pytest.approx(float(torch.cosine_similarity(a, 21 * a + 16 * b, 0)))


def test_samples_that_do_not_count_have_no_influence() -> None:
    objective = PPOClip()
    policy, learner, batch = setup(Optim(lr=0.1), objective)
    keep = torch.arange(12) % 3 != 0
    poisoned = torch.where(keep, batch.advantage, torch.nan)
    metrics = learner.update(objective, replace(batch, advantage=poisoned, keep=keep), REWARD, 1)
    assert metrics["update/samples"] == 8 and math.isfinite(metrics["update/loss"])
    before = policy.state()
    assert learner.update(objective, replace(batch, keep=torch.zeros_like(keep)), REWARD, 2) == {"update/samples": 0.0}
    assert all(torch.equal(before[key], value) for key, value in policy.state().items())


def test_an_average_moves_in_a_step_in_which_no_sample_counts() -> None:
    objective = PPOClip()
    policy, learner, batch = setup(Optim(lr=0.1), objective)
    policy.keep({"mean": Copy(0.5, every="step")})
    learner.update(objective, batch, REWARD, 1)
    before = policy.state()
    learner.update(objective, replace(batch, keep=torch.zeros_like(batch.keep)), REWARD, 2)
    for name, live in policy.parameters():
        mean = before[f"copies/mean/{name}"]
        assert not torch.equal(mean, live)
        torch.testing.assert_close(policy.state()[f"copies/mean/{name}"], (mean + live.detach()) / 2)


def test_each_pass_takes_every_sample_once_in_an_order_of_its_own() -> None:
    objective = Likelihood()
    _, learner, batch = setup(Optim(lr=1e-6, epochs=2, minibatches=3), objective)
    learner.update(objective, batch, REWARD, 1)
    passes = [objective.seen[:3], objective.seen[3:]]
    for calls in passes:
        assert [len(c) for c in calls] == [4, 4, 4]
        assert sorted(i for c in calls for i in c) == list(range(12))
    assert passes[0] != passes[1]
    again = Likelihood()
    _, learner, batch = setup(Optim(lr=1e-6, epochs=2, minibatches=3), again)
    learner.update(again, batch, REWARD, 1)
    assert again.seen == objective.seen, "a function of (seed, step, epoch)"


@pytest.mark.parametrize(("minibatches", "micro"), [(3, 0), (2, 4), (1, 9), (1, 2)])
def test_groups_stay_whole_where_they_must(minibatches: int, micro: int) -> None:
    objective = Likelihood(whole_groups=True)
    _, learner, batch = setup(Optim(lr=1e-6, minibatches=minibatches, micro=micro), objective)
    learner.update(objective, batch, REWARD, 1)
    for call in objective.seen:
        groups = {i // 4 for i in call}
        assert sorted(call) == sorted(i for g in groups for i in range(4 * g, 4 * g + 4))
        assert len(call) <= max(micro, 4) or micro == 0
    assert sorted(i for c in objective.seen for i in c) == list(range(12))


def test_the_law_gap_is_that_before_the_first_update() -> None:
    objective = Likelihood()
    _, learner, batch = setup(Optim(lr=0.3, epochs=3, micro=5), objective)
    assert learner.update(objective, batch, REWARD, 1)["update/law_gap"] == pytest.approx(0.0, abs=1e-9)


def test_averaged_copies_advance_once_an_update() -> None:
    objective = Likelihood()
    policy, learner, batch = setup(Optim(lr=0.1, epochs=2, micro=5), objective)
    start = policy.weights["bias"].detach().clone()
    half = []
    step = learner._adam.step
    learner._adam.step = lambda: (step(), half.append(policy.weights["bias"].detach().clone()))[0]  # type: ignore
    learner.update(objective, batch, REWARD, 1)
    assert len(half) == 2 and learner.updates == 2
    with policy.using("old"):
        assert torch.allclose(policy.weights["bias"], 0.25 * start + 0.25 * half[0] + 0.5 * half[1])


def rates(optim: Optim, steps: int) -> list[float]:
    learner = setup(optim, Likelihood(), steps=steps)[1]
    return [round(learner.rate(u), 6) for u in range(steps)]


def test_schedules_by_hand() -> None:
    assert rates(Optim(warmup=2), 4) == [0.5, 1.0, 1.0, 1.0]
    assert rates(Optim(warmup=1, schedule="linear"), 5) == [1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates(Optim(schedule="cosine"), 4) == [1.0, 0.853553, 0.5, 0.146447]


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(factor: float) -> None:
    objective = Likelihood(factor=factor)
    policy, learner, batch = setup(Optim(), objective)
    before = policy.state()
    with pytest.raises(ValueError, match="step 4: the loss is"):
        learner.update(objective, batch, REWARD, 4)
    assert all(torch.equal(before[key], value) for key, value in policy.state().items())


def test_weights_in_half_precision_are_refused() -> None:
    policy = ToyRaster(dtype=torch.bfloat16).load(torch.device("cpu"))
    with pytest.raises(ValueError, match="float32"):
        Learner(policy, Optim(), Needs(), 0, 1)


@pytest.mark.parametrize(("epochs", "reads", "anchored"), [(1, False, False), (2, False, True), (1, True, True)])
def test_an_anchor_is_computed_only_where_it_is_not_free(epochs: int, reads: bool, anchored: bool) -> None:
    objective = PPOClip(anchor="recomputed", kl=0.1)
    policy, learner, batch = setup(Optim(epochs=epochs, micro=5), objective)
    with torch.no_grad():
        policy.weights["bias"].add_(torch.randn(3, 4, dtype=torch.float64))  # live weights leave the reference
    found = learner.annotate(batch.rollout, reads)
    assert found.reference is not None and found.reference.shape == (12, 3)
    assert torch.allclose(found.reference, batch.rollout.logp), "the samples were drawn by what is now the reference"
    assert (found.anchor is not None) == anchored
    if found.anchor is not None:
        assert torch.equal(found.anchor, policy.logp(batch.rollout)) and not found.anchor.requires_grad
        assert not torch.allclose(found.anchor, found.reference)


def test_moments_of_other_weights_are_refused() -> None:
    objective = PPOClip()
    _, learner, batch = setup(Optim(lr=0.1), objective)
    learner.update(objective, batch, REWARD, 1)
    other = Learner(ToyRaster(width=7, dtype=torch.float64).load(torch.device("cpu")), Optim(), Needs(), 0, 1)
    with pytest.raises(ValueError, match="moments of prompt"):
        other.restore(learner.state(), 1)


# --- updates by steps -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watched(Objective[Denoiser]):
    """-A log p of the steps it is given. Notes whose steps these were, and how far their ratio was from 1."""

    seen: list[list[tuple[int, int]]] = field(default_factory=list)  # (noise key, step) of each sample of every call
    gaps: list[float] = field(default_factory=list)  # largest |log ratio| of every call
    recomputed: bool = False  # ratios against the law before the update

    def needs(self) -> Needs:
        return Needs(anchor="recomputed" if self.recomputed else "behaviour")

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        rollout = batch.rollout
        (steps,) = rollout.decisions
        logp = policy.logp(rollout)
        self.seen.append([(i, int(s)) for i, row in zip(rollout.ids, steps.step) for s in row])
        anchor = rollout.logp if rollout.anchor is None else rollout.anchor
        self.gaps.append(float((logp.detach() - anchor).abs().max()))
        advantage = batch.advantage if batch.advantage.dim() == 2 else batch.advantage.unsqueeze(1)
        return Loss(-(advantage * logp).sum(), torch.tensor(float(logp.numel())))


def steps_setup(optim: Optim, objective: Watched, steps: int = 5) -> tuple[Denoiser, Learner, Batch]:
    """Six samples of three steps, whose advantages differ by step."""
    policy = ToyFlow().load(torch.device("cpu"))
    learner = Learner(policy, optim, objective.needs(), seed=0, steps=steps)
    plan = LatentPlan(group=3, steps=4, stochastic=(0, 1, 2), transition=FlowSDE())
    rollout = policy.sample(asked(3), plan, Noise(0, 1, tuple(range(6))))
    advantage = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    scores = Scores.of("bright", rollout.media.mean((1, 2, 3)))
    return policy, learner, Batch(rollout, scores, advantage, torch.ones(6, dtype=torch.bool))


BY_STEP = Optim(lr=0.01, clip_norm=0.0, by_step=True)


def test_a_step_of_every_sample_by_hand() -> None:
    _, _, batch = steps_setup(BY_STEP, Watched())
    place = torch.tensor([2, 0, 1, 1, 0, 2])
    found = decided(batch, place).rollout.decisions[0]
    (every,) = batch.rollout.decisions
    assert found.step.tolist() == [[2], [0], [1], [1], [0], [2]] and found.before.shape == (6, 1, 3, 4, 4)
    assert torch.equal(found.after[3, 0], every.after[3, 1]) and found.logp[5, 0] == every.logp[5, 2]
    assert decided(batch, place).advantage[:, 0].tolist() == [float(batch.advantage[i, p]) for i, p in enumerate(place)]
    flat = replace(batch, advantage=torch.arange(6.0), rollout=replace(batch.rollout, anchor=every.logp + 1))
    assert torch.equal(decided(flat, place).advantage, torch.arange(6.0))
    assert torch.equal(decided(flat, place).rollout.anchor, found.logp + 1)


def test_updates_by_steps_are_adamw_on_one_step_after_another() -> None:
    objective = Watched()
    policy, learner, batch = steps_setup(BY_STEP, objective)
    other = ToyFlow().load(torch.device("cpu"))
    plain = [w for _, w in other.parameters()]
    learner.update(objective, batch, REWARD, 1)
    adam = torch.optim.AdamW(plain, lr=0.01, weight_decay=0.0)
    for call in objective.seen:
        assert [i for i, _ in call] == list(range(6))
        adam.zero_grad()
        logp, at = other.logp(batch.rollout), [step for _, step in call]  # step number and place are the same here
        (-sum(batch.advantage[i, j] * logp[i, j] for i, j in enumerate(at)) / 6).backward()
        adam.step()
    assert len(objective.seen) == learner.updates == 3
    for (_, a), b in zip(policy.parameters(), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_every_step_of_every_sample_is_taken_once_a_pass() -> None:
    objective = Watched()
    policy, learner, batch = steps_setup(replace(BY_STEP, epochs=2, minibatches=2, micro=2), objective)
    before = policy.evaluations
    metrics = learner.update(objective, batch, REWARD, 1)
    assert learner.updates == 2 * 2 * 3 and policy.evaluations - before == 2 * 6 * 3  # as many as by whole samples
    half = len(objective.seen) // 2
    passes = [[step for call in calls for step in call] for calls in (objective.seen[:half], objective.seen[half:])]
    for some in passes:
        assert sorted(some) == [(i, step) for i in range(6) for step in range(3)]
    orders = [tuple(step for i, step in passes[0] if i == sample) for sample in range(6)]
    assert len(set(orders)) > 1, "their order is each sample's own"
    assert passes[0] != passes[1] and metrics["update/samples"] == 6
    again, backwards = Watched(), torch.arange(5, -1, -1)
    _, learner, batch = steps_setup(BY_STEP, again)
    learner.update(again, take(batch, backwards), REWARD, 1)
    straight = Watched()
    _, learner, batch = steps_setup(BY_STEP, straight)
    learner.update(straight, batch, REWARD, 1)
    assert [sorted(call) for call in again.seen] == [sorted(call) for call in straight.seen], "by its key, not its row"


def test_ratios_are_one_before_the_first_update_only() -> None:
    objective = Watched()
    _, learner, batch = steps_setup(BY_STEP, objective)
    learner.update(objective, batch, REWARD, 1)
    assert objective.gaps[0] < 1e-6 and min(objective.gaps[1:]) > 1e-4


def test_steps_are_anchored_before_any_of_them_is_learned_from() -> None:
    objective = Watched(recomputed=True)
    _, learner, batch = steps_setup(BY_STEP, objective)
    found = learner.annotate(batch.rollout, False)
    assert found.anchor is not None and torch.allclose(found.anchor, batch.rollout.logp, atol=1e-6)


def test_the_rate_goes_by_whole_samples() -> None:
    """Two training steps of two minibatches and three steps: the rate of each minibatch, three times over."""
    _, learner, batch = steps_setup(replace(BY_STEP, minibatches=2, schedule="linear"), Watched(), steps=2)
    rates, step = [], learner._adam.step
    learner._adam.step = lambda: (step(), rates.append(learner._adam.param_groups[0]["lr"] / 0.01))[0]  # type: ignore
    for number in (1, 2):
        learner.update(Watched(), batch, REWARD, number)
    assert rates == pytest.approx([1.0] * 3 + [0.75] * 3 + [0.5] * 3 + [0.25] * 3)


def test_tokens_are_not_learned_from_one_by_one() -> None:
    objective = PPOClip()
    _, learner, batch = setup(Optim(by_step=True), objective)
    with pytest.raises(ValueError, match=r"optim.by_step: needs steps drawn at random"):
        learner.update(objective, batch, REWARD, 1)
