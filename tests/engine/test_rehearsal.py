"""A rehearsal asks for what a step asks for, and its time is that of the passes."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import several
import tiny_diffusers as tiny
import torch
import toy_denoiser

from burnish.engine.bench import bench
from burnish.engine.rehearsal import TIMES, Kind, Passes, Shaken, rehearse
from burnish.objectives.diffusion_nft import DiffusionNFT
from burnish.plans.all_steps import AllSteps
from burnish.recipe.recipe import Optim
from burnish.sources.on_policy import OnPolicy
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Prompt


@pytest.mark.parametrize("name", ["flow", "dgpo", "ode", "tree", "by_step", "gradient", "critic", "gardo"])
def test_it_asks_the_network_as_often_as_a_step(name: str):
    """The third step of each."""
    found, taken = rehearse(several.NAMED[name]()), bench(several.NAMED[name](), steps=1)
    assert taken is not None
    assert sum(count * kind.rows for kind, (count, _) in found.passes.items()) == taken.evaluations > 0
    assert any(kind.gradient for kind in found.passes)


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
