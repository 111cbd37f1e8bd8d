"""Rewards that stand on CLIP: known cosines, the caching of texts, conversion of open_clip weights."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from burnish.models.clip_towers import load_towers
from burnish.models.open_clip import clip_from_open_clip
from burnish.models.pixels import to_bytes
from burnish.rewards.aesthetic import Aesthetic
from burnish.rewards.clip_iqa import ClipIQA
from burnish.rewards.clip_score import ClipScore
from burnish.rewards.hps import HPS
from burnish.rewards.pickscore import PickScore

TEXTS = ("a red circle", "two blue square", "a red circle", "green square left of circle", "a red circle")


def rewards(folder, tmp_path):
    """Every reward of this file, small."""
    torch.save(head_state(12), tmp_path / "head.pth")
    torch.save({"state_dict": open_clip_state()}, tmp_path / "hps.pt")
    return [
        ClipScore(weights=str(folder), batch=2),
        PickScore(weights=str(folder), processor="", batch=2),
        Aesthetic(weights=str(folder), head=str(tmp_path / "head.pth"), batch=2),
        ClipIQA(str(folder), (("red", "blue"), ("two", "three")), batch=2),
        HPS(str(tmp_path / "hps.pt"), str(folder), vision_heads=2, text_heads=2, batch=2),
    ]


def head_state(width, widths=(10, 6, 1)):
    """Weights as the released head names them: dropouts hold numbers 1 and 3."""
    generator, state = torch.Generator().manual_seed(3), {}
    for number, size in zip((0, 2, 4), widths, strict=True):
        state[f"layers.{number}.weight"] = torch.randn(size, width, generator=generator)
        state[f"layers.{number}.bias"] = torch.randn(size, generator=generator)
        width = size
    return state


def test_cosine_is_that_of_known_vectors(tmp_path, save, pictures, prompts, cpu):
    """With projections of rank 1 every embedding is a multiple of a vector we choose."""
    model = save(tmp_path)
    u, v = torch.zeros(12), torch.zeros(12)
    u[0], v[:2] = 1.0, torch.tensor([3.0, 4.0])
    with torch.no_grad():
        model.visual_projection.weight.copy_(torch.outer(u, torch.randn(16)))
        model.text_projection.weight.copy_(torch.outer(v, torch.randn(16)))
    model.save_pretrained(tmp_path)
    scores = ClipScore(str(tmp_path)).load(cpu)(pictures(5), prompts(*TEXTS))
    torch.testing.assert_close(scores.total.abs(), torch.full((5,), 0.6))  # 3 / 5; the sign is the multiple's
    assert scores.valid.all()
    scaled = ClipScore(str(tmp_path), scale=2.5).load(cpu)(pictures(5), prompts(*TEXTS))
    torch.testing.assert_close(scaled.total, 2.5 * scores.total)


def test_clip_score_is_that_of_transformers(clip_folder, pictures, prompts, cpu):
    """The whole way through transformers' processor, tokenizer and model; 32x32 pictures are not resized."""
    model, images = CLIPModel.from_pretrained(clip_folder), pictures(5, 32, 32)
    processor = CLIPImageProcessor.from_pretrained(clip_folder)
    tokens = AutoTokenizer.from_pretrained(clip_folder)(list(TEXTS), padding=True, return_tensors="pt")
    pixels = processor(images=list(to_bytes(images)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        out = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    cosine = out.logits_per_image.diagonal() / model.logit_scale.exp()
    ours = ClipScore(str(clip_folder)).load(cpu)(images, prompts(*TEXTS)).total
    torch.testing.assert_close(ours, cosine, atol=1e-6, rtol=1e-5)
    pick = PickScore(str(clip_folder), processor="").load(cpu)(images, prompts(*TEXTS)).total
    torch.testing.assert_close(pick, out.logits_per_image.diagonal() / 26, atol=1e-6, rtol=1e-5)


def test_template_wraps_the_prompt_even_with_braces(clip_folder, pictures, prompts, cpu):
    plain, templated = ClipScore(str(clip_folder)), ClipScore(str(clip_folder), template="a photo of {text}")
    wanted = plain.load(cpu)(pictures(1), prompts("a photo of red {circle}")).total
    torch.testing.assert_close(templated.load(cpu)(pictures(1), prompts("red {circle}")).total, wanted)
    with pytest.raises(ValueError, match=r"template.*lacks \{text\}"):
        ClipScore(template="a photo")


@pytest.mark.parametrize("which", range(5))
def test_laws_of_a_reward(clip_folder, tmp_path, pictures, prompts, cpu, which):
    """Permuting samples permutes scores, and a gradient flows where it is asked for, to its own picture."""
    reward = rewards(clip_folder, tmp_path)[which]
    scorer, images, asked = reward.load(cpu), pictures(5), prompts(*TEXTS)
    scores = scorer(images, asked)
    assert scores.total.shape == (5,) and scores.valid.all() and not scores.total.requires_grad
    assert scores.total.std() > 1e-4
    order = [3, 0, 4, 2, 1]
    moved = scorer(images[order], tuple(asked[i] for i in order))
    torch.testing.assert_close(moved.total, scores.total[order], atol=1e-5, rtol=1e-4)
    assert reward.differentiable
    images = images.clone().requires_grad_()
    scorer(images, asked).total[1].backward()
    assert images.grad[1].abs().sum() > 0 and images.grad[[0, 2, 3, 4]].abs().sum() == 0
    torch.testing.assert_close(scorer(images.detach(), asked).total, scores.total)
    with torch.no_grad():
        assert not scorer(images, asked).total.requires_grad


def test_the_gradient_is_that_of_finite_differences(clip_folder, prompts, cpu):
    scorer = ClipScore(str(clip_folder)).load(cpu)
    scorer.towers.model.double()
    images = 0.3 + 0.4 * torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    scorer(images, prompts("a red circle")).total.backward()
    step = 2e-3 * images.grad.sign()
    up, down = (scorer(images.detach() + s, prompts("a red circle")).total for s in (step, -step))
    assert (up - down).item() == pytest.approx(2 * (images.grad * step).sum().item(), rel=0.02)


def test_a_broken_picture_is_invalid_and_alone(clip_folder, tmp_path, pictures, prompts, cpu):
    images = pictures(3)
    images[1, 0, 20, 20] = math.nan
    for reward in rewards(clip_folder, tmp_path):
        scores = reward.load(cpu)(images, prompts("a", "b", "c"))
        assert scores.valid.tolist() == [True, False, True], reward
        assert scores.total.isnan().tolist() == [False, True, False]


def test_distinct_texts_are_encoded_once_and_remembered(clip_folder, pictures, prompts, cpu):
    scorer = ClipScore(str(clip_folder), batch=64).load(cpu)
    seen = []
    scorer.towers.model.text_model.register_forward_hook(lambda _m, _a, out: seen.append(len(out.pooler_output)))
    first = scorer(pictures(5), prompts(*TEXTS)).total
    assert seen == [1, 1, 1]
    torch.testing.assert_close(scorer(pictures(5), prompts(*TEXTS)).total, first)
    scorer(pictures(1), prompts("a blue circle"))
    assert seen == [1, 1, 1, 1]


def test_a_text_has_the_same_vector_to_the_bit_whichever_texts_it_is_asked_for_with(clip_folder, cpu):
    """A resumed run asks for texts in other company than one that was never stopped."""
    more = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "square")]
    texts = [*TEXTS, *more, "two red squares and a blue circle"]
    together = load_towers(str(clip_folder), "", "x", cpu, "float32", batch=64).texts(texts)
    fresh = load_towers(str(clip_folder), "", "x", cpu, "float32", batch=64)
    alone = torch.cat([fresh.texts([text]) for text in reversed(texts)]).flip(0)
    assert torch.equal(alone, together)
    torch.testing.assert_close(alone.norm(dim=-1), torch.ones(len(texts)))


def test_long_texts_are_cut(clip_folder, cpu):
    towers = load_towers(str(clip_folder), "", "x", cpu, "float32", batch=1)
    assert towers.texts(["red " * 100]).isfinite().all()


def test_half_precision_weights_stay_close(clip_folder, pictures, prompts, cpu):
    full = ClipScore(str(clip_folder)).load(cpu)(pictures(3), prompts("a", "two", "red")).total
    half = ClipScore(str(clip_folder), dtype="bfloat16").load(cpu)(pictures(3), prompts("a", "two", "red")).total
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.05, rtol=0)


def test_aesthetic_is_the_head_on_the_unit_vector(clip_folder, tmp_path, pictures, prompts, cpu):
    state = head_state(12)
    torch.save(state, tmp_path / "head.pth")
    scorer = Aesthetic(str(clip_folder), str(tmp_path / "head.pth")).load(cpu)
    images = pictures(3, 32, 32)
    x = scorer.towers.pictures(images)
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(3))
    for i in (0, 2, 4):  # no non-linearity between
        x = x @ state[f"layers.{i}.weight"].T + state[f"layers.{i}.bias"]
    torch.testing.assert_close(scorer(images, prompts("", "", "")).total, x[:, 0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("layers.2.bias"), "layers.2.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra"),
        (lambda s: s.update({"layers.2.weight": torch.zeros(6, 9)}), r"layers.2.weight.*expected \(6, 10\)"),
        (
            lambda s: s.update({"layers.4.weight": torch.zeros(2, 6), "layers.4.bias": torch.zeros(2)}),
            "layers.4.weight",
        ),
    ],
)
def test_a_head_that_does_not_fit_is_a_sentence(clip_folder, tmp_path, cpu, change, said):
    state = head_state(12)
    change(state)
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=rf"reward.aesthetic.head.*{said}"):
        Aesthetic(str(clip_folder), str(tmp_path / "head.pth")).load(cpu)


def test_clip_iqa_is_the_softmax_over_opposites(clip_folder, pictures, prompts, cpu):
    pairs = (("red", "blue"), ("two", "three"))
    scores = ClipIQA(str(clip_folder), pairs).load(cpu)(pictures(2), prompts("", "")).total
    towers = load_towers(str(clip_folder), "", "x", cpu, "float32", 8)
    logits = towers.scale * towers.pictures(pictures(2)) @ towers.texts(["red", "blue", "two", "three"]).T
    by_hand = [(torch.sigmoid(a - b) + torch.sigmoid(c - d)) / 2 for a, b, c, d in logits]
    torch.testing.assert_close(scores, torch.stack(by_hand))


def test_weights_that_cannot_be_used_are_a_sentence(clip_folder, tmp_path, cpu):
    with pytest.raises(ValueError, match=r"reward.clip_score.weights: no CLIPModel could be read from"):
        ClipScore(str(tmp_path / "nowhere")).load(cpu)
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((clip_folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"reward.pickscore.weights: no CLIPModel could be read"):
        PickScore(str(tmp_path), "").load(cpu)
    with pytest.raises(ValueError, match=r"reward.hps.weights: no file 'nothing.pt'"):
        HPS("nothing.pt").load(cpu)
    (tmp_path / "hps.pt").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=r"reward.hps.weights: .*cannot be read as weights"):
        HPS(str(tmp_path / "hps.pt")).load(cpu)


def test_incomplete_weights_are_not_filled_with_random_numbers(clip_folder, tmp_path, cpu):
    from safetensors.torch import load_file, save_file

    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not a whole CLIPModel; missing weights: text_projection.weight"):
        ClipScore(str(tmp_path)).load(cpu)


# open_clip, written out from the architecture: pre-norm blocks of nn.MultiheadAttention and an exact GELU


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 3 * width), "c_proj": nn.Linear(3 * width, width)})

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Blocks(nn.Module):
    def __init__(self, width, heads, depth):
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])


class Visual(nn.Module):
    def __init__(self, width, heads, depth, patches, dim):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(patches + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Blocks(width, heads, depth)
        self.proj = nn.Parameter(torch.randn(width, dim))

    def forward(self, x):
        x = self.conv1(x).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            x = block(x)
        return F.normalize(self.ln_post(x[:, 0]) @ self.proj, dim=-1)


class OpenCLIP(nn.Module):
    def __init__(self, words=15, length=8, width=12, vision_width=20, dim=12):
        super().__init__()
        self.visual = Visual(vision_width, 2, 3, 16, dim)
        self.token_embedding = nn.Embedding(words, width)
        self.positional_embedding = nn.Parameter(torch.randn(length, width))
        self.transformer = Blocks(width, 2, 2)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, dim))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def encode_text(self, tokens):
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        mask = torch.full((tokens.shape[1],) * 2, -math.inf).triu(1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        x = self.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)]
        return F.normalize(x @ self.text_projection, dim=-1)


def open_clip(seed=0):
    torch.manual_seed(seed)
    model = OpenCLIP().eval()
    for parameter in model.parameters():
        if parameter.ndim:
            nn.init.normal_(parameter, std=0.4)
    return model


def open_clip_state():
    return open_clip().state_dict()


def test_converted_open_clip_weights_give_the_same_vectors():
    model, images = open_clip(), torch.randn(4, 3, 32, 32)
    # ends at the highest id (14), and zeros after it, as open_clip's tokenizer pads
    tokens = torch.tensor([[13, 2, 5, 14, 0, 0, 0, 0], [13, 1, 3, 4, 6, 7, 9, 14], [13, 14, 0, 0, 0, 0, 0, 0]])
    converted = clip_from_open_clip(model.state_dict(), 2, 2, "x").eval()
    with torch.no_grad():
        ours = F.normalize(converted.get_image_features(images).pooler_output, dim=-1)
        words = F.normalize(converted.get_text_features(tokens).pooler_output, dim=-1)
        assert (ours - model.visual(images)).abs().max() < 1e-5
        assert (words - model.encode_text(tokens)).abs().max() < 1e-5
    assert converted.logit_scale.item() == pytest.approx(4.6)


def test_hps_is_the_cosine_of_the_released_architecture(clip_folder, tmp_path, pictures, prompts, cpu):
    """The wrapper, the padding of a wide picture, tokens and the plain cosine, against the reference above."""
    model = open_clip()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "hps.pt")
    scorer = HPS(str(tmp_path / "hps.pt"), str(clip_folder), vision_heads=2, text_heads=2).load(cpu)
    images = pictures(2, 16, 32)
    square = F.pad(images, (0, 0, 8, 8))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    tokens = AutoTokenizer.from_pretrained(clip_folder)(
        ["a red circle", "two square"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        cosine = (model.visual((square - mean) / std) * model.encode_text(tokens["input_ids"])).sum(-1)
    scores = scorer(images, prompts("a red circle", "two square"))
    torch.testing.assert_close(scores.total, cosine, atol=1e-5, rtol=1e-5)


def test_an_old_causal_mask_is_no_weight():
    state = open_clip_state() | {"attn_mask": torch.zeros(8, 8)}
    clip_from_open_clip(state, 2, 2, "x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("visual.proj"), "missing visual.proj"),
        (lambda s: s.pop("visual.conv1.weight"), "missing visual.conv1.weight"),
        (lambda s: s.pop("transformer.resblocks.0.ln_1.bias"), "missing transformer.resblocks.0.ln_1.bias"),
        (lambda s: s.update(bert=torch.zeros(2)), "surplus bert"),
        (
            lambda s: s.update(text_projection=torch.zeros(11, 12)),
            r"text_projection is \(11, 12\), expected \(12, 12\)",
        ),
        (lambda s: s.update({"visual.conv1.weight": torch.zeros(3)}), "visual.conv1.weight is .3,., expected 4"),
        (
            lambda s: s.update({"transformer.resblocks.1.attn.in_proj_weight": torch.zeros(35, 12)}),
            r"transformer.resblocks.1.attn.in_proj_weight is \(35, 12\), expected \(36, 12\)",
        ),
    ],
)
def test_open_clip_weights_that_do_not_fit_are_named(change, said):
    state = open_clip_state()
    change(state)
    with pytest.raises(ValueError, match=rf"reward.hps.weights: .*{said}"):
        clip_from_open_clip(state, 2, 2, "reward.hps.weights")


def test_heads_that_do_not_divide_the_width_are_a_sentence():
    with pytest.raises(ValueError, match="vision_heads 3 does not divide the width 20"):
        clip_from_open_clip(open_clip_state(), 3, 2, "x")


def test_preprocessing_file_is_needed(clip_folder, tmp_path, cpu):
    for file in clip_folder.iterdir():
        if file.name != "preprocessor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert json.loads((clip_folder / "preprocessor_config.json").read_text())["size"]
    with pytest.raises(ValueError, match="does not say how pictures are prepared"):
        ClipScore(str(tmp_path)).load(cpu)
