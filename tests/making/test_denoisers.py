"""The denoisers of the world, trained for a moment, are pipelines that policies draw from; the autoencoder ships."""

from __future__ import annotations

import pytest
import torch

from burnish.core import LatentPlan
from burnish.formulas.noise import Noise, generator
from burnish.making.command import main
from burnish.making.denoisers import Diffusion, Flow, encoded
from burnish.making.fitting import untyped
from burnish.models.places import locate
from burnish.policies.sd import SD
from burnish.policies.sd3 import SD3
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
    pupil = kind(vae, CLIP, None)
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
