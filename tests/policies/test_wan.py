"""Wan as diffusers' own pipeline draws it, and the settings that are its alone."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_diffusers import TEXTS, noise, prompts, wan

from burnish.core import Copy, LatentPlan
from burnish.models.lora import Lora
from burnish.policies.wan import ADAPTED, Wan
from burnish.transitions.flow_sde import FlowSDE

CPU = torch.device("cpu")
SDE = LatentPlan(2, 3.0, steps=4, stochastic=(0, 1, 2), transition=FlowSDE(0.9, "linear"))
SHAPE = (4, 2, 4, 8)  # of a latent


def unipc(**settings):
    from diffusers import UniPCMultistepScheduler

    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return UniPCMultistepScheduler(**{**flow, **settings})


def drawn_by_diffusers(folder: str, p, steps: int, guidance: float, shape=SHAPE, negative: str = ""):
    """Latents and videos of the pipeline, from the noise that ours starts with."""
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    asked = {
        "prompt": [q.text for q in p],
        "negative_prompt": [negative] * len(p),
        "height": 16,
        "width": 32,
        "num_frames": 5,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "latents": noise(len(p)).normal(shape, "start"),
        "max_sequence_length": 7,
    }
    return pipeline(**asked, output_type="latent").frames, pipeline(**asked, output_type="pt").frames


def nudged(policy) -> None:
    with torch.no_grad():
        for _, weight in policy.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("small", [False, True], ids=["2.1", "2.2 5B"])
def test_without_noise_it_draws_what_the_pipeline_draws(tmp_path, small, guidance):
    spec, p = wan(tmp_path, small=small), prompts()
    rollout = spec.load(CPU).sample(p, LatentPlan(2, guidance, steps=6), noise(len(p)))
    latents, videos = drawn_by_diffusers(spec.weights, p, 6, guidance, (4, 2, 2, 4) if small else SHAPE)
    torch.testing.assert_close(rollout.final, latents, atol=2e-5, rtol=0)
    torch.testing.assert_close(rollout.media, videos, atol=1e-5, rtol=0)
    assert rollout.media.shape == (6, 5, 3, 16, 32)
    assert rollout.media.diff(dim=1).abs().mean() > 1e-3 and rollout.media.std() > 0.05


def test_a_negative_prompt_is_what_guidance_leads_away_from(tmp_path):
    spec, p, plan = wan(tmp_path), prompts(), LatentPlan(2, 4.5, steps=3)
    away = replace(spec, negative_prompt="star").load(CPU).sample(p, plan, noise(6)).final
    assert (away - spec.load(CPU).sample(p, plan, noise(6)).final).abs().max() > 1e-3
    latents, _ = drawn_by_diffusers(spec.weights, p, 3, 4.5, negative="star")
    torch.testing.assert_close(away, latents, atol=2e-5, rtol=0)


def test_times_are_the_schedulers(tmp_path):
    """UniPC: evenly spaced t from 1 to 0.001, the end left out, shifted by 3: t' = 3 t / (1 + 2 t). It starts at 1."""
    times = wan(tmp_path, unipc()).load(CPU).times(10)
    even = torch.linspace(1, 0.001, 11, dtype=torch.float64)[:-1]
    torch.testing.assert_close(times, torch.cat([3 * even / (1 + 2 * even), torch.zeros(1)]), atol=1e-6, rtol=0)
    assert times.dtype == torch.float64 and times[0] == 1 and times[-1] == 0


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 10])
@pytest.mark.parametrize(("guidance", "shift"), [(1.0, 5.0), (4.5, 3.0)])
def test_with_its_released_solver_it_draws_what_the_pipeline_draws(tmp_path, steps, guidance, shift):
    """UniPC corrects a step when the network has seen where it led, and tells the network whole timesteps."""
    spec, p = wan(tmp_path, unipc(flow_shift=shift)), prompts()
    rollout = spec.load(CPU).sample(p, LatentPlan(2, guidance, steps=steps, solver="unipc"), noise(6))
    latents, videos = drawn_by_diffusers(spec.weights, p, steps, guidance)
    torch.testing.assert_close(rollout.final, latents, atol=5e-5, rtol=0)
    torch.testing.assert_close(rollout.media, videos, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("settings", "solver"), [({}, "dpm2"), ({"solver_order": 1}, "euler")], ids=["dpm2", "euler"])
def test_unipc_without_corrections_is_a_known_solver(tmp_path, settings, solver):
    """Of second order DPM-Solver++(2M) but for its second step, which is of second order too; of first order Euler."""
    spec, p = wan(tmp_path, unipc(**settings, disable_corrector=list(range(6)))), prompts()
    drawn = spec.load(CPU).sample(p, LatentPlan(2, 4.5, steps=6, solver=solver), noise(6)).final
    latents, _ = drawn_by_diffusers(spec.weights, p, 6, 4.5)
    torch.testing.assert_close(drawn, latents, atol=5e-5 if solver == "euler" else 2e-2, rtol=0)


def test_noise_of_the_first_step_is_finite_after_unipc(tmp_path):
    """At its own first time, 1 - 1e-6, Flow-GRPO's noise would be 700."""
    policy, p = wan(tmp_path, unipc()).load(CPU), prompts()
    steps = policy.sample(p, replace(SDE, transition=FlowSDE(0.7)), noise(6)).decisions[0]
    assert steps.std.max() < 2


@pytest.mark.parametrize("scheduler", [None, unipc()], ids=["euler", "unipc"])
def test_a_shift_of_ones_own_is_drawn_with_and_exported(tmp_path, scheduler):
    spec, p, plan = wan(tmp_path / "as", scheduler), prompts(), LatentPlan(2, 3.0, steps=4)
    shifted = replace(spec, shift=1.0).load(CPU)
    assert shifted.times(4)[2] == pytest.approx(0.5 if scheduler else 0.334, abs=1e-3)
    drawn = shifted.sample(p, plan, noise(len(p)))
    shifted.export(tmp_path / "out")
    again = replace(spec, weights=str(tmp_path / "out")).load(CPU)
    torch.testing.assert_close(again.sample(p, plan, noise(len(p))).final, drawn.final, atol=1e-6, rtol=0)


def test_the_law_drawn_is_the_law_scored(tmp_path):
    policy, p = wan(tmp_path).load(CPU), prompts()
    rollout = policy.sample(p, SDE, noise(len(p)))
    assert rollout.logp.shape == (6, 3) and rollout.logp.isfinite().all()
    assert rollout.decisions[0].before.shape == (6, 3, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(policy.logp(rollout), rollout.logp, atol=1e-5, rtol=0)


def test_one_sde_step_is_identity_grpos(tmp_path):
    """Mean and deviation written out as in its flow_grpo/diffusers_patch/wan_vace_pipeline_with_logprob.py."""
    policy, p = wan(tmp_path).load(CPU), prompts()
    steps = policy.sample(p, SDE, noise(len(p))).decisions[0]
    t, s = steps.time[0, 1]
    x = steps.before[:, 1]
    with torch.no_grad():
        v = policy.velocity(x, t.float().expand(6), p, 3.0)
    dt, std = s - t, 0.9 * t
    mean = x * (1 + std**2 / (2 * t) * dt) + v * (1 + std**2 * (1 - t) / (2 * t)) * dt
    torch.testing.assert_close(steps.mean[:, 1], mean.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(steps.std[:, 1], (std * (-dt).sqrt()).float().expand(6), atol=1e-6, rtol=0)


def test_texts_are_encoded_once(tmp_path):
    policy, p = wan(tmp_path).load(CPU), prompts(each=4)
    for step in range(2):
        policy.logp(policy.sample(p, SDE, noise(len(p), step)))
    assert policy.network.texts.encoded == len(TEXTS) + 1  # and the empty one
    (features,) = policy.network.conditions(p[::4])
    assert features.shape == (3, 7, 16)
    assert features[2, 2:].abs().max() == 0 and features[2, :2].abs().min(-1).values.max() > 0  # "star" and its end


def test_adapters(tmp_path):
    """On both attentions of every block; switched off, they are the base bit by bit."""
    spec, p = wan(tmp_path), prompts()
    base, policy = spec.load(CPU), replace(spec, lora=Lora(4, 8)).load(CPU)
    layers = {name.split(".lora_")[0].split(".", 2)[2] for name, _ in policy.parameters()}
    assert layers == {f"{attention}.{name}" for attention in ("attn1", "attn2") for name in ADAPTED}
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
    spec, p, plan = wan(tmp_path / "as", lora=lora), prompts(), LatentPlan(2, 3.0, steps=3)
    policy = spec.load(CPU)
    nudged(policy)
    before = policy.sample(p, plan, noise(len(p)))
    policy.export(tmp_path / "out")
    again = replace(spec, weights=str(tmp_path / "out"), lora=None).load(CPU).sample(p, plan, noise(len(p)))
    torch.testing.assert_close(again.final, before.final, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again.media, before.media, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        drawn_by_diffusers(str(tmp_path / "out"), p, 3, 3.0)[0], before.final, atol=1e-4, rtol=1e-4
    )


def test_recomputation_changes_nothing(tmp_path):
    spec, p = wan(tmp_path), prompts(each=1)
    plain, again = spec.load(CPU), replace(spec, recompute=True).load(CPU)
    rollout = plain.sample(p, replace(SDE, group=1), noise(len(p)))
    gradients = []
    for policy in (plain, again):
        weights = [weight for _, weight in policy.parameters()]
        gradients.append(torch.autograd.grad(policy.logp(rollout).sum(), weights))
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def test_a_video_is_decoded_by_itself_and_with_its_gradient(tmp_path):
    policy = wan(tmp_path).load(CPU)
    latents = noise(3).normal(SHAPE).requires_grad_()
    whole = policy.decode(latents)
    torch.testing.assert_close(whole[1:2], policy.decode(latents[1:2]), atol=1e-5, rtol=0)
    whole[0].sum().backward()
    assert latents.grad[0].abs().max() > 0 and latents.grad[1:].abs().max() == 0


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
        Wan("somewhere", **wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"height": 20}, r"policy\.wan\.height: 20 is not a multiple of this model's 8"),
        ({"width": 0}, r"policy\.wan\.width: 0 is not a multiple of this model's 8"),
        ({"frames": 6}, r"policy\.wan\.frames: 6 is not one more than a multiple of 4"),
        ({"width": 136}, r"policy\.wan: 17 places along one axis, above the 16 of this model"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path, wrong, said):
    with pytest.raises(ValueError, match=said):
        wan(tmp_path, **wrong).load(CPU)


def test_folders_that_are_other_models(tmp_path):
    from diffusers import FlowMatchEulerDiscreteScheduler

    spec = wan(tmp_path / "a")
    file = tmp_path / "a" / "model_index.json"
    index = json.loads(file.read_text())
    for change, said in (
        ({"transformer_2": index["transformer"]}, "names a transformer_2, which takes over at low noise"),
        ({"scheduler": ["diffusers", "DDIMScheduler"]}, "scheduler: a DDIMScheduler; only FlowMatchEuler"),
        ({"_class_name": "WanVACEPipeline"}, "holds a WanVACEPipeline, not a WanPipeline"),
    ):
        file.write_text(json.dumps({**index, **change}))
        with pytest.raises(ValueError, match=said):
            spec.load(CPU)
    for settings, said in (
        ({"use_flow_sigmas": False}, "UniPCMultistepScheduler of something else than a flow that ends at 0"),
        ({"final_sigmas_type": "sigma_min"}, "UniPCMultistepScheduler of something else than a flow that ends at 0"),
        ({"prediction_type": "epsilon"}, "its prediction_type is not that of a flow"),
    ):
        with pytest.raises(ValueError, match=said):
            wan(tmp_path / "b", unipc(**settings)).load(CPU)
    moving = wan(tmp_path / "c", FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with pytest.raises(
        ValueError, match="its shift grows with the picture, but this pipeline tells no size; set a shift"
    ):
        moving.load(CPU)
    assert replace(moving, shift=2.0).load(CPU).times(2)[0] == 1
