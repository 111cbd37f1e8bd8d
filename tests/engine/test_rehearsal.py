"""A rehearsal asks for what a step asks for, and its time is that of the passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import several
import tiny_diffusers as tiny
import torch
import toy_denoiser
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from toys import Brightness

from burnish.advantages.group_norm import GroupNorm
from burnish.advantages.kl_in_reward import KlInReward
from burnish.cli.check import check
from burnish.core import Advantage, Denoiser, Needs, Objective, Scorer
from burnish.engine import rehearsal
from burnish.engine.bench import bench
from burnish.engine.interruption import Interruption
from burnish.engine.layouts.local import Local
from burnish.engine.loop import Run
from burnish.engine.rehearsal import TIMES, Kind, Passes, Shaken, rehearse
from burnish.engine.reporter import Nowhere
from burnish.laps import recorded
from burnish.objectives.diffusion_nft import DiffusionNFT
from burnish.objectives.gardo import GARDO
from burnish.objectives.reward_gradient import RewardGradient
from burnish.objectives.step_clip import StepClip
from burnish.plans.all_steps import AllSteps
from burnish.plans.truncated import Truncated
from burnish.recipe.encode import encode
from burnish.recipe.read import as_yaml
from burnish.recipe.recipe import Optim, Recipe
from burnish.sources.on_policy import OnPolicy
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Batch, Loss, Prompt, Rollout, Scores


@dataclass(frozen=True)
class TwoSided(several.Bright):
    """What one channel and another are like, and what that is worth."""

    def load(self, device: torch.device) -> Scorer:
        return TwoSidedScorer()


class TwoSidedScorer(Scorer):
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        red, green = images[:, 0].mean((1, 2)), images[:, 1].std((1, 2))
        return Scores(red + 0.3 * green, {"red": red, "green": green}, torch.ones(len(images), dtype=torch.bool))


def aligned(**changes) -> Recipe:
    """AlignProp in small: each step differentiates another number of steps of the denoiser."""
    source = OnPolicy("several:things", Truncated(group=4, steps=8), per_step=3)
    objective = RewardGradient(last=0, recompute=True)
    return several.flow(source=source, objective=objective, reward=several.Bright(), **changes)


ASKED: Mapping[str, Callable[[], Recipe]] = {
    **{name: several.NAMED[name] for name in ("flow", "dgpo", "ode", "tree", "by_step", "gradient", "critic")},
    "gradient_recomputed": lambda: several.flow(
        objective=RewardGradient(last=3, recompute=True), reward=several.Bright()
    ),
    "gardo": lambda: several.flow(objective=GARDO(StepClip(), rho_change=0), reward=TwoSided()),
}


@pytest.mark.parametrize("name", ASKED)
def test_it_asks_the_network_as_often_as_a_step(name: str):
    """The third step of each."""
    found, whole = rehearse(ASKED[name]()), ASKED[name]()
    place, run = Local().build(whole), Run(whole, Path(), Nowhere(), Interruption())
    for step in (1, 2, 3):
        with recorded() as laps:
            metrics = run.learn(place, step, laps)[2]
    made = metrics["update/evaluations"] + metrics.get("draw/evaluations", 0.0)
    assert sum(count * kind.rows for kind, (count, _) in found.passes.items()) == made > 0
    assert any(kind.gradient for kind in found.passes)
    if name == "gardo":
        assert {(3, True), (3, False)} < {(kind.rows, kind.gradient) for kind in found.passes}, "a sample is held"


@pytest.mark.parametrize(
    "changes",
    [{"advantage": KlInReward(GroupNorm())}, {"flat_groups": "refill", "reward": Brightness("flat")}],
)
def test_metrics_have_all_evaluations_of_a_step(changes: dict):
    """Those for a reference that the advantage reads, and those for groups that are drawn again, too."""
    whole = several.flow(**changes)
    place = Local().build(whole)
    with recorded() as laps:
        metrics = Run(whole, Path(), Nowhere(), Interruption()).learn(place, 1, laps)[2]
    assert metrics["draw/evaluations"] + metrics.get("update/evaluations", 0.0) == place.policy.evaluations
    once = several.flow().source.plan_at(1)
    assert place.policy.evaluations > 12 * (once.steps + len(once.learned))  # what a plain step of these samples takes


def test_the_passes_of_a_step_by_hand():
    """Three prompts, four samples of each, four steps, of which three are learned from; two updates of four and two."""
    found = rehearse(several.flow(optim=Optim(lr=0.01, minibatches=2, micro=4)))
    counts = {kind: count for kind, (count, _) in found.passes.items()}
    assert counts == {
        Kind("velocity", 12, gradient=False): 4,
        Kind("velocity", 4 * 3, gradient=True): 2,
        Kind("velocity", 2 * 3, gradient=True): 2,
    }


def test_tokens_are_drawn_and_scored_in_chunks():
    whole = several.raster(optim=Optim(lr=0.03, micro=10))
    found = rehearse(replace(whole, source=replace(whole.source, rows=8)))
    counts = {(kind.what, kind.rows, kind.gradient): count for kind, (count, _) in found.passes.items()}
    assert counts == {("sample", 8, False): 3, ("logp", 10, True): 2, ("logp", 4, True): 1}


def test_plans_that_differ_are_averaged_over_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Of two updates each begins where the plan of its step says."""
    whole = aligned(steps=100)
    found = rehearse(whole)
    counts = {(kind.rows, kind.gradient): count for kind, (count, _) in found.passes.items()}
    learned = [2 * (8 - whole.source.plan_at(step).waypoint) for step in (11, 31, 51, 71, 91)]  # pyright: ignore
    assert list(found.steps) == [11, 31, 51, 71, 91] and len(set(learned)) > 2
    assert counts == {(12, False): 8, (6, True): sum(learned) / 5, (6, False): sum(learned) / 5}
    assert found.seconds == pytest.approx(sum(found.steps.values()) / 5)
    file = tmp_path / "aligned.yaml"
    file.write_text(as_yaml(encode(replace(whole, suites={}, measures={}))))
    check(str(file), rehearse=True)
    assert "    means of steps 11, 31, 51, 71, 91, which take " in capsys.readouterr().out


class Slow(toy_denoiser.ToyNetwork):
    passes = 0

    def velocity(self, x, t, conditions, guidance):
        Slow.passes += 1
        time.sleep(0.02)
        return super().velocity(x, t, conditions, guidance)


def test_passes_that_were_not_made_are_in_the_time(monkeypatch: pytest.MonkeyPatch):
    """24 passes of 20 ms, of two kinds."""
    monkeypatch.setattr(toy_denoiser, "ToyNetwork", Slow)
    found = rehearse(several.flow(optim=Optim(lr=0.01, epochs=5, minibatches=4, micro=3)))
    assert {kind.rows: count for kind, (count, _) in found.passes.items()} == {12: 4, 9: 20}
    assert all(0.02 <= seconds < 0.2 for _, seconds in found.passes.values())
    assert found.seconds >= 24 * 0.02
    assert Slow.passes == 2 * (2 + TIMES), "each kind in two steps, and to be timed"


class Lone(toy_denoiser.ToyNetwork):
    def velocity(self, x, t, conditions, guidance):
        time.sleep(0.5 * (len(x) == 1))
        return super().velocity(x, t, conditions, guidance)


@dataclass(frozen=True)
class AsksLater(Objective[Denoiser]):
    """From the third step on of one state more."""

    def needs(self) -> Needs:
        return Needs()

    def loss(self, batch: Batch, policy: Denoiser, reward: Scorer) -> Loss:
        if batch.step > 2:
            with torch.no_grad():
                policy.velocity(torch.zeros(1, 3, 4, 4), torch.ones(1), batch.rollout.prompts[:1])
        return StepClip().loss(batch, policy, reward)


def test_a_pass_that_is_first_made_in_the_last_step_counts_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(toy_denoiser, "ToyNetwork", Lone)
    monkeypatch.setattr(rehearsal, "TIMES", 1)
    found = rehearse(several.flow(objective=AsksLater(), optim=Optim(lr=0.01)))
    assert found.passes[Kind("velocity", 1, gradient=False)][0] == 1
    assert 0.5 <= found.seconds < 1.0 and found.rest < 0.5


@dataclass(frozen=True)
class Ponders(Advantage):
    def __call__(self, scores: Scores, rollout: Rollout) -> Tensor:
        time.sleep(0.4)
        return scores.total - scores.total.mean()


def test_weighing_is_in_the_time_of_a_step():
    whole = several.flow(advantage=Ponders())
    taken = bench(whole, steps=1)
    assert taken is not None and rehearse(whole).rest >= 0.4
    assert taken.stages["step"].seconds > taken.stages["weigh"].seconds >= 0.4


@pytest.mark.parametrize("where", ["when it was loaded", "at stage draw", "at stage update"])
def test_what_does_not_fit_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch, where: str):
    class Large(toy_denoiser.ToyNetwork):
        def __init__(self, spec, device):
            self.ask("when it was loaded")
            super().__init__(spec, device)

        def velocity(self, x, t, conditions, guidance):
            self.ask("at stage update" if torch.is_grad_enabled() else "at stage draw")
            return super().velocity(x, t, conditions, guidance)

        def ask(self, here):
            if here == where:
                raise torch.OutOfMemoryError("Tried to allocate 3 GiB")

    monkeypatch.setattr(toy_denoiser, "ToyNetwork", Large)
    with pytest.raises(ValueError, match=f"does not fit: .* ran out of memory {where}.*Tried to allocate 3 GiB"):
        rehearse(several.flow())


def test_what_is_computed_again_is_what_it_was():
    """A pass and a stand-in after it, neither of whose graphs is kept: the gradient is that of the pass."""
    policy = toy_denoiser.ToyFlow().load(torch.device("cpu"))
    x, t = torch.randn(2, 3, 4, 4), torch.full((2,), 0.5)
    policy.velocity(x, t, toy_denoiser.asked(1)).sum().backward()
    wanted = [weight.grad.clone() for _, weight in policy.parameters()]
    for _, weight in policy.parameters():
        weight.grad = None
    policy.network.evaluations, passes = 0, Passes(policy)
    real = checkpoint(policy.velocity, x, t, toy_denoiser.asked(1), use_reentrant=False)
    other = checkpoint(policy.velocity, 2 * real, t, toy_denoiser.asked(1), use_reentrant=False)
    (real + other).sum().backward()
    assert policy.network.evaluations == 2 * 2
    assert passes.counts == {Kind("velocity", 2, gradient=True): 2, Kind("velocity", 2, gradient=False): 2}
    assert all(torch.equal(w.grad, want) for (_, w), want in zip(policy.parameters(), wanted, strict=True))


def test_a_stand_in_has_the_gradients_of_a_pass():
    """None of the weights is left without one, so the optimiser does its work; and states and texts get theirs."""
    policy = toy_denoiser.ToyFlow().load(torch.device("cpu"))
    passes = Passes(policy)
    x, t = torch.randn(2, 3, 4, 4, requires_grad=True), torch.full((2,), 0.5)
    real = policy.velocity(x, t, toy_denoiser.asked(1))
    other = policy.velocity(x, t, toy_denoiser.asked(1))
    assert real.abs().max() > 0 and passes.counts == {Kind("velocity", 2, gradient=True): 2}
    other.sum().backward()
    assert x.grad is not None and x.grad.abs().max() == 0
    assert all(weight.grad is not None and weight.grad.abs().max() == 0 for _, weight in policy.parameters())
    real.sum().backward()
    assert all(weight.grad.abs().max() > 0 for _, weight in policy.parameters())


def test_every_kind_is_made_once():
    policy = toy_denoiser.ToyFlow().load(torch.device("cpu"))
    passes, t = Passes(policy), torch.full((2,), 0.5)
    x = torch.randn(2, 3, 4, 4)
    for _ in range(3):
        policy.velocity(x, t, toy_denoiser.asked(1))
        with torch.no_grad():
            policy.velocity(x, t, toy_denoiser.asked(1))
    assert policy.network.evaluations == 2 * 2 and policy.evaluations == 6 * 2
    passes.begin(known=True)
    policy.velocity(x, t, toy_denoiser.asked(1))
    assert policy.network.evaluations == 2 * 2
    passes.begin()
    policy.velocity(x, t, toy_denoiser.asked(1))
    assert policy.network.evaluations == 3 * 2


def test_totals_are_shaken_and_keep_their_gradient():
    images, prompts = torch.rand(4, 3, 4, 4, requires_grad=True), [Prompt(f"p{i}", "it") for i in range(4)]
    plain, scorer = several.Bright().load(torch.device("cpu")), Shaken(several.Bright().load(torch.device("cpu")))
    found = scorer(images, prompts)
    assert len(set(found.total.tolist())) == 4 and (found.total - plain(images, prompts).total).abs().max() > 0
    found.total.sum().backward()
    assert images.grad is not None
    assert found.parts["bright"] is found.total, "the only part"


def test_parts_are_shaken_each_on_its_own():
    images, prompts = torch.rand(12, 3, 4, 4), [Prompt(f"p{i}", "it") for i in range(12)]
    found = Shaken(TwoSidedScorer())(images, prompts)
    orders = {tuple(values.argsort().tolist()) for values in (found.total, *found.parts.values())}
    assert len(orders) == 3


def test_a_pipeline_of_which_a_text_encoder_is_trained(tmp_path):
    """Prompts are read with their gradient in every pass."""
    policy = replace(tiny.sd(tmp_path), train="text")
    source = OnPolicy("several:things", AllSteps(group=2, steps=3, transition=FlowSDE()), per_step=2)
    found = rehearse(several.flow(policy=policy, source=source))
    assert {kind.gradient: count for kind, (count, _) in found.passes.items()} == {False: 3, True: 2}


def test_memory_is_more_with_more_at_once():
    """Twelve latents of 0.8 MB, and four of each noised: at once, or one after another."""
    large = several.flow(policy=toy_denoiser.ToyFlow(shape=(3, 256, 256)), objective=DiffusionNFT(draws=4))
    at_once, one_by_one = (rehearse(replace(large, optim=Optim(lr=0.01, micro=micro))).memory for micro in (0, 1))
    assert at_once > one_by_one + 4 * 11 * 0.8e6
