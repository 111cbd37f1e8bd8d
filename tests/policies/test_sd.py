"""Stable Diffusion as diffusers' DDIM draws it: what is foreign about noise, v and timesteps ends in the policy."""

import json

import pytest
import torch
from tiny_diffusers import noise, prompts, sd

from burnish.core import LatentPlan
from burnish.formulas.gaussian import rows
from burnish.models.lora import Lora
from burnish.transitions.ddim import DDIM

CPU = torch.device("cpu")
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SCHEDULERS = {
    "eps": {},
    "v": {"prediction_type": "v_prediction"},
    "sample": {"prediction_type": "sample"},
    "trailing": {"timestep_spacing": "trailing"},
    "zero snr": ZERO_SNR,
    "linear": {"beta_schedule": "linear"},
    "released": {"set_alpha_to_one": False},
    "released v": {"set_alpha_to_one": False, "prediction_type": "v_prediction"},
}


def drawn_by_diffusers(folder: str, p, steps: int, guidance: float):
    """Latents and pictures of the pipeline under DDIM with eta 0, from the noise that ours starts with."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    asked = {
        "prompt": [q.text for q in p],
        "height": 16,
        "width": 16,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "eta": 0.0,
        "latents": noise(len(p)).normal((4, 8, 8), "start"),
    }
    return pipeline(**asked, output_type="latent").images, pipeline(**asked, output_type="pt").images


def length(t):
    return torch.sqrt((1 - t).square() + t.square())


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_without_noise_it_draws_what_ddim_draws(tmp_path, scheduler, guidance):
    spec, p = sd(tmp_path, scheduler), prompts()
    rollout = spec.load(CPU).sample(p, LatentPlan(2, guidance, steps=5), noise(len(p)))
    latents, pictures = drawn_by_diffusers(spec.weights, p, 5, guidance)
    size = latents.abs().max().item()
    torch.testing.assert_close(rollout.media, pictures, atol=1e-4, rtol=0)
    if scheduler.get("set_alpha_to_one", True):
        torch.testing.assert_close(rollout.final / size, latents / size, atol=2e-5, rtol=0)
    else:  # what is decoded has noise in it, what is learned from has none
        assert (rollout.final - latents).abs().max() > 1e-3


def test_spacing_that_does_not_divide(tmp_path):
    """leading: 3 steps stand at 667, 334 and 1, each 333 below the last, and DDIM goes from one to the next."""
    spec, p = sd(tmp_path), prompts()
    policy = spec.load(CPU)
    abar = policy.network.clock.scheduler.alphas_cumprod.double()[[667, 334, 1]]
    t = (1 - abar).sqrt() / (abar.sqrt() + (1 - abar).sqrt())
    torch.testing.assert_close(policy.times(3), torch.cat([t, torch.zeros(1)]), atol=1e-9, rtol=0)
    rollout = policy.sample(p, LatentPlan(2, 3.0, steps=3), noise(len(p)))
    latents, _ = drawn_by_diffusers(spec.weights, p, 3, 3.0)
    torch.testing.assert_close(rollout.final / latents.abs().max(), latents / latents.abs().max(), atol=2e-5, rtol=0)


def test_where_the_scheduler_stops_before_zero_what_is_decoded_has_noise_in_it(tmp_path):
    """sqrt(abar_0) clean + sqrt(1 - abar_0) noise; times fall to 0 all the same, and what is learned from is clean."""
    spec, p, plan = sd(tmp_path, {"set_alpha_to_one": False}), prompts(), LatentPlan(2, 3.0, steps=5, waypoint=4)
    policy = spec.load(CPU)
    rollout, times = policy.sample(p, plan, noise(len(p))), policy.times(5)
    assert times[-1] == 0 and times[-2] > 0
    one = sd(tmp_path / "one").load(CPU).sample(p, plan, noise(len(p)))
    assert torch.equal(rollout.final, one.final)
    latents, _ = drawn_by_diffusers(spec.weights, p, 5, 3.0)
    torch.testing.assert_close(policy.decode(latents).clamp(0, 1), rollout.media, atol=1e-4, rtol=0)
    assert (rollout.media - one.media).abs().max() > 1e-3
    x, t = rollout.waypoint, times[4].expand(6)
    with torch.no_grad():
        v = policy.velocity(x, t.float(), p, 3.0)
    expected = (1 - 0.00085) ** 0.5 * rollout.final + 0.00085**0.5 * (x + (1 - times[4]) * v)
    torch.testing.assert_close(policy.finished(x, v, t), expected.float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_ddim_step_is_the_schedulers(tmp_path, scheduler, step):
    """eta 1, one step, with the same noise: our mean and deviation against DDIMScheduler.step, in its own states."""
    policy, p = sd(tmp_path, scheduler).load(CPU), prompts()
    network, times = policy.network, policy.times(5)
    ddim = network.clock.scheduler
    t, s = times[step].expand(6), times[step + 1].expand(6)
    x_vp, z = noise(6).normal((4, 8, 8), "x"), noise(6).normal((4, 8, 8), "z")
    with torch.no_grad():
        velocity = policy.velocity(x_vp * length(t[0]).item(), t.float(), p, 3.0)
        mean, std = DDIM(1.0).move(x_vp * length(t[0]).item(), velocity, t, s)
        features = torch.cat([network.texts([""])[0].expand(6, -1, -1), network.conditions(p)[0]])
        null, conditional = network.model(
            torch.cat([x_vp, x_vp]), ddim.timesteps[step], encoder_hidden_states=features
        ).sample.chunk(2)
    theirs = ddim.step(
        null + 3.0 * (conditional - null), ddim.timesteps[step].item(), x_vp, eta=1.0, variance_noise=z
    ).prev_sample
    ours = (mean + rows(std, mean) * z) / length(s[0]).item()
    torch.testing.assert_close(ours / theirs.std(), theirs / theirs.std(), atol=2e-5, rtol=0)


def test_every_timestep_is_found_again_and_between_two_the_nearer(tmp_path):
    for scheduler in SCHEDULERS.values():
        timesteps = sd(tmp_path, scheduler).load(CPU).network.clock
        steps = torch.arange(1000)
        t = torch.sigmoid(timesteps.table)
        assert torch.equal(timesteps.nearest(t.float().double()), steps)  # as the policy rounds them
        ratio = timesteps.table[:999].diff()
        above = torch.sigmoid(timesteps.table[:998] + 0.4 * ratio)
        assert torch.equal(timesteps.nearest(above), steps[:998])
        assert torch.equal(timesteps.nearest(torch.sigmoid(timesteps.table[:998] + 0.6 * ratio)), steps[1:999])
        assert timesteps.nearest(torch.tensor([1e-9, 1.0], dtype=torch.float64)).tolist() == [0, 999]


def test_pndm_as_1_5_ships_it_gives_ddims_times(tmp_path):
    spec = sd(tmp_path)
    expected = spec.load(CPU).times(20)
    for file, old, new in (
        ("model_index.json", "DDIMScheduler", "PNDMScheduler"),
        ("scheduler/scheduler_config.json", "DDIMScheduler", "PNDMScheduler"),
    ):
        path = tmp_path / file
        path.write_text(path.read_text().replace(old, new))
    config = tmp_path / "scheduler" / "scheduler_config.json"
    known = json.loads(config.read_text())
    for name in ("clip_sample", "rescale_betas_zero_snr", "thresholding", "timestep_spacing", "prediction_type"):
        known.pop(name, None)
    config.write_text(json.dumps({**known, "skip_prk_steps": True, "set_alpha_to_one": False}))
    policy = spec.load(CPU)
    assert torch.equal(policy.times(20), expected)
    assert policy.network.clock.end == pytest.approx(1 - 0.00085)
    for name in ("set_alpha_to_one", "skip_prk_steps"):
        known.pop(name, None)
    config.write_text(json.dumps(known))  # PNDM's default is not DDIM's
    assert spec.load(CPU).network.clock.end == pytest.approx(1 - 0.00085)


def test_a_draw_that_ends_with_noise_in_it_by_another_setting_is_refused(tmp_path):
    from diffusers import EulerDiscreteScheduler

    spec = sd(tmp_path)
    EulerDiscreteScheduler(final_sigmas_type="sigma_min").save_pretrained(tmp_path / "scheduler")
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", "EulerDiscreteScheduler"))
    with pytest.raises(ValueError, match="final_sigmas_type"):
        spec.load(CPU)


def test_a_corrected_state_is_what_the_last_step_goes_on_from(tmp_path):
    """Three steps by UniPC: what is decoded is made of the corrected state and of what the network saw before that."""
    spec, p = sd(tmp_path, {"set_alpha_to_one": False}), prompts()
    policy, plan = spec.load(CPU), LatentPlan(2, 3.0, steps=2, solver="unipc", waypoint=1)
    rollout, (t, u, _) = policy.sample(p, plan, noise(len(p))), policy.times(2)
    with torch.no_grad():
        start = policy.network.start(noise(len(p)).normal((4, 8, 8), "start"), 2)
        first = start - t * policy.velocity(start, t.expand(6).float(), p, 3.0)
        clean = rollout.waypoint - u * policy.velocity(rollout.waypoint, u.expand(6).float(), p, 3.0)
    # UniC of order 1: the step is made again with the mean of both ends, e^-h - 1 in half the logarithm of the ratio.
    shrunk = torch.expm1(torch.log((1 - t) / t) - torch.log((1 - u) / u))
    ground = u / t * start - (1 - u) * shrunk * (first + clean) / 2
    other = ground + (1 - u) * (ground - clean) / u
    expected = (1 - 0.00085) ** 0.5 * clean + 0.00085**0.5 * other
    torch.testing.assert_close(policy.decode(expected.float()).clamp(0, 1), rollout.media, atol=1e-4, rtol=0)


def test_adapters_are_on_every_attention(tmp_path):
    policy = sd(tmp_path, lora=Lora(4, 4)).load(CPU)
    adapted = {name.split(".lora_")[0] for name, _ in policy.parameters()}
    attentions = {name for name, _ in policy.network.model.named_modules() if name.endswith(("attn1", "attn2"))}
    assert len(adapted) == 4 * len(attentions) > 0


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ({"thresholding": True}, "thresholding is for diffusion of pixels"),
        ({"rescale_betas_zero_snr": True}, "a prediction of noise says nothing there"),
        ({"prediction_type": "flow"}, "predicts 'flow'; known are epsilon, v_prediction, sample"),
    ],
)
def test_schedulers_that_do_not_fit(tmp_path, scheduler, said):
    with pytest.raises(ValueError, match=f"scheduler: .*{said}"):
        sd(tmp_path, scheduler).load(CPU)


def test_a_scheduler_of_another_family(tmp_path):
    from diffusers import FlowMatchEulerDiscreteScheduler

    spec = sd(tmp_path)
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", "FlowMatchEulerDiscreteScheduler"))
    with pytest.raises(ValueError, match="a FlowMatchEulerDiscreteScheduler, whose settings are not those"):
        spec.load(CPU)


def test_steps_that_there_are_not(tmp_path):
    policy = sd(tmp_path).load(CPU)
    with pytest.raises(ValueError, match=r"plan\.steps: 1001 is more than the 1000 timesteps"):
        policy.times(1001)
    with pytest.raises(ValueError, match=r"plan\.steps: 1000 .* begin beyond timestep 999"):
        policy.times(1000)
