"""Stable Diffusion 3 as diffusers' own pipeline draws it, and the settings that are its alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_diffusers import noise, prompts, sd3

from burnish.core import LatentPlan
from burnish.models.lora import Lora
from burnish.policies.sd3 import ADAPTED, SD3
from burnish.transitions.flow_sde import FlowSDE

CPU = torch.device("cpu")
DYNAMIC = {"shift": 1.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def drawn_by_diffusers(folder: str, p, steps: int, guidance: float, length: int = 7):
    """Latents and pictures of the pipeline, from the noise that ours starts with."""
    from diffusers import StableDiffusion3Pipeline

    absent = {n: None for n in ("text_encoder_3", "tokenizer_3") if not (Path(folder) / n).exists()}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **absent)  # does not take the index's word for it
    pipeline.set_progress_bar_config(disable=True)
    asked = {
        "prompt": [q.text for q in p],
        "height": 16,
        "width": 16,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "latents": noise(len(p)).normal((4, 8, 8), "start"),
        "max_sequence_length": length,
    }
    return pipeline(**asked, output_type="latent").images, pipeline(**asked, output_type="pt").images


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [({}, {}), ({"shift": 1.0}, {"t5": False, "dual": False}), (DYNAMIC, {})],
    ids=["3.5", "3", "mu"],
)
def test_without_noise_it_draws_what_the_pipeline_draws(tmp_path, scheduler, kind, guidance):
    spec, p = sd3(tmp_path, scheduler, **kind), prompts()
    rollout = spec.load(CPU).sample(p, LatentPlan(2, guidance, steps=6), noise(len(p)))
    latents, pictures = drawn_by_diffusers(spec.weights, p, 6, guidance)
    torch.testing.assert_close(rollout.final, latents, atol=2e-5, rtol=0)
    torch.testing.assert_close(rollout.media, pictures, atol=1e-5, rtol=0)


def test_times_are_the_schedulers(tmp_path):
    """Shifted by 3: t' = 3 t / (1 + 2 t), of evenly spaced t from 1 to the smallest, which is itself shifted."""
    policy = sd3(tmp_path).load(CPU)
    times = policy.times(10)
    even = torch.linspace(1, 3 * 0.001 / 1.002, 10, dtype=torch.float64)
    torch.testing.assert_close(times, torch.cat([3 * even / (1 + 2 * even), torch.zeros(1)]), atol=1e-6, rtol=0)
    assert times.dtype == torch.float64 and times[0] == 1 and times[-1] == 0


def test_a_shift_of_ones_own_is_drawn_with_and_exported(tmp_path):
    spec, p, plan = sd3(tmp_path / "as"), prompts(), LatentPlan(2, 3.0, steps=4)
    shifted = replace(spec, shift=1.0).load(CPU)
    assert shifted.times(4)[2] == pytest.approx(0.334, abs=1e-3)
    drawn = shifted.sample(p, plan, noise(len(p)))
    shifted.export(tmp_path / "out")
    again = replace(spec, weights=str(tmp_path / "out")).load(CPU)
    torch.testing.assert_close(again.sample(p, plan, noise(len(p))).final, drawn.final, atol=1e-6, rtol=0)
    torch.testing.assert_close(drawn_by_diffusers(str(tmp_path / "out"), p, 4, 3.0)[0], drawn.final, atol=2e-5, rtol=0)


def test_without_t5_its_slots_are_zero(tmp_path):
    spec, p = sd3(tmp_path), prompts()
    policy = replace(spec, t5=False).load(CPU)
    features, pooled = policy.network.conditions(p[::2])
    assert features.shape == (3, 32 + 7, 40) and pooled.shape == (3, 20)
    assert features[:, 32:].abs().max() == 0 and features[:, :32].abs().max() > 0
    policy.export(tmp_path / "out")
    assert (
        tmp_path / "out" / "text_encoder_3" / "model.safetensors"
    ).is_file()  # left out of the run, not of the model


def test_adapters_are_on_the_layers_of_flow_grpo(tmp_path):
    policy = sd3(tmp_path, lora=Lora(4, 8)).load(CPU)
    layers = {name.split(".lora_")[0].partition(".")[2].partition(".")[2] for name, _ in policy.parameters()}
    assert layers == set(ADAPTED)  # attn2, the second attention of 3.5 medium, has none
    first = [weight.detach() for name, weight in policy.parameters() if "lora_A" in name]
    assert torch.cat([w.flatten() for w in first]).std() == pytest.approx(1 / 4, rel=0.1)


def test_one_sde_step_is_flow_grpos(tmp_path):
    """Mean and deviation written out as in flow_grpo/diffusers_patch/sd3_sde_with_logprob.py."""
    policy, p = sd3(tmp_path).load(CPU), prompts()
    plan = LatentPlan(2, 4.5, steps=4, stochastic=(1,), transition=FlowSDE(0.7))
    steps = policy.sample(p, plan, noise(len(p))).decisions[0]
    t, s = steps.time[0, 0]
    x = steps.before[:, 0]
    with torch.no_grad():
        v = policy.velocity(x, t.float().expand(6), p, 4.5)
    dt, std = s - t, (t / (1 - t)).sqrt() * 0.7
    mean = x * (1 + std**2 / (2 * t) * dt) + v * (1 + std**2 * (1 - t) / (2 * t)) * dt
    torch.testing.assert_close(steps.mean[:, 0], mean.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(steps.std[:, 0], (std * (-dt).sqrt()).float().expand(6), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"text_length": 0}, "text_length must be from 1 to 512 tokens, got 0"),
        ({"text_length": 600}, "text_length must be from 1 to 512 tokens, got 600"),
        ({"shift": 0.0}, r"shift must be above 0 \(1 is none\), got 0.0"),
    ],
)
def test_wrong_settings(wrong, said):
    with pytest.raises(ValueError, match=said):
        SD3("somewhere", **wrong)


def test_a_picture_larger_than_the_model_has_places_for(tmp_path):
    with pytest.raises(ValueError, match=r"policy\.sd3\.pixels: 36 is above the 32 that this model has places for"):
        sd3(tmp_path, pixels=36).load(CPU)


def test_a_scheduler_that_is_no_flow(tmp_path):
    spec = sd3(tmp_path)
    file = tmp_path / "model_index.json"
    file.write_text(file.read_text().replace("FlowMatchEulerDiscreteScheduler", "DDIMScheduler"))
    with pytest.raises(ValueError, match=r"scheduler: a DDIMScheduler; only FlowMatchEulerDiscreteScheduler"):
        spec.load(CPU)


def test_of_the_text_encoders_only_t5_can_be_left_out(tmp_path):
    spec = sd3(tmp_path)
    file = tmp_path / "model_index.json"
    file.write_text(
        file.read_text().replace("CLIPTextModelWithProjection", "").replace('"transformers",\n    ""', "null, null")
    )
    with pytest.raises(ValueError, match="names no text_encoder; only the third text encoder, T5, can be left out"):
        spec.load(CPU)
