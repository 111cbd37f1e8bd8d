"""Sana as diffusers' own pipeline draws it, by both of its schedulers, and the settings that are its alone."""

from dataclasses import replace

import pytest
import torch
from tiny_diffusers import noise, prompts, sana

from burnish.core import LatentPlan
from burnish.models.lora import Lora
from burnish.policies.sana import Sana
from burnish.transitions.flow_sde import FlowSDE

CPU = torch.device("cpu")


def euler(**settings):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **settings})


def drawn_by_diffusers(folder: str, p, steps: int, guidance: float, **asked):
    """Latents and pictures of the pipeline, from the noise that ours starts with."""
    from diffusers import SanaPipeline

    pipeline = SanaPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    asked = {
        "prompt": [q.text for q in p],
        "height": 32,
        "width": 32,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "latents": noise(len(p)).normal((4, 8, 8), "start"),
        "max_sequence_length": 32,
        "use_resolution_binning": False,
        **asked,
    }
    return pipeline(**asked, output_type="latent").images, pipeline(**asked, output_type="pt").images


def same(ours, theirs) -> None:
    size = theirs.abs().max().item()
    torch.testing.assert_close(ours / size, theirs / size, atol=3e-5, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("solver", ["dpm2", "euler"])
def test_without_noise_it_draws_what_the_pipeline_draws(tmp_path, solver, guidance):
    """With DPM-Solver, of second order and whole timesteps, as released; and with Euler steps."""
    spec, p = sana(tmp_path, None if solver == "dpm2" else euler()), prompts()
    rollout = spec.load(CPU).sample(p, LatentPlan(2, guidance, steps=5, solver=solver), noise(len(p)))
    latents, pictures = drawn_by_diffusers(spec.weights, p, 5, guidance)
    same(rollout.final, latents)
    torch.testing.assert_close(rollout.media, pictures, atol=1e-4, rtol=0)


def test_the_instruction_can_be_left_out(tmp_path):
    spec, p, plan = sana(tmp_path), prompts(), LatentPlan(2, 3.0, steps=3, solver="dpm2")
    policy = replace(spec, instruction=False).load(CPU)
    same(
        policy.sample(p, plan, noise(len(p))).final,
        drawn_by_diffusers(spec.weights, p, 3, 3.0, complex_human_instruction=None)[0],
    )
    given, without = spec.load(CPU).network.conditions(p[::2]), policy.network.conditions(p[::2])
    assert given[0].shape == without[0].shape == (3, 32, 16)
    assert torch.equal(without[1].sum(1), torch.tensor([13, 30, 5]))  # one to begin with, and one a letter
    assert (given[0] - without[0]).abs().max() > 1e-2


def test_a_variance_that_is_predicted_too_is_left_aside(tmp_path):
    spec, p = sana(tmp_path, out_channels=8), prompts()
    rollout = spec.load(CPU).sample(p, LatentPlan(2, 3.0, steps=3, solver="dpm2"), noise(len(p)))
    same(rollout.final, drawn_by_diffusers(spec.weights, p, 3, 3.0)[0])


def test_times_are_the_schedulers(tmp_path):
    """DPM-Solver: of s = 0.999 k / n, shifted by 3: 3 s / (1 + 2 s). It tells the network whole timesteps."""
    policy = sana(tmp_path / "dpm").load(CPU)
    even = torch.linspace(0.999, 0, 11, dtype=torch.float64)
    torch.testing.assert_close(policy.times(10), 3 * even / (1 + 2 * even), atol=1e-6, rtol=0)
    t = torch.tensor([0.9996, 0.7507])
    assert policy.network.clock.timestep(t).tolist() == [999, 750]
    for steps in (5, 14, 20, 50):
        told = policy.network.clock.timestep(policy.times(steps)[:-1].float())
        assert torch.equal(told.long(), policy.network.clock.scheduler.timesteps)
    assert sana(tmp_path / "euler", euler()).load(CPU).network.clock.timestep(t).tolist() == pytest.approx(
        [999.6, 750.7]
    )


@pytest.mark.parametrize("scheduler", [None, euler()], ids=["dpm", "euler"])
def test_noise_leaves_states_as_wide_as_they_were(tmp_path, scheduler):
    """DPM-Solver begins at 0.99967. At that time Flow-GRPO's noise would be 38, and what it draws 13 times as wide."""
    policy = sana(tmp_path, scheduler).load(CPU)
    plan = LatentPlan(2, 1.0, steps=20, stochastic=(0, 1, 2), transition=FlowSDE(0.7))
    steps = policy.sample(prompts(), plan, noise(6)).decisions[0]
    one = torch.ones(1, 1)
    _, expected = FlowSDE(0.7).move(one, one, one[0], policy.times(20)[1:2])
    torch.testing.assert_close(steps.std[:, 0], expected.expand(6), atol=0, rtol=0.01)
    torch.testing.assert_close(steps.after.flatten(2).std(2).mean(0), torch.ones(3), atol=0.15, rtol=0)


@pytest.mark.parametrize(("scheduler", "third"), [(None, 0.4995), (euler(), 0.3347)], ids=["dpm", "euler"])
def test_a_shift_of_ones_own_is_drawn_with_and_exported(tmp_path, scheduler, third):
    """t' = 2 t / (1 + t)."""
    spec, p = sana(tmp_path / "as", scheduler), prompts()
    shifted = replace(spec, shift=2.0).load(CPU)
    assert shifted.times(4)[2] == pytest.approx(2 * third / (1 + third), abs=1e-3)
    plan = LatentPlan(2, 3.0, steps=3, solver="euler" if scheduler else "dpm2")
    drawn = shifted.sample(p, plan, noise(len(p))).final
    shifted.export(tmp_path / "out")
    same(drawn, drawn_by_diffusers(str(tmp_path / "out"), p, 3, 3.0)[0])


def test_adapters_are_on_every_attention(tmp_path):
    policy = sana(tmp_path, lora=Lora(4, 4)).load(CPU)
    adapted = {name.split(".lora_")[0] for name, _ in policy.parameters()}
    attentions = {name for name, _ in policy.network.model.named_modules() if name.endswith(("attn1", "attn2"))}
    assert adapted == {f"{name}.{layer}" for name in attentions for layer in ("to_q", "to_k", "to_v")} and adapted


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"text_length": 301}, "text_length must be from 1 to 300 tokens, got 301"),
        ({"shift": 0.0}, r"shift must be above 0 \(1 is none\), got 0.0"),
        ({"decode_rows": 0}, "decode_rows must be at least 1, got 0"),
    ],
)
def test_wrong_settings(wrong, said):
    with pytest.raises(ValueError, match=said):
        Sana("somewhere", **wrong)


def test_schedulers_that_do_not_fit(tmp_path):
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    for scheduler, said in (
        (DDIMScheduler(), "a DDIMScheduler; only FlowMatchEulerDiscreteScheduler and DPMSolverMultistepScheduler tell"),
        (DPMSolverMultistepScheduler(), "a DPMSolverMultistepScheduler of something else than a flow"),
        (euler(use_dynamic_shifting=True), "its shift grows with the picture, but this pipeline tells no size"),
    ):
        with pytest.raises(ValueError, match=said):
            sana(tmp_path, scheduler).load(CPU)
    assert sana(tmp_path, euler(use_dynamic_shifting=True), shift=3.0).load(CPU).times(2)[0] == 1
