"""What holds for every policy in diffusers' format: one law, texts encoded once, adapters, folders, decoding."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_diffusers
import torch
from tiny_diffusers import noise, prompts

from burnish.core import Copy, LatentPlan
from burnish.models.denoiser import DenoisingPolicy
from burnish.models.diffusers_parts import Autoencoder, Texts
from burnish.models.lora import Lora
from burnish.transitions.ddim import DDIM
from burnish.transitions.flow_sde import FlowSDE
from burnish.types import Prompt, take

CPU = torch.device("cpu")
PLANS = {
    "sde": LatentPlan(2, 4.5, steps=4, stochastic=(0, 1, 2), transition=FlowSDE()),
    "plain": LatentPlan(2, 1.0, steps=4, stochastic=(0, 1, 2), transition=FlowSDE()),
    "unconditional": LatentPlan(2, 0.0, steps=4, stochastic=(0, 2), transition=FlowSDE()),
    "ddim": LatentPlan(2, 3.0, steps=4, stochastic=(0, 1, 2), transition=DDIM()),
    "star": LatentPlan(2, 3.0, steps=4, branches=(0, 2), transition=DDIM()),
}


KINDS = {
    "sd3": {},
    "sd": {},
    "sdxl": {"zeros": False},
    "flux": {},
    "qwen_image": {"rescale": False},
    "sana": {"instruction": False},
}
with_videos = pytest.mark.parametrize("tiny", [*KINDS, "wan"], indirect=True)
NOTHING = {"qwen_image": " "}  # the text of no prompt, elsewhere ""
ROUND_THE_TIME = ("flux", "qwen_image")  # in bf16, to 3 digits, which these random networks answer loudly


@pytest.fixture(params=KINDS, scope="module")
def tiny(request, tmp_path_factory) -> Callable:
    """Settings of one kind of policy, for weights that are written once."""
    folder = tmp_path_factory.mktemp(request.param)
    spec = getattr(tiny_diffusers, request.param)(folder, **KINDS.get(request.param, {}))

    def settings(weights: Path = folder, **fields):
        return type(spec)(**{**vars(spec), "weights": str(weights), **fields})

    return settings


@pytest.fixture(scope="module")
def policy(tiny) -> DenoisingPolicy:
    return tiny().load(CPU)


def trained(policy: DenoisingPolicy) -> torch.nn.Module:
    return policy.network.model


def nudged(policy: DenoisingPolicy) -> None:
    with torch.no_grad():
        for _, weight in policy.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))


# --- the law ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_law_drawn_is_the_law_scored(policy, plan):
    p = prompts()
    rollout = policy.sample(p, plan, noise(len(p)))
    side = policy.network.spec.pixels
    assert rollout.media.shape == (6, 3, side, side) and rollout.media.min() >= 0 and rollout.media.max() <= 1
    assert rollout.logp.shape == (6, len(plan.stochastic) or 1) and rollout.logp.isfinite().all()
    with torch.no_grad():
        torch.testing.assert_close(policy.logp(rollout), rollout.logp, atol=1e-5, rtol=0)


@with_videos
def test_scored_as_it_was_drawn_the_ratio_is_exactly_one(policy):
    """One step is scored in the batch it was drawn in; with more of them a product may round differently."""
    p = prompts()
    for step in range(3):
        plan = LatentPlan(2, 4.5, steps=4, stochastic=(step,), transition=FlowSDE())
        rollout = policy.sample(p, plan, noise(len(p)))
        assert torch.equal((policy.logp(rollout) - rollout.logp).exp(), torch.ones(6, 1))


@with_videos
@pytest.mark.parametrize("stored", ["fp32", "bf16"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_before_an_update_ratios_are_exactly_one(tiny, precision, stored):
    """In bf16 however many rows are scored together; in float32 in as many as were drawn together, three samples of
    four steps: a convolution or a short product of few rows is there summed in another order, to 1e-6 nats."""
    policy, p = tiny(precision=precision).load(CPU), prompts(each=4)
    plan = LatentPlan(4, 3.0, steps=5, stochastic=(0, 1, 2, 3), transition=FlowSDE(), stored=stored)
    rollout = policy.sample(p, plan, noise(len(p)))
    with torch.no_grad():
        for size in (1, 5, 12) if precision == "bf16" else (3,):
            for rows in torch.arange(len(p)).split(size):
                some = take(rollout, rows)
                assert torch.equal(policy.logp(some), some.logp), size


def test_bfloat16_rounds_velocities_and_not_ratios(tiny):
    policy, p = tiny(precision="bf16").load(CPU), prompts()
    rollout = policy.sample(p, PLANS["sde"], noise(len(p)))
    assert torch.equal(policy.logp(rollout), rollout.logp)
    assert rollout.final.dtype == torch.float32
    assert all(weight.dtype == torch.float32 for _, weight in policy.parameters())
    exact = tiny().load(CPU).sample(p, PLANS["sde"], noise(len(p)))
    far = 0.5 if policy.network.name in ROUND_THE_TIME else 0.1
    assert 0 < (exact.final - rollout.final).abs().mean() < far * exact.final.abs().mean()


def test_beside_frozen_weights_in_bfloat16_adapters_are_float32(tiny):
    policy, p = tiny(precision="bf16", lora=Lora(4, 8)).load(CPU), prompts()
    adapters = dict(policy.parameters())
    frozen = [w for name, w in trained(policy).named_parameters() if name not in adapters]
    assert frozen and all(weight.dtype == torch.bfloat16 for weight in frozen)
    nudged(policy)
    rollout = policy.sample(p, PLANS["sde"], noise(len(p)))
    logp = policy.logp(rollout)
    assert torch.equal(logp, rollout.logp)
    logp.sum().backward()
    assert all(weight.dtype == torch.float32 for weight in adapters.values())
    assert any(weight.grad is not None and weight.grad.any() for weight in adapters.values())
    exact = tiny(lora=Lora(4, 8)).load(CPU)
    nudged(exact)
    near = exact.sample(p, PLANS["sde"], noise(len(p))).final
    far = 0.5 if policy.network.name in ROUND_THE_TIME else 0.25  # biases and norms are rounded too
    assert (near - rollout.final).abs().mean() < far * near.abs().mean()


def test_guidance_mixes_velocities(policy):
    p = prompts(each=1)
    x, t = noise(3).normal((4, 8, 8)), torch.tensor([0.9, 0.5, 0.1])
    with torch.no_grad():
        null, conditional, guided = (policy.velocity(x, t, p, w) for w in (0.0, 1.0, 4.5))
    assert (conditional - null).abs().max() > 1e-3  # the prompt is read
    torch.testing.assert_close(guided, null + 4.5 * (conditional - null), atol=1e-4, rtol=1e-5)
    empty = [Prompt(q.id, NOTHING.get(policy.network.name, "")) for q in p]
    with torch.no_grad():
        torch.testing.assert_close(policy.velocity(x, t, empty, 1.0), null, atol=1e-5, rtol=1e-5)


def test_without_guidance_one_branch_is_computed(policy, monkeypatch):
    rows, network = [], trained(policy)
    inside = network.forward
    monkeypatch.setattr(
        network, "forward", lambda *a, **k: (rows.append(len((a or (k["hidden_states"],))[0])), inside(*a, **k))[1]
    )
    x, t = noise(3).normal((4, 8, 8)), torch.full((3,), 0.5)
    for guidance in (1.0, 4.5):
        with torch.no_grad():
            policy.velocity(x, t, prompts(each=1), guidance)
    assert rows == [3, 6]


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_texts_are_encoded_once(tiny, monkeypatch):
    policy, p = tiny().load(CPU), prompts(each=4)
    seen, pipeline = [], policy.network.pipeline
    inside = pipeline.encode_prompt
    monkeypatch.setattr(
        pipeline, "encode_prompt", lambda *a, **k: (seen.extend(a[0] if a else k["prompt"]), inside(*a, **k))[1]
    )
    for step in range(3):
        policy.logp(policy.sample(p, PLANS["plain"], noise(len(p), step)))
    assert sorted(seen) == sorted(tiny_diffusers.TEXTS)
    policy.logp(policy.sample(p, PLANS["sde"], noise(len(p))))
    assert sorted(seen) == sorted([*tiny_diffusers.TEXTS, NOTHING.get(policy.network.name, "")])


def test_texts_read_ahead_are_the_same_to_the_bit(tiny):
    """In another order and another company than when they are drawn."""
    one, other = tiny().load(CPU), tiny().load(CPU)
    p = prompts()
    one.read_ahead(p[::-1])
    known = one.network.texts.encoded
    drawn = [policy.sample(p, PLANS["sde"], noise(len(p))) for policy in (one, other)]
    assert one.network.texts.encoded - known <= 1  # the empty one
    assert torch.equal(drawn[0].decisions[0].logp, drawn[1].decisions[0].logp)


def test_texts_that_no_longer_fit_are_encoded_again():
    asked = []

    def encode(texts):
        asked.extend(texts)
        return torch.tensor([[float(len(text))] * 4 for text in texts]), torch.zeros(len(texts), 1)

    texts = Texts(encode, CPU, room=3 * 20)  # 20 bytes each
    assert texts(["a", "bb", "a", "ccc", "dddd"])[0][:, 0].tolist() == [1, 2, 1, 3, 4]
    assert texts(["dddd", "a"])[0][:, 0].tolist() == [4, 1]  # "bb", asked for longest ago, went
    assert texts(["bb"])[0].shape == (1, 4) and asked == ["a", "bb", "ccc", "dddd", "bb"]


# --- weights ----------------------------------------------------------------------------------------------------------


def test_adapters_off_are_the_base_bit_by_bit(tiny, policy):
    adapted, p = tiny(lora=Lora(4, 8)).load(CPU), prompts()
    with torch.no_grad():
        rollout = policy.sample(p, PLANS["sde"], noise(len(p)))
        base = policy.logp(rollout)
        assert torch.equal(adapted.logp(rollout), base)  # they start as nothing
        adapted.keep({"reference": Copy()})
        nudged(adapted)
        assert (adapted.logp(rollout) - base).abs().max() > 1e-4
        with adapted.using("reference"):
            assert torch.equal(adapted.logp(rollout), base)
        assert set(adapted.state()) == {name for name, _ in adapted.parameters()}  # no second set of weights


def test_the_gradient_reaches_adapters_and_nothing_else(tiny):
    policy, p = tiny(lora=Lora(4, 8)).load(CPU), prompts()
    nudged(policy)
    policy.logp(policy.sample(p, PLANS["sde"], noise(len(p)))).sum().backward()
    reached = {name for name, weight in trained(policy).named_parameters() if weight.grad is not None}
    names = [name for name, _ in policy.parameters()]
    assert reached and reached <= set(names) and all("lora_" in name for name in names)
    # the last layer of SD3 and Qwen-Image makes no more text: adapters on what becomes of it have nothing to do
    idle = [name for name, weight in policy.parameters() if weight.grad is None or weight.grad.abs().max() == 0]
    assert all("blocks.1." in name and ("add" in name or "txt" in name) for name in idle)
    parts = [part for part in vars(policy.network.pipeline).values() if isinstance(part, torch.nn.Module)]
    frozen = [part for part in parts if part is not trained(policy)]
    assert len(frozen) >= 2 and not any(weight.requires_grad for part in frozen for weight in part.parameters())


@with_videos
def test_any_split_gives_the_same_gradient(policy):
    p = prompts()
    rollout = policy.sample(p, PLANS["sde"], noise(len(p)))
    weights = [weight for _, weight in policy.parameters()]

    def gradient(*parts):
        total = sum(policy.logp(take(rollout, torch.tensor(part))).square().sum() for part in parts)
        return torch.autograd.grad(total, weights, allow_unused=True)

    whole, split = gradient(range(6)), gradient([0, 3], [5, 1, 2], [4])
    assert any(g is not None and g.abs().max() > 1e-2 for g in whole)
    for a, b in zip(whole, split, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-4 * max(1.0, a.abs().max().item()), rtol=1e-3)


def test_recomputation_changes_nothing(tiny, policy):
    p = prompts(each=1)
    rollout = policy.sample(p, PLANS["sde"], noise(len(p)))
    results, again = [], tiny(recompute=True).load(CPU)
    assert trained(again).is_gradient_checkpointing and not trained(policy).is_gradient_checkpointing
    for each in (policy, again):
        logp = each.logp(rollout)
        weights = [weight for _, weight in each.parameters()]
        results.append([logp, *torch.autograd.grad(logp.sum(), weights, allow_unused=True)])
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lora", [None, Lora(4, 8)], ids=["all", "lora"])
def test_an_exported_model_is_the_model(tiny, tmp_path, lora):
    policy, p = tiny(lora=lora).load(CPU), prompts()
    nudged(policy)
    plan = LatentPlan(2, 3.0, steps=3)
    before = policy.sample(p, plan, noise(len(p)))
    policy.export(tmp_path / "out")
    again = tiny(tmp_path / "out").load(CPU).sample(p, plan, noise(len(p)))
    torch.testing.assert_close(again.final, before.final, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again.media, before.media, atol=1e-4, rtol=0)
    torch.testing.assert_close(policy.sample(p, plan, noise(len(p))).final, before.final, atol=0, rtol=0)
    with pytest.raises(ValueError, match="the model was read from here"):
        policy.export(Path(policy.network.spec.weights))


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tiny, tmp_path) -> Path:
    shutil.copytree(tiny().weights, tmp_path / "copy")
    return tmp_path / "copy"


def fault(tiny, folder) -> str:
    with pytest.raises(ValueError) as caught:
        tiny(folder).load(CPU)
    return str(caught.value)


def network_folder(folder: Path) -> Path:
    return folder / ("unet" if (folder / "unet").exists() else "transformer")


def test_no_folder_and_no_pipeline(tiny, tmp_path):
    assert "no such file or folder" in fault(tiny, tmp_path / "nowhere")
    assert "model_index.json: no such file" in fault(tiny, tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    assert "model_index.json: not JSON" in fault(tiny, tmp_path)
    (tmp_path / "model_index.json").write_text("[]")
    assert "holds no pipeline" in fault(tiny, tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "ReduxPipeline"}')
    assert "holds a ReduxPipeline, not a " in fault(tiny, tmp_path)


def test_a_part_that_is_not_there(tiny, copied):
    shutil.rmtree(copied / "vae")
    assert "vae: no such folder, but model_index.json names a Autoencoder" in fault(tiny, copied)


def test_a_part_that_is_not_named(tiny, copied):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "vae": [None, None]}))
    assert "names no vae, which this model cannot do without" in fault(tiny, copied)


def test_a_part_of_a_strange_library(tiny, copied):
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "vae": ["os", "system"]}))
    assert "vae is of 'os'; only diffusers and transformers are read" in fault(tiny, copied)
    (copied / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderKM"]}))
    assert "this diffusers knows no AutoencoderKM (of vae)" in fault(tiny, copied)


@pytest.mark.parametrize("part", ["network", "text_encoder", "vae"])
def test_weights_cut_short(tiny, copied, part):
    folder = network_folder(copied) if part == "network" else copied / part
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{folder}: not readable as a " in fault(tiny, copied)
    file.unlink()
    assert f"{folder}: not readable as a " in fault(tiny, copied)


@pytest.mark.parametrize("part", ["network", "text_encoder", "vae"])
def test_weights_that_lack_one(tiny, copied, part):
    from safetensors.torch import load_file, save_file

    folder = network_folder(copied) if part == "network" else copied / part
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    gone = next(name for name in sorted(weights) if name.endswith(("q_proj.weight", "to_q.weight", "conv_in.weight")))
    del weights[gone]
    save_file(weights, file, {"format": "pt"})
    assert f"{folder}: the weights of the " in (said := fault(tiny, copied)) and gone.split(".")[-2] in said


def test_weights_of_another_shape(tiny, copied):
    file = network_folder(copied) / "config.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, "in_channels": 9}))
    assert f"{network_folder(copied)}: not readable as a " in fault(tiny, copied)


@pytest.mark.parametrize("file", ["vae/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"])
def test_a_file_of_settings_that_is_gone_or_cut_short(tiny, copied, file):
    (copied / file).write_text("{")
    assert f"{(copied / file).parent}: not readable as a " in fault(tiny, copied)
    (copied / file).unlink()
    assert f"{copied / file}: no such file" in fault(tiny, copied)


def test_a_tokenizer_without_its_words(tiny, copied):
    (copied / "tokenizer" / "tokenizer.json").unlink()
    assert f"{copied / 'tokenizer'}: holds n" in (said := fault(tiny, copied)) and "tokenizer.json" in said


def test_a_tokenizer_as_it_was_written_before_tokenizer_json(tiny, copied, policy):
    """Released models have vocab.json and merges.txt; Gemma has a file of another format, and tokenizer.json too."""
    if policy.network.name == "sana":
        return
    model = json.loads((copied / "tokenizer" / "tokenizer.json").read_text())["model"]
    (copied / "tokenizer" / "tokenizer.json").unlink()
    (copied / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = ["#version: 0.2", *map(" ".join, model["merges"])]
    (copied / "tokenizer" / "merges.txt").write_text("\n".join(merges) + "\n")
    old, p = tiny(copied).load(CPU), prompts(each=1)
    for a, b in zip(old.network.conditions(p), policy.network.conditions(p), strict=True):
        assert torch.equal(a, b)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_pictures_that_do_not_fit(tiny):
    with pytest.raises(ValueError, match=r"policy\.\w+\.pixels: 18 is not a multiple of this model's 4"):
        tiny(pixels=18).load(CPU)


def test_wrong_settings(tiny):
    with pytest.raises(ValueError, match="decode_rows must be at least 1, got 0"):
        tiny(decode_rows=0)
    with pytest.raises(ValueError, match="rank and alpha must be at least 1, got 0 and 8"):
        Lora(0, 8)


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_pictures_larger_than_a_tile_are_decoded_in_tiles(tiny, policy):
    latents = noise(2).normal((4, 8, 8)).requires_grad_()
    tiles = tiny(tiled_decode=True).load(CPU)
    vae, side = tiles.network.pipeline.vae, 4 * tiles.network.codec.cell
    if policy.network.name in ("qwen_image", "sana"):  # whose config says nothing of tiles: they are of 256 and more
        assert vae.use_tiling
        vae.enable_tiling(side, side, side - tiles.network.codec.cell, side - tiles.network.codec.cell)
    whole, tiled = policy.decode(latents), tiles.decode(latents)
    assert whole.shape == tiled.shape and not torch.equal(whole, tiled)
    corner = latents[..., :4, :4]  # one tile
    assert torch.equal(policy.decode(corner), tiles.decode(corner))
    for pictures in (whole, tiled):
        assert torch.autograd.grad(pictures.sum(), latents)[0].abs().max() > 0


def test_a_scale_for_each_channel():
    mean, std = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([1.5, 0.7, 1.0, 1.2])
    vae = tiny_diffusers.vae(scaling_factor=0.5, latents_mean=mean.tolist(), latents_std=std.tolist())
    latents = noise(2).normal((4, 4, 4))
    with torch.no_grad():
        expected = vae.decode(latents * std.view(4, 1, 1) / 0.5 + mean.view(4, 1, 1)).sample
        pictures = Autoencoder(vae, "fp32", False).decode(latents)
    torch.testing.assert_close(pictures, (expected / 2 + 0.5).clamp(0, 1), atol=1e-6, rtol=0)


@with_videos
def test_latents_of_pictures_are_what_decoding_undoes(policy, monkeypatch):
    """With an autoencoder that does nothing after its own encoder, a picture comes back through scale and shift."""
    network = policy.network
    vae, shape = network.pipeline.vae, policy.decode(noise(1).normal(network.shape)).shape[1:]
    pictures = list(torch.rand(2, *shape, generator=torch.Generator().manual_seed(1)))
    told = []

    def encode(x, return_dict):
        told.append(x)
        return (vae.__class__.encode(vae, x, return_dict=return_dict)[0],)

    monkeypatch.setattr(vae, "encode", encode)
    latents = policy.latents(pictures)
    assert latents.shape == (2, *network.shape) and not latents.requires_grad
    seen = torch.cat(told) / 2 + 0.5
    still = seen.squeeze(2) if seen.dim() == 5 and len(shape) == 3 else seen
    torch.testing.assert_close(still.transpose(1, 2) if len(shape) == 4 else still, torch.stack(pictures))

    monkeypatch.setattr(vae, "decode", lambda z, return_dict: (z,))
    found = vae.__class__.encode(vae, torch.cat(told), return_dict=False)[0]
    raw = found if isinstance(found, torch.Tensor) else found.mode()
    raw = raw.squeeze(2) if network.name == "qwen_image" else raw.transpose(1, 2) if len(shape) == 4 else raw
    torch.testing.assert_close(policy.decode(latents), (raw / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


@with_videos
def test_pictures_of_any_size_are_framed(policy):
    shape = policy.decode(noise(1).normal(policy.network.shape)).shape[1:]
    film, (tall, wide) = len(shape) == 4, shape[-2:]
    large = torch.rand(3, tall, 3 * wide, generator=torch.Generator().manual_seed(1))
    large = large.expand(shape[0] + 2, -1, -1, -1) if film else large
    middle = large[: shape[0], ..., wide:-wide] if film else large[..., wide:-wide]
    torch.testing.assert_close(policy.latents([large]), policy.latents([middle]))
    gray = torch.full_like(middle, 0.3)
    larger = gray.repeat_interleave(2, -1).repeat_interleave(5, -2)
    torch.testing.assert_close(policy.latents([larger]), policy.latents([gray]), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"policy\.\w+: draws .* and was given"):
        policy.latents([large[0] if film else large.expand(5, -1, -1, -1)])


def test_a_decoder_of_another_kind():
    from diffusers import AutoencoderTiny

    with pytest.raises(ValueError, match="vae: a AutoencoderTiny; known are AutoencoderKL, AutoencoderDC"):
        Autoencoder(AutoencoderTiny(), "fp32", False)


def test_rows_decoded_at_once_do_not_matter(tiny, policy):
    p, plan = prompts(), LatentPlan(2, steps=2)
    few = tiny(decode_rows=2).load(CPU).sample(p, plan, noise(len(p)))
    torch.testing.assert_close(few.media, policy.sample(p, plan, noise(len(p))).media, atol=1e-5, rtol=0)
    rounded = tiny(decode_precision="bf16").load(CPU).sample(p, plan, noise(len(p)))
    assert torch.equal(rounded.final, few.final) and 0 < (rounded.media - few.media).abs().max() < 0.1
