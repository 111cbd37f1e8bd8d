"""Stable Diffusion XL as diffusers draws it, by its own scheduler and by DDIM, and the sizes it is told."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_diffusers import TEXTS, noise, prompts, sdxl

from burnish.core import Copy, LatentPlan
from burnish.models.lora import Lora
from burnish.policies.sdxl import SDXL
from burnish.transitions.ddim import DDIM
from burnish.transitions.flow_sde import FlowSDE

CPU = torch.device("cpu")
SDE = LatentPlan(2, 3.0, steps=4, stochastic=(0, 1, 2), transition=FlowSDE())


def drawn_by_diffusers(folder: str, p, steps: int, guidance: float, ddim: bool = False, **sizes):
    """Latents and pictures of the pipeline, from the noise that ours starts with."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    if ddim:
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    asked = {
        "prompt": [q.text for q in p],
        "height": 16,
        "width": 16,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "latents": noise(len(p)).normal((4, 8, 8), "start"),
        **sizes,
    }
    return pipeline(**asked, output_type="latent").images, pipeline(**asked, output_type="pt").images


def nudged(policy) -> None:
    with torch.no_grad():
        for _, weight in policy.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))


def same(ours, theirs) -> None:
    size = theirs.abs().max().item()
    torch.testing.assert_close(ours / size, theirs / size, atol=2e-5, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("zeros", [True, False], ids=["zeros", "empty"])
@pytest.mark.parametrize("ddim", [True, False], ids=["ddim", "euler"])
def test_without_noise_it_draws_what_the_pipeline_draws(tmp_path, ddim, zeros, guidance):
    """With DDIM, and with the scheduler that is released: Euler steps in sigma are the same line."""
    spec, p = sdxl(tmp_path, zeros=zeros), prompts()
    rollout = spec.load(CPU).sample(p, LatentPlan(2, guidance, steps=5), noise(len(p)))
    latents, pictures = drawn_by_diffusers(spec.weights, p, 5, guidance, ddim)
    same(rollout.final, latents)
    torch.testing.assert_close(rollout.media, pictures, atol=1e-4, rtol=0)


def test_euler_ends_without_noise_whatever_the_setting_of_others_says(tmp_path):
    """Released with set_alpha_to_one false, which EulerDiscreteScheduler does not read."""
    spec, p = sdxl(tmp_path), prompts()
    config = tmp_path / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "set_alpha_to_one": False}))
    latents, _ = drawn_by_diffusers(spec.weights, p, 5, 5.0)
    same(spec.load(CPU).sample(p, LatentPlan(2, 5.0, steps=5), noise(len(p))).final, latents)


def test_it_is_told_sizes(tmp_path):
    spec, p, plan = sdxl(tmp_path), prompts(), LatentPlan(2, 3.0, steps=4)
    plain = spec.load(CPU).sample(p, plan, noise(len(p))).final
    told = replace(spec, original=40, crop=(3, 5)).load(CPU).sample(p, plan, noise(len(p))).final
    sizes = {"original_size": (40, 40), "crops_coords_top_left": (3, 5), "target_size": (16, 16)}
    same(told, drawn_by_diffusers(spec.weights, p, 4, 3.0, True, **sizes)[0])
    assert (told - plain).abs().max() > 1e-3 * plain.abs().max()


@pytest.mark.parametrize("transition", [FlowSDE(), DDIM(1.0)], ids=["flow_sde", "ddim"])
def test_the_law_drawn_is_the_law_scored(tmp_path, transition):
    policy, p = sdxl(tmp_path).load(CPU), prompts()
    rollout = policy.sample(p, replace(SDE, transition=transition), noise(len(p)))
    assert rollout.logp.shape == (6, 3) and rollout.logp.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(policy.logp(rollout), rollout.logp, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("zeros", "more"), [(True, 0), (False, 1)])
def test_texts_are_encoded_once(tmp_path, zeros, more):
    policy, p = sdxl(tmp_path, zeros=zeros).load(CPU), prompts(each=4)
    for step in range(2):
        policy.logp(policy.sample(p, SDE, noise(len(p), step)))
    assert policy.network.texts.encoded == len(TEXTS) + more  # the empty one, if it is read


def test_adapters(tmp_path):
    """On every attention; switched off, they are the base bit by bit."""
    spec, p = sdxl(tmp_path), prompts()
    base, policy = spec.load(CPU), replace(spec, lora=Lora(4, 4)).load(CPU)
    adapted = {name.split(".lora_")[0] for name, _ in policy.parameters()}
    attentions = [name for name, _ in policy.network.model.named_modules() if name.endswith(("attn1", "attn2"))]
    assert len(adapted) == 4 * len(attentions) > 0
    rollout = base.sample(p, SDE, noise(len(p)))
    with torch.no_grad():
        expected = base.logp(rollout)
        assert torch.equal(policy.logp(rollout), expected)
        policy.keep({"reference": Copy()})
        nudged(policy)
        assert (policy.logp(rollout) - expected).abs().max() > 1e-4
        with policy.using("reference"):
            assert torch.equal(policy.logp(rollout), expected)
    policy.logp(rollout).sum().backward()
    assert all(weight.grad is not None for _, weight in policy.parameters())


@pytest.mark.parametrize("lora", [None, Lora(4, 8)], ids=["all", "lora"])
def test_an_exported_model_is_the_model(tmp_path, lora):
    spec, p, plan = sdxl(tmp_path / "as", lora=lora), prompts(), LatentPlan(2, 3.0, steps=3)
    policy = spec.load(CPU)
    nudged(policy)
    before = policy.sample(p, plan, noise(len(p)))
    policy.export(tmp_path / "out")
    again = replace(spec, weights=str(tmp_path / "out"), lora=None).load(CPU).sample(p, plan, noise(len(p)))
    same(again.final, before.final)
    torch.testing.assert_close(again.media, before.media, atol=1e-4, rtol=0)


def test_wrong_settings():
    with pytest.raises(ValueError, match="decode_rows must be at least 1, got 0"):
        SDXL("somewhere", decode_rows=0)
    for wrong in ({"original": 0}, {"crop": (0, -1)}):
        with pytest.raises(ValueError, match="original must be above 0 and crop at least 0"):
            SDXL("somewhere", **wrong)


def test_folders_and_sizes_that_do_not_fit(tmp_path):
    spec = sdxl(tmp_path)
    with pytest.raises(ValueError, match=r"policy\.sdxl\.pixels: 18 is not a multiple of this model's 4"):
        replace(spec, pixels=18).load(CPU)
    for name, value, said in (
        ("addition_embed_type", None, "not told sizes alone, as SDXL is"),
        ("addition_time_embed_dim", 4, "not told 6 sizes and a text of 10; a refiner draws nothing alone"),
    ):
        file = tmp_path / "unet" / "config.json"
        known = file.read_text()
        file.write_text(json.dumps({**json.loads(known), name: value}))
        with pytest.raises(ValueError, match=said):
            spec.load(CPU)
        file.write_text(known)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionXLPipeline"', '"StableDiffusionPipeline"'))
    with pytest.raises(ValueError, match="holds a StableDiffusionPipeline, not a StableDiffusionXLPipeline"):
        spec.load(CPU)
