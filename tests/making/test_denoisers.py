"""The denoisers of the world, trained for a moment, are pipelines that policies draw from; the autoencoder ships."""

from __future__ import annotations

import pytest
import torch

from burnish.core import LatentPlan
from burnish.formulas.noise import Noise, generator
from burnish.making.command import main
from burnish.making.denoisers import Diffusion, Flow, Settings, encoded
from burnish.making.fitting import untyped
from burnish.models.places import locate
from burnish.policies.sd import SD
from burnish.policies.sd3 import SD3
from burnish.types import Prompt
from burnish.worlds.scenes.grammar import heldout
from burnish.worlds.scenes.render import captions, render
from burnish.worlds.scenes.verify import verify

CPU = torch.device("cpu")
AUTOENCODER = locate("burnish:worlds/scenes/weights/autoencoder")
CLIP = locate("burnish:worlds/scenes/weights/clip")


@pytest.fixture(scope="module")
def vae():
    return untyped("diffusers").AutoencoderKL.from_pretrained(AUTOENCODER, torch_dtype=torch.float32).eval()


def test_scenes_come_back_from_the_autoencoder(vae):
    pairs = captions(120, generator("fresh"))
    with torch.no_grad():
        latents = vae.encode(render([scene for _, scene in pairs]) * 2 - 1).latent_dist.mean
        pictures = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert latents.shape == (120, 4, 8, 8)
    assert verify(pictures, [prompt for prompt, _ in pairs]).right.float().mean() >= 0.97


def test_latents_have_the_deviation_that_the_config_promises(vae):
    latents = encoded(vae, captions(200, generator("deviation")))
    assert latents.std().item() == pytest.approx(1.0, abs=0.05) and abs(latents.mean().item()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "spec"), [("flow", SD3), ("diffusion", SD)])
def test_a_moment_of_training_makes_a_pipeline(kind, spec, tmp_path):
    asked = [kind, "--autoencoder", str(AUTOENCODER), "--seconds", "0.5", "--scenes", "64"]
    main([*asked, "--out", str(tmp_path / "taught")])
    main([*asked, "--out", str(tmp_path / "finished"), "--start", str(tmp_path / "taught"), "--mistakes", "0.5"])
    extra = {"t5": False, "text_length": 1} if kind == "flow" else {}
    policy = spec(str(tmp_path / "finished"), pixels=64, **extra).load(CPU)
    rollout = policy.sample(heldout(2), LatentPlan(steps=2), Noise(0, 0, (0, 1)))
    assert rollout.media.shape == (2, 3, 64, 64) and rollout.media.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Flow, Diffusion])
def test_the_loss_falls_on_one_picture_and_reaches_the_encoders(kind, vae):
    """At random the error is the target's own variance; a few steps on one picture bring it down."""
    torch.manual_seed(0)
    pupil = kind(vae, CLIP, Settings())
    x = encoded(vae, captions(1, generator("one"))).expand(16, -1, -1, -1)
    weights = [w for m in (pupil.network, *pupil.encoders()) for w in m.requires_grad_(True).parameters()]
    optimiser = torch.optim.AdamW(weights, lr=2e-3)
    losses = []
    for step in range(12):
        loss = pupil.loss(x, ["a red circle"] * 16, torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(any(w.grad.abs().max() > 0 for w in e.parameters() if w.grad is not None) for e in pupil.encoders())


@pytest.mark.slow
def test_a_flow_learns_the_velocities_of_an_eps_model(vae, tmp_path):
    """Of the true noise they are noise - clean, which is also what is taught above a time of 0.93."""
    torch.manual_seed(0)
    Diffusion(vae, CLIP, Settings()).pipeline.save_pretrained(tmp_path / "teacher")
    pupil = Flow(vae, CLIP, Settings(teacher=tmp_path / "teacher"))
    x, noise, t = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.tensor([0.2, 0.6, 0.92, 0.94])
    noisy = (1 - t).view(-1, 1, 1, 1) * x + t.view(-1, 1, 1, 1) * noise
    texts = ["a red circle", "", "a blue square", "a red circle"]
    found = pupil.taught(texts, noisy, t, noise - x)
    teacher = SD(str(tmp_path / "teacher"), pixels=64).load(CPU)
    expected = teacher.velocity(noisy, t, [Prompt(text, text) for text in texts])
    assert torch.allclose(found[:3], expected[:3], atol=1e-5) and torch.equal(found[3], (noise - x)[3])
    assert not torch.allclose(found[0], (noise - x)[0], atol=0.1)
    led = Flow(vae, CLIP, Settings(teacher=tmp_path / "teacher", guidance=3.0)).taught(texts, noisy, t, noise - x)
    guided = teacher.velocity(noisy, t, [Prompt(text, text) for text in texts], 3.0)
    assert torch.allclose(led[:3], guided[:3], atol=1e-5) and not torch.allclose(led[0], found[0], atol=1e-3)
    assert torch.allclose(led[1], found[1], atol=1e-5), "no prompt is led nowhere"
    pupil.loss(x, texts, torch.Generator().manual_seed(0)).backward()
    assert pupil.network.proj_out.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for _, weight in pupil.teacher.parameters())

    pupil.teacher.network.model = lambda x_vp, *_, **__: (noise[: len(x_vp)],)
    assert torch.allclose(pupil.taught(texts, noisy, t, noise - x), noise - x, atol=1e-4)


def test_an_eps_model_has_no_teacher(vae, tmp_path):
    with pytest.raises(ValueError, match="only a flow learns from one"):
        Diffusion(vae, CLIP, Settings(teacher=tmp_path))
