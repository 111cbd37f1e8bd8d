"""FLUX.1 as diffusers' own pipeline draws it, and the settings that are its alone."""

from dataclasses import replace

import pytest
import torch
from tiny_diffusers import TEXTS, flux, noise, prompts

from burnish.core import Copy, LatentPlan
from burnish.models.lora import Lora
from burnish.models.packing import packed, unpacked
from burnish.policies.flux import ADAPTED, Flux
from burnish.transitions.flow_sde import FlowSDE

CPU = torch.device("cpu")
SCHNELL = {"shift": 1.0, "use_dynamic_shifting": False}
SDE = LatentPlan(2, 3.0, steps=4, stochastic=(0, 1, 2), transition=FlowSDE())


def drawn_by_diffusers(folder: str, p, steps: int, guidance: float, distilled: float = 3.5):
    """Latents and pictures of the pipeline, from the noise that ours starts with."""
    from diffusers import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    start = noise(len(p)).normal((4, 8, 8), "start")
    asked = {
        "prompt": [q.text for q in p],
        "negative_prompt": [""] * len(p),
        "true_cfg_scale": guidance,
        "guidance_scale": distilled,
        "height": 16,
        "width": 16,
        "num_inference_steps": steps,
        "latents": FluxPipeline._pack_latents(start, len(p), 4, 8, 8),
        "max_sequence_length": 7,
    }
    tokens = pipeline(**asked, output_type="latent").images
    return FluxPipeline._unpack_latents(tokens, 16, 16, 2), pipeline(**asked, output_type="pt").images


def nudged(policy) -> None:
    with torch.no_grad():
        for _, weight in policy.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize(("scheduler", "told"), [({}, True), (SCHNELL, False)], ids=["dev", "schnell"])
def test_without_noise_it_draws_what_the_pipeline_draws(tmp_path, scheduler, told, guidance):
    spec, p = flux(tmp_path, scheduler, told), prompts()
    rollout = spec.load(CPU).sample(p, LatentPlan(2, guidance, steps=6), noise(len(p)))
    latents, pictures = drawn_by_diffusers(spec.weights, p, 6, guidance)
    torch.testing.assert_close(rollout.final, latents, atol=2e-5, rtol=0)
    torch.testing.assert_close(rollout.media, pictures, atol=1e-5, rtol=0)


def test_dev_is_told_a_guidance(tmp_path):
    spec, p, plan = flux(tmp_path), prompts(), LatentPlan(2, steps=3)
    drawn = {w: replace(spec, distilled_guidance=w).load(CPU).sample(p, plan, noise(6)).final for w in (3.5, 1.0)}
    assert (drawn[3.5] - drawn[1.0]).abs().max() > 1e-3
    torch.testing.assert_close(drawn[1.0], drawn_by_diffusers(spec.weights, p, 3, 1.0, 1.0)[0], atol=2e-5, rtol=0)


def test_tokens_are_those_of_the_pipeline(tmp_path):
    from diffusers import FluxPipeline

    x = noise(3).normal((4, 8, 6))
    assert torch.equal(packed(x), FluxPipeline._pack_latents(x, 3, 4, 8, 6))
    assert torch.equal(unpacked(packed(x), 8), x)


def test_times_move_with_the_size(tmp_path):
    """16 tokens: mu = 0.5 + (16 - 256) (1.15 - 0.5) / (4096 - 256), and t' = e^mu / (e^mu + 1 / t - 1)."""
    policy = flux(tmp_path).load(CPU)
    mu = torch.tensor(0.5 - 240 * 0.65 / 3840, dtype=torch.float64)
    even = torch.linspace(1, 0.1, 10, dtype=torch.float64)
    expected = torch.cat([mu.exp() / (mu.exp() + 1 / even - 1), torch.zeros(1)])
    torch.testing.assert_close(policy.times(10), expected, atol=1e-6, rtol=0)
    assert policy.times(10).dtype == torch.float64


def test_a_shift_of_ones_own_is_that_of_dancegrpo_and_is_exported(tmp_path):
    """t' = 3 t / (1 + 2 t) of evenly spaced t."""
    spec, p, plan = flux(tmp_path / "as"), prompts(), LatentPlan(2, 3.0, steps=4)
    shifted = replace(spec, shift=3.0).load(CPU)
    even = torch.linspace(1, 0, 5, dtype=torch.float64)
    torch.testing.assert_close(shifted.times(4), 3 * even / (1 + 2 * even), atol=1e-6, rtol=0)
    drawn = shifted.sample(p, plan, noise(len(p)))
    shifted.export(tmp_path / "out")
    torch.testing.assert_close(drawn_by_diffusers(str(tmp_path / "out"), p, 4, 3.0)[0], drawn.final, atol=2e-5, rtol=0)


def test_the_law_drawn_is_the_law_scored(tmp_path):
    policy, p = flux(tmp_path).load(CPU), prompts()
    rollout = policy.sample(p, SDE, noise(len(p)))
    assert rollout.logp.shape == (6, 3) and rollout.logp.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(policy.logp(rollout), rollout.logp, atol=1e-5, rtol=0)


def test_texts_are_encoded_once(tmp_path):
    policy, p = flux(tmp_path).load(CPU), prompts(each=4)
    for step in range(2):
        policy.logp(policy.sample(p, SDE, noise(len(p), step)))
    assert policy.network.texts.encoded == len(TEXTS) + 1  # and the empty one


def test_adapters(tmp_path):
    """On the attention of both kinds of block; switched off, they are the base bit by bit."""
    spec, p = flux(tmp_path), prompts()
    base, policy = spec.load(CPU), replace(spec, lora=Lora(4, 8)).load(CPU)
    layers = [name.split(".lora_")[0] for name, _ in policy.parameters()]
    assert {name.split(".", 2)[2] for name in layers if name.startswith("transformer_blocks")} == set(ADAPTED)
    single = {name.split(".", 2)[2] for name in layers if name.startswith("single_transformer_blocks")}
    assert single == {"attn.to_q", "attn.to_k", "attn.to_v"}
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
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for _, weight in policy.parameters())


@pytest.mark.parametrize("lora", [None, Lora(4, 8)], ids=["all", "lora"])
def test_an_exported_model_is_the_model(tmp_path, lora):
    spec, p, plan = flux(tmp_path / "as", lora=lora), prompts(), LatentPlan(2, 3.0, steps=3)
    policy = spec.load(CPU)
    nudged(policy)
    before = policy.sample(p, plan, noise(len(p)))
    policy.export(tmp_path / "out")
    again = replace(spec, weights=str(tmp_path / "out"), lora=None).load(CPU).sample(p, plan, noise(len(p)))
    torch.testing.assert_close(again.final, before.final, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again.media, before.media, atol=1e-4, rtol=0)


def test_recomputation_changes_nothing(tmp_path):
    spec, p = flux(tmp_path), prompts(each=1)
    plain, again = spec.load(CPU), replace(spec, recompute=True).load(CPU)
    rollout = plain.sample(p, replace(SDE, group=1), noise(len(p)))
    gradients = []
    for policy in (plain, again):
        weights = [weight for _, weight in policy.parameters()]
        gradients.append(torch.autograd.grad(policy.logp(rollout).sum(), weights, allow_unused=True))
    for a, b in zip(*gradients, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"text_length": 600}, "text_length must be from 1 to 512 tokens, got 600"),
        ({"shift": 0.0}, r"shift must be above 0 \(1 is none\), got 0.0"),
        ({"decode_rows": 0}, "decode_rows must be at least 1, got 0"),
    ],
)
def test_wrong_settings(wrong, said):
    with pytest.raises(ValueError, match=said):
        Flux("somewhere", **wrong)


def test_folders_and_sizes_that_do_not_fit(tmp_path):
    spec = flux(tmp_path)
    with pytest.raises(ValueError, match=r"policy\.flux\.pixels: 18 is not a multiple of this model's 4"):
        replace(spec, pixels=18).load(CPU)
    file = tmp_path / "model_index.json"
    index = file.read_text()
    file.write_text(index.replace("FlowMatchEulerDiscreteScheduler", "DDIMScheduler"))
    with pytest.raises(ValueError, match="scheduler: a DDIMScheduler; only FlowMatchEulerDiscreteScheduler"):
        spec.load(CPU)
    file.write_text(index.replace('"FluxPipeline"', '"FluxFillPipeline"'))
    with pytest.raises(ValueError, match="holds a FluxFillPipeline, not a FluxPipeline"):
        spec.load(CPU)
