"""Qwen-Image as diffusers' own pipeline draws it, texts of several lengths, and the settings that are its alone."""

from dataclasses import replace

import pytest
import torch
from tiny_diffusers import noise, prompts, qwen_image

from burnish.core import LatentPlan
from burnish.models.lora import Lora
from burnish.models.packing import packed
from burnish.policies.qwen_image import ADAPTED, QwenImage

CPU = torch.device("cpu")
STATIC = {"shift": 3.0, "use_dynamic_shifting": False, "shift_terminal": None}


def drawn_by_diffusers(folder: str, p, steps: int, guidance: float):
    """Latents and pictures of the pipeline, from the noise that ours starts with."""
    from diffusers import QwenImagePipeline

    pipeline = QwenImagePipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    start = noise(len(p)).normal((4, 8, 8), "start")
    asked = {
        "prompt": [q.text for q in p],
        "negative_prompt": [" "] * len(p),
        "true_cfg_scale": guidance,
        "height": 16,
        "width": 16,
        "num_inference_steps": steps,
        "latents": pipeline._pack_latents(start, len(p), 4, 8, 8),
        "max_sequence_length": 24,
    }
    tokens = pipeline(**asked, output_type="latent").images
    return pipeline._unpack_latents(tokens, 16, 16, 2)[:, :, 0], pipeline(**asked, output_type="pt").images


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("scheduler", [{}, STATIC], ids=["by size", "static"])
def test_without_noise_it_draws_what_the_pipeline_draws(tmp_path, scheduler, guidance):
    spec, p = qwen_image(tmp_path, scheduler), prompts()
    rollout = spec.load(CPU).sample(p, LatentPlan(2, guidance, steps=5), noise(len(p)))
    latents, pictures = drawn_by_diffusers(spec.weights, p, 5, guidance)
    torch.testing.assert_close(rollout.final, latents, atol=2e-5, rtol=0)
    torch.testing.assert_close(rollout.media, pictures, atol=2e-5, rtol=0)


def test_texts_end_where_their_mask_ends(tmp_path):
    """3, 6 and 1 words and the 5 tokens that end a turn; the template's first 34 tokens are left out."""
    spec, p = qwen_image(tmp_path), prompts(each=1)
    policy = spec.load(CPU)
    features, mask = policy.network.conditions(p)
    assert features.shape == (3, 24, 16) and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [8, 11, 6] and all(row[:n].all() for row, n in zip(mask, (8, 11, 6), strict=True))
    assert features[~mask].abs().max() == 0 and features[mask].abs().sum(1).min() > 0
    x, t = noise(3).normal((4, 8, 8)), torch.tensor([0.9, 0.5, 0.1])
    longer = replace(spec, text_length=40).load(CPU)
    shorter = replace(spec, text_length=7).load(CPU)
    assert shorter.network.conditions(p)[1].sum(1).tolist() == [7, 7, 6]
    with torch.no_grad():
        v = policy.velocity(x, t, p, 4.0)
        torch.testing.assert_close(longer.velocity(x, t, p, 4.0), v, atol=1e-5, rtol=0)  # filling is not read
        torch.testing.assert_close(policy.velocity(x[1:2], t[1:2], p[1:2], 4.0), v[1:2], atol=1e-5, rtol=0)
        assert (shorter.velocity(x, t, p, 4.0) - v).abs().max() > 1e-3


def test_a_guided_velocity_is_as_long_as_the_conditional_one(tmp_path):
    spec, p = qwen_image(tmp_path), prompts(each=1)
    x, t = noise(3).normal((4, 8, 8)), torch.tensor([0.9, 0.5, 0.1])
    policy, plain = spec.load(CPU), replace(spec, rescale=False).load(CPU)
    with torch.no_grad():
        conditional, kept, led = policy.velocity(x, t, p), policy.velocity(x, t, p, 4.0), plain.velocity(x, t, p, 4.0)
    lengths = [packed(v).norm(dim=-1) for v in (conditional, kept, led)]
    torch.testing.assert_close(lengths[0], lengths[1], atol=1e-5, rtol=1e-5)
    assert (lengths[0] - lengths[2]).abs().max() > 1e-2
    torch.testing.assert_close(torch.cosine_similarity(packed(kept), packed(led), dim=-1), torch.ones(3, 16))


def test_times_move_with_the_size_and_end_at_the_terminal(tmp_path):
    """16 tokens: mu = 0.5 + (16 - 256) (0.9 - 0.5) / (8192 - 256); then 1 - t is stretched until the last t is 0.02."""
    policy = qwen_image(tmp_path).load(CPU)
    mu = torch.tensor(0.5 - 240 * 0.4 / 7936, dtype=torch.float64)
    even = torch.linspace(1, 0.1, 10, dtype=torch.float64)
    moved = mu.exp() / (mu.exp() + 1 / even - 1)
    stretched = 1 - (1 - moved) * 0.98 / (1 - moved[-1])
    torch.testing.assert_close(policy.times(10), torch.cat([stretched, torch.zeros(1)]), atol=1e-6, rtol=0)
    assert policy.times(10)[-2] == pytest.approx(0.02)


def test_a_shift_of_ones_own_is_exported(tmp_path):
    spec, p, plan = qwen_image(tmp_path / "as", STATIC), prompts(), LatentPlan(2, 3.0, steps=3)
    shifted = replace(spec, shift=1.0).load(CPU)
    torch.testing.assert_close(shifted.times(4), torch.linspace(1, 0, 5, dtype=torch.float64), atol=1e-6, rtol=0)
    drawn = shifted.sample(p, plan, noise(len(p)))
    shifted.export(tmp_path / "out")
    torch.testing.assert_close(drawn_by_diffusers(str(tmp_path / "out"), p, 3, 3.0)[0], drawn.final, atol=2e-5, rtol=0)


def test_adapters_are_on_the_layers_of_flow_grpo(tmp_path):
    policy = qwen_image(tmp_path, lora=Lora(4, 8)).load(CPU)
    assert {name.split(".lora_")[0].split(".", 2)[2] for name, _ in policy.parameters()} == set(ADAPTED)
    assert len(ADAPTED) == 12


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"text_length": 0}, "text_length must be from 1 to 1024 tokens, got 0"),
        ({"text_length": 1025}, "text_length must be from 1 to 1024 tokens, got 1025"),
        ({"shift": -1.0}, r"shift must be above 0 \(1 is none\), got -1.0"),
        ({"decode_rows": 0}, "decode_rows must be at least 1, got 0"),
    ],
)
def test_wrong_settings(wrong, said):
    with pytest.raises(ValueError, match=said):
        QwenImage("somewhere", **wrong)


def test_folders_that_do_not_fit(tmp_path):
    spec, file = qwen_image(tmp_path), tmp_path / "model_index.json"
    index = file.read_text()
    for old, new, said in (
        ("FlowMatchEulerDiscreteScheduler", "DDIMScheduler", "a DDIMScheduler; only FlowMatchEulerDiscreteScheduler"),
        ('"QwenImagePipeline"', '"QwenImageEditPipeline"', "holds a QwenImageEditPipeline, not a QwenImagePipeline"),
    ):
        file.write_text(index.replace(old, new))
        with pytest.raises(ValueError, match=said):
            spec.load(CPU)
