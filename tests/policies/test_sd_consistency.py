"""Latent consistency models, against the pipeline of diffusers that ships them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from tiny_diffusers import lcm, noise, prompts, sd

from burnish.core import LatentPlan
from burnish.formulas.gaussian import rows
from burnish.plans.all_steps import AllSteps
from burnish.transitions.consistency import Consistency

CPU = torch.device("cpu")
KINDS = {
    "eps": {},
    "v": {"prediction_type": "v_prediction"},
    "sample": {"prediction_type": "sample"},
    "boundary": {"original_inference_steps": 1000, "timestep_scaling": 0.1},  # c_skip up to 0.9
}


def length(t):
    return float(torch.sqrt((1 - t).square() + t.square()))


def by_diffusers(spec, p, steps: int, guidance: float):
    from diffusers import LatentConsistencyModelPipeline

    pipeline = LatentConsistencyModelPipeline.from_pretrained(spec.weights)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        [q.text for q in p],
        height=16,
        width=16,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=noise(len(p)).normal((4, 8, 8), "start"),
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images


@pytest.mark.parametrize("guidance", [1.0, 8.0])
@pytest.mark.parametrize("scheduler", KINDS.values(), ids=KINDS)
def test_it_draws_what_diffusers_draws_with_the_same_noise(tmp_path, scheduler, guidance):
    spec, p = lcm(tmp_path, scheduler), prompts()
    policy, random = spec.load(CPU), torch.Generator().manual_seed(3)
    times = policy.times(4)
    with torch.no_grad():
        x = policy.network.start(noise(6).normal((4, 8, 8), "start"), 4)
        for t, s in pairwise(times):
            v = policy.velocity(x, t.float().expand(6), p, guidance)
            mean, std = Consistency().move(x, v, t.expand(6), s.expand(6))
            x = mean if s == 0 else mean + rows(std, mean) * torch.randn(6, 4, 8, 8, generator=random)
    theirs = by_diffusers(spec, p, 4, guidance)
    torch.testing.assert_close(x / theirs.std(), theirs / theirs.std(), atol=1e-4, rtol=0)


def test_one_step_of_the_policy_is_one_of_the_pipeline(tmp_path):
    spec, p = lcm(tmp_path), prompts()
    found = spec.load(CPU).sample(p, LatentPlan(2, 8.0, steps=1), noise(6)).final
    theirs = by_diffusers(spec, p, 1, 8.0)
    torch.testing.assert_close(found / theirs.std(), theirs / theirs.std(), atol=2e-5, rtol=0)


def test_the_network_is_told_its_guidance_and_evaluated_once(tmp_path):
    policy, p = lcm(tmp_path).load(CPU), prompts()
    calls = []
    policy.network.model.register_forward_hook(lambda module, args, result: calls.append(len(args[0])))
    x, t = noise(6).normal((4, 8, 8), "x"), torch.full((6,), 0.7)
    with torch.no_grad():
        one, eight = policy.velocity(x, t, p, 1.0), policy.velocity(x, t, p, 8.0)
    assert calls == [6, 6] and not torch.allclose(one, eight, atol=1e-3)


def test_times_are_those_it_was_distilled_on(tmp_path):
    policy = lcm(tmp_path).load(CPU)
    table = torch.sigmoid(policy.network.clock.table)
    torch.testing.assert_close(policy.times(4)[:-1], table[[999, 759, 499, 259]])
    with pytest.raises(ValueError, match=r"plan\.steps: 51 is more than the 50 steps this model was distilled from"):
        policy.times(51)


def test_rlcm_draws_and_scores_the_same_law(tmp_path):
    policy, p = lcm(tmp_path).load(CPU), prompts()
    plan = AllSteps(Consistency(), group=2, steps=8, guidance=8.0).at(1)
    rollout = policy.sample(p, plan, noise(6))
    torch.testing.assert_close(policy.logp(rollout), rollout.logp, atol=1e-5, rtol=1e-5)
    assert rollout.logp.shape == (6, 7) and rollout.evaluations.sum() == 6 * 8


def test_an_ordinary_model_is_guided_by_two_evaluations(tmp_path):
    policy, p = sd(tmp_path).load(CPU), prompts()
    calls = []
    policy.network.model.register_forward_hook(lambda module, args, result: calls.append(len(args[0])))
    with torch.no_grad():
        policy.velocity(noise(6).normal((4, 8, 8), "x"), torch.full((6,), 0.7), p, 8.0)
    assert calls == [12]
