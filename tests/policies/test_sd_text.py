"""Stable Diffusion whose text encoder is trained: prompts are read with their gradient, and never remembered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_diffusers import noise, prompts, sd

from burnish.core import Copy
from burnish.models.lora import Lora
from burnish.plans.all_steps import AllSteps
from burnish.policies.sd import SD
from burnish.transitions.ddim import DDIM

CPU = torch.device("cpu")
WAYS = {"adapters": {"lora": Lora(4, 4)}, "whole": {}}
way = pytest.mark.parametrize("fields", WAYS.values(), ids=WAYS)


def velocity(policy, guidance: float = 3.0):
    return policy.velocity(noise(6).normal((4, 8, 8), "x"), torch.full((6,), 0.7), prompts(), guidance)


def moved(policy, by: float = 0.1) -> None:
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weight in policy.parameters():
            weight += by * torch.randn(weight.shape, generator=random)


@way
def test_the_gradient_reaches_the_encoder_and_nothing_else(tmp_path, fields):
    policy = sd(tmp_path, train="text", **fields).load(CPU)
    velocity(policy).square().mean().backward()
    grads = [weight.grad for _, weight in policy.parameters()]
    assert sum(g is not None and float(g.abs().max()) > 0 for g in grads) >= len(grads) / 3
    assert all(not weight.requires_grad for weight in policy.network.model.parameters())
    own = {id(weight) for weight in policy.network.learner.parameters()}
    assert all(id(weight) in own for _, weight in policy.parameters())


def test_its_slope_is_the_difference_a_weight_makes(tmp_path):
    policy = sd(tmp_path, train="text").load(CPU)
    weight = next(w for name, w in policy.parameters() if name.endswith("layers.1.mlp.fc2.weight"))
    value = lambda: velocity(policy).square().mean()  # noqa: E731
    (slope,) = torch.autograd.grad(value(), weight)
    at = int(slope.abs().argmax())
    flat, h, ends = weight.data.view(-1), 3e-3, []
    for sign in (1, -1):
        flat[at] += sign * h
        ends.append(value().item())
        flat[at] -= sign * h
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(slope.flatten()[at].item(), rel=0.03)


@way
def test_prompts_are_read_anew(tmp_path, fields):
    """Also the one that is no prompt: at guidance 0 it is all there is."""
    policy = sd(tmp_path, train="text", **fields).load(CPU)
    with torch.no_grad():
        before = [velocity(policy, guidance) for guidance in (1.0, 0.0)]
        moved(policy)
        after = [velocity(policy, guidance) for guidance in (1.0, 0.0)]
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(before, after, strict=True))
    assert policy.network.texts.encoded == 0


@way
def test_a_copy_is_the_encoder_as_it_was(tmp_path, fields):
    policy = sd(tmp_path, train="text", **fields).load(CPU)
    policy.keep({"reference": Copy()})
    with torch.no_grad():
        before = velocity(policy)
        moved(policy)
        with policy.using("reference"):
            torch.testing.assert_close(velocity(policy), before)


def test_it_starts_as_the_model_it_was_read_from(tmp_path):
    spec = sd(tmp_path)
    with torch.no_grad():
        expected = velocity(spec.load(CPU))
        for fields in WAYS.values():
            found = velocity(replace(spec, train="text", **fields).load(CPU))
            torch.testing.assert_close(found, expected)


@way
def test_it_is_written_in_the_released_format(tmp_path, fields):
    policy = sd(tmp_path / "old", train="text", **fields).load(CPU)
    moved(policy)
    policy.export(tmp_path / "new")
    again = SD(str(tmp_path / "new"), pixels=16).load(CPU)
    with torch.no_grad():
        torch.testing.assert_close(velocity(again), velocity(policy), atol=1e-4, rtol=1e-4)


def test_it_draws_and_scores_one_law(tmp_path):
    policy = sd(tmp_path, train="text", lora=Lora(4, 4)).load(CPU)
    plan = AllSteps(DDIM(), group=2, steps=4, guidance=5.0).at(1)
    rollout = policy.sample(prompts(), plan, noise(6))
    torch.testing.assert_close(policy.logp(rollout), rollout.logp, atol=1e-5, rtol=1e-5)
