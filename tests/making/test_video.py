"""The video model of the world: nine frames, a reader that begins as the scenes' T5, and a folder that a policy draws
from. Trained for a moment: what it is worth is in its log."""

from __future__ import annotations

import json

import pytest
import torch

from burnish.core import LatentPlan
from burnish.formulas.noise import Noise, generator
from burnish.making.autoencoder import FRAMES, Videos, narrowed
from burnish.making.command import main
from burnish.making.denoisers import Settings, matched
from burnish.making.fitting import untyped
from burnish.making.video import SLOTS, Video, encoded, reader
from burnish.models.places import locate
from burnish.policies.wan import Wan
from burnish.transitions.flow_sde import FlowSDE
from burnish.worlds.scenes import moving
from burnish.worlds.scenes.motion import judge
from burnish.worlds.scenes.moving import captions, render_moving

CPU = torch.device("cpu")
TEXT = locate("burnish:worlds/scenes/weights/text/encoder")


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return Videos().model.eval()


def test_nine_frames_show_what_eight_do():
    pairs = captions(60, generator("nine"), frames=FRAMES)
    videos = render_moving([video for _, video in pairs])
    assert videos.shape == (60, 9, 3, 64, 64)
    assert judge(videos, [prompt for prompt, _ in pairs]).right.float().mean() >= 0.97
    eight = captions(3, generator("same"))
    assert all(len(video) == 8 for _, video in eight)


@torch.no_grad()
def test_the_encoder_leaves_out_the_last_of_eight_frames_and_none_of_nine(vae):
    """1 + 4k frames are encoded: what follows them changes nothing."""
    video = torch.rand(1, 3, FRAMES, 64, 64) * 2 - 1
    other = video.clone()
    other[:, :, 5:] = 0.0

    def latents(x: torch.Tensor) -> torch.Tensor:
        return vae.encode(x).latent_dist.mean

    assert latents(video).shape == (1, 8, 5, 8, 8) and latents(video[:, :, :8]).shape == (1, 8, 3, 8, 8)
    assert torch.equal(latents(video[:, :, :8]), latents(other[:, :, :8]))
    assert not torch.equal(latents(video), latents(other))
    last = video.clone()
    last[:, :, 8] = 0.0
    assert not torch.equal(latents(video), latents(last))


@torch.no_grad()
def test_latents_are_levelled_channel_by_channel(vae):
    medium, pairs = Videos(), captions(4, generator("levels"), frames=FRAMES)
    medium.model.load_state_dict(vae.state_dict())
    media = render_moving([video for _, video in pairs])
    raw = medium.model.encode(medium.ordered(media) * 2 - 1).latent_dist.mean
    medium.model.register_to_config(**medium.levelled(raw))
    level = encoded(medium.model, pairs, rows=2)
    torch.testing.assert_close(level.mean((0, 2, 3, 4)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(level.transpose(0, 1).flatten(1).std(1), torch.ones(8), atol=1e-4, rtol=0)
    assert torch.equal(medium.ordered(medium.ordered(media)), media)


@torch.no_grad()
@pytest.mark.parametrize("within", [True, False])
def test_channels_that_tell_nothing_are_left_out(vae, within):
    """Two of eight vary, and the others say one thing each. All else is computed as before: at the border too, if what
    the others say can be said `within` the two; else where no convolution of the first layer sees the zeros beyond."""
    torch.manual_seed(1)
    x = render_moving([video for _, video in captions(2, generator("narrow"), frames=FRAMES)]).transpose(1, 2) * 2 - 1
    silent = [channel for channel in range(8) if channel not in (1, 4)]
    model = Videos().model.eval()
    weights = {name: value.clone() for name, value in vae.state_dict().items()}
    weights["quant_conv.weight"][:8] *= 100
    weights["quant_conv.weight"][silent] = 0.0
    back = weights["post_quant_conv.weight"]
    if within:
        back[:, silent] = back[:, [1, 4, 1, 4, 1, 4]]
    weights["post_quant_conv.bias"] = back.flatten(1) @ torch.randn(8) if within else torch.randn(8)
    model.load_state_dict(weights)
    means = model.encode(x).latent_dist.mean
    thin, kept = narrowed(model, means)
    assert kept == [1, 4] and thin.config.z_dim == 2
    law, old = thin.encode(x).latent_dist, model.encode(x).latent_dist
    torch.testing.assert_close(law.mean, means[:, kept], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(law.logvar, old.logvar[:, kept], atol=1e-5, rtol=1e-4)

    def entered(part: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
        return part.decoder.conv_in(part.post_quant_conv(latents))

    inside = slice(None) if within else (..., slice(2, None), slice(1, -1), slice(1, -1))
    found, expected = entered(thin, law.mean), entered(model, means)
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-5, rtol=1e-4)
    assert within or not torch.allclose(found, expected, atol=1e-2)
    if within:
        torch.testing.assert_close(thin.decode(law.mean).sample, model.decode(means).sample, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_reader_begins_as_the_t5_where_it_knows_the_words():
    from transformers import AutoTokenizer, T5EncoderModel

    ours, words = reader(TEXT)
    t5, old = T5EncoderModel.from_pretrained(TEXT, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(TEXT)
    texts = ["a red circle", "a blue star and a green square"]
    new, known = (some(texts, padding="max_length", max_length=SLOTS, return_tensors="pt") for some in (words, old))
    assert not torch.equal(new.input_ids, known.input_ids), "the words have other numbers"
    said, meant = ours.eval()(**_pair(new)).last_hidden_state, t5(**_pair(known)).last_hidden_state
    seen = known.attention_mask.bool()
    torch.testing.assert_close(said[seen], meant[seen], atol=1e-5, rtol=1e-5)
    assert max(len(words(p.text).input_ids) for p in moving.everything()) == SLOTS
    assert all(2 not in words(p.text).input_ids for p in moving.everything()), "no word of motion is unknown"


def _pair(encoded):
    return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}


def test_the_velocity_that_is_matched_is_noise_less_clean():
    """A network that knew the clean state x says (state - x) / t, which is noise - x, and has no error."""
    x = torch.randn(6, 2, 3, 4, 4)
    draws = [torch.Generator().manual_seed(1) for _ in range(2)]
    at = []

    def knows(state, t):
        at.append(t)
        return (state - x) / t.view(-1, 1, 1, 1, 1)

    assert matched(x, draws[0], knows).item() < 1e-8
    assert matched(x, draws[1], lambda state, t: 1 + knows(state, t)).item() == pytest.approx(1.0, abs=1e-3)
    assert all(((t > 0) & (t < 1)).all() for t in at)


@pytest.mark.slow
def test_the_loss_falls_on_one_video_and_reaches_the_reader(vae):
    torch.manual_seed(0)
    pupil = Video(vae, TEXT, Settings())
    x = encoded(vae, captions(1, generator("one"), frames=FRAMES)).expand(4, -1, -1, -1, -1)
    [encoder] = pupil.encoders()
    weights = [w for m in (pupil.network, encoder) for w in m.requires_grad_(True).parameters()]
    optimiser = torch.optim.AdamW(weights, lr=2e-3)
    losses = []
    for step in range(10):
        loss = pupil.loss(x, ["a circle moving right"] * 4, torch.Generator().manual_seed(step % 2))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])
    assert all(w.grad is not None and w.grad.isfinite().all() for w in encoder.parameters())
    row = pupil.pipeline.tokenizer.get_vocab()["moving"]
    assert encoder.get_input_embeddings().weight.grad[row].abs().max() > 0


@pytest.mark.slow
def test_a_teacher_is_learned_from_with_its_guidance():
    """A pupil that is its teacher has nothing to learn, but for what guidance adds."""
    wan = locate("burnish:worlds/scenes/weights/video")
    losses = []
    for guidance in (1.0, 3.0):
        pupil = Video(None, TEXT, Settings(start=wan, teacher=wan, guidance=guidance))
        x = encoded(pupil.pipeline.vae, captions(2, generator("two"), frames=FRAMES))
        losses.append(pupil.loss(x, ["a circle moving right", ""], torch.Generator().manual_seed(0)).item())
    assert losses[0] < 1e-8 and losses[1] > 1e-3


def test_one_frame_is_convolved_as_among_three():
    """And what joins frames in time begins by leaving them as they are."""
    model = Videos().model
    kinds = [part for part in model.modules() if type(part).__name__ == "WanCausalConv3d"]
    conv = next(part for part in kinds if part.kernel_size == (3, 3, 3))
    x = torch.randn(2, conv.in_channels, 1, 6, 6)
    torch.testing.assert_close(conv(x), type(conv).forward(conv, x), atol=1e-5, rtol=1e-5)
    x = torch.randn(2, conv.in_channels, 3, 6, 6)
    torch.testing.assert_close(conv(x)[:, :, :1], conv(x[:, :, :1]), atol=1e-5, rtol=1e-5)
    joins = [part for name, part in model.named_modules() if name.endswith("time_conv")]
    for part in joins:
        x = torch.randn(1, part.in_channels, 3, 2, 2)
        expected = x[:, :, 2:] if part.stride[0] == 2 else torch.cat([x, x], 1)
        torch.testing.assert_close(part(x), expected)
    assert len(joins) == 2


@pytest.mark.slow
def test_a_moment_of_training_makes_a_pipeline(tmp_path):
    codes, taught, out = (tmp_path / name for name in ("autoencoder", "taught", "video"))
    main(["video_autoencoder", "--seconds", "0.3", "--measured", "4", "--out", str(codes)])
    config = untyped("diffusers").AutoencoderKLWan.load_config(codes)
    assert 1 <= len(config["latents_std"]) == config["z_dim"] <= 8 and 1.0 not in config["latents_std"]
    assert 0 <= json.loads((codes / "log.json").read_text())["verified"] <= 1
    again = tmp_path / "again"
    main(["video_autoencoder", "--seconds", "0.3", "--measured", "4", "--start", str(codes), "--out", str(again)])
    assert untyped("diffusers").AutoencoderKLWan.load_config(again)["z_dim"] <= config["z_dim"]
    asked = ["--autoencoder", str(codes), "--seconds", "0.3", "--scenes", "8", "--batch", "4"]
    main(["video", *asked, "--stills", "0.3", "--out", str(taught)])
    log = json.loads((taught / "log.json").read_text())
    assert log["steps"] > 0 and log["stills"]["steps"] > 0
    main(["video", *asked, "--start", str(taught), "--mistakes", "0.5", "--out", str(out)])
    policy = Wan(str(out), height=64, width=64, frames=FRAMES, text_length=SLOTS).load(CPU)
    plan = LatentPlan(steps=3, stochastic=(0, 1), transition=FlowSDE(0.889, "linear"))
    rollout = policy.sample(moving.heldout(2), plan, Noise(0, 0, (0, 1)))
    assert rollout.media.shape == (2, 9, 3, 64, 64) and rollout.media.isfinite().all()
    assert (policy.logp(rollout) - rollout.logp).abs().max() < 1e-5
    assert len(judge(rollout.media, rollout.prompts).right) == 2
