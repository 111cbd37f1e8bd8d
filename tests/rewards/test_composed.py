"""Rewards made of rewards, and those without a tower: tiers, sums, JPEG sizes, classifiers, quality."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from burnish.core import Reward, Scorer
from burnish.formulas.tiers import Steps, step_values
from burnish.models.pixels import random_crops, to_bytes
from burnish.rewards.attribute_match import AttributeMatch
from burnish.rewards.clip_iqa import ClipIQA
from burnish.rewards.clip_score import ClipScore
from burnish.rewards.image_classifier import ImageClassifier
from burnish.rewards.jpeg import Jpeg
from burnish.rewards.maniqa import Maniqa, _ManiqaScorer
from burnish.rewards.tiers import Tiers
from burnish.rewards.weighted import Weighted
from burnish.types import Prompt, Scores


@dataclass(frozen=True)
class Brightness(Reward):
    """Mean of one channel. A reward as small as they come."""

    channel: int = 0
    differentiable: ClassVar[bool] = True

    def load(self, device: torch.device) -> Scorer:
        return _Brightness(self.channel)


class _Brightness(Scorer):
    def __init__(self, channel: int) -> None:
        self.calls = 0
        self._channel = channel

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        self.calls += 1
        values = images[:, self._channel].mean((1, 2))
        return Scores.of("brightness", values, ["bright" if v > 0.5 else "" for v in values.tolist()])


def flat(*levels):
    """One flat picture per row of levels (red, green, blue)."""
    return torch.tensor(levels, dtype=torch.float32)[:, :, None, None].expand(-1, 3, 4, 4).clone()


# tiers


@pytest.mark.parametrize(
    ("score", "value"),
    [
        (-0.2, -1),
        (-1e-6, -1),
        (0.0, 0.5),
        (0.29, 0.5),
        (0.3, 1),
        (0.59, 1),
        (0.6, 1.5),
        (0.99, 1.5),
        (1.0, 1.5),
        (7, 1.5),
    ],
)
def test_edges_are_those_of_ar_grpo(score, value):
    assert step_values(torch.tensor([float(score)]), Steps()).tolist() == [value]


def test_one_more_value_than_cuts_has_a_step_above_the_last():
    scores = torch.tensor([-1.0, 0.0, 0.5, 1.0, math.nan, math.inf])
    out = step_values(scores, Steps((0.0, 1.0), (1.0, 2.0, 3.0)))
    torch.testing.assert_close(out, torch.tensor([1.0, 2.0, 2.0, 3.0, math.nan, 3.0]), equal_nan=True)


@pytest.mark.parametrize(
    ("cuts", "values", "said"),
    [((), (1.0,), "ascending"), ((1.0, 0.0), (1.0, 2.0), "ascending"), ((0.0, 1.0), (1.0,), "2 or 3 values, got 1"),
     ((0.0,), (1.0, 2.0, 3.0), "1 or 2 values"), ((0.0,), (math.nan,), "finite")],
)  # fmt: skip
def test_steps_that_make_no_sense_are_a_sentence(cuts, values, said):
    for make in (lambda: Steps(cuts, values), lambda: Tiers(Brightness(), cuts, values)):
        with pytest.raises(ValueError, match=said):
            make()


def test_tiers_map_a_reward_and_keep_its_raw_part(cpu, prompts):
    images = flat((0.1, 0, 0), (0.5, 0, 0), (0.95, 0, 0), (math.nan, 0, 0))
    scores = Tiers(Brightness()).load(cpu)(images, prompts("", "", "", ""))
    torch.testing.assert_close(scores.total, torch.tensor([0.5, 1.0, 1.5, math.nan]), equal_nan=True)
    assert scores.valid.tolist() == [True, True, True, False]
    torch.testing.assert_close(scores.parts["brightness"][:3], torch.tensor([0.1, 0.5, 0.95]))
    assert not Tiers(Brightness()).differentiable


# weighted


def test_raw_and_tiered_are_added_from_one_forward(cpu, prompts):
    """AR-GRPO: 5 x cosine + tier(cosine)."""
    reward = Weighted({"clip": Brightness()}, {"clip": 5.0, "clip_tier": 1.0}, {"clip": Steps()})
    scorer = reward.load(cpu)
    scores = scorer(flat((0.2, 0, 0), (0.4, 0, 0)), prompts("", ""))
    torch.testing.assert_close(scores.total, torch.tensor([5 * 0.2 + 0.5, 5 * 0.4 + 1.0]))
    torch.testing.assert_close(scores.parts["clip"], torch.tensor([0.2, 0.4]))
    torch.testing.assert_close(scores.parts["clip_tier"], torch.tensor([0.5, 1.0]))
    assert scorer._scorers["clip"].calls == 1
    assert set(scores.parts) == set(reward.weights)


def test_a_real_tower_runs_once_for_raw_and_tiered(clip_folder, cpu, pictures, prompts):
    scorer = Weighted({"clip": ClipScore(str(clip_folder))}, {"clip": 5.0, "clip_tier": 1.0}, {"clip": Steps()}).load(
        cpu
    )
    runs = []
    scorer._scorers["clip"].towers.model.vision_model.register_forward_hook(lambda *_: runs.append(1))
    scorer(pictures(4), prompts("a", "a", "b", "b"))
    assert len(runs) == 1


def test_total_is_the_weighted_sum_of_the_parts(cpu, prompts):
    reward = Weighted(
        {"r": Brightness(0), "g": Brightness(1), "seen": Brightness(2)}, {"r": 2.0, "g": -1.0, "seen": 0.0}
    )
    scores = reward.load(cpu)(flat((0.5, 0.2, 0.9), (0.1, 0.8, 0.3)), prompts("", ""))
    torch.testing.assert_close(scores.total, torch.tensor([0.8, -0.6]))
    torch.testing.assert_close(scores.parts["seen"], torch.tensor([0.9, 0.3]))
    assert scores.notes["g"] == ("", "bright")


def test_an_invalid_part_that_counts_makes_the_sample_invalid(cpu, prompts):
    images = flat((0.5, 0.5, 0.5), (math.nan, 0.5, 0.5), (0.5, 0.5, math.nan))
    parts = {"r": Brightness(0), "g": Brightness(1), "seen": Brightness(2)}
    reward = Weighted(parts, {"r": 0.0, "r_tier": 1.0, "g": 1.0, "seen": 0.0}, {"r": Steps()})
    scores = reward.load(cpu)(images, prompts("", "", ""))
    assert scores.valid.tolist() == [True, False, True]  # the last is broken only where nothing is counted
    torch.testing.assert_close(scores.total, torch.tensor([1.5, math.nan, 1.5]), equal_nan=True)
    assert scores.parts["seen"].isnan().tolist() == [False, False, True]


def test_the_gradient_is_that_of_the_raw_parts(cpu, prompts):
    reward = Weighted({"r": Brightness(0), "g": Brightness(1)}, {"r": 3.0, "r_tier": 9.0, "g": 1.0}, {"r": Steps()})
    assert reward.differentiable
    images = flat((0.5, 0.5, 0.5)).requires_grad_()
    reward.load(cpu)(images, prompts("")).total.sum().backward()
    torch.testing.assert_close(images.grad[0, :, 0, 0], torch.tensor([3.0, 1.0, 0.0]) / 16)


def test_differentiable_only_if_everything_that_counts_is():
    assert not Weighted({"a": Brightness(), "j": Jpeg()}, {"a": 1.0, "j": 1.0}).differentiable
    assert Weighted({"a": Brightness(), "j": Jpeg()}, {"a": 1.0, "j": 0.0}).differentiable
    assert not Weighted({"a": Brightness()}, {"a": 0.0, "a_tier": 1.0}, {"a": Steps()}).differentiable


@pytest.mark.parametrize(
    ("parts", "weights", "tiers", "said"),
    [
        ({"a": Brightness()}, {"b": 1.0}, {}, r"parts \['a'\] and weights \['b'\] must name the same rewards"),
        ({"a": Brightness()}, {"a": 1.0}, {"a": Steps()}, r"parts \['a', 'a_tier'\] and weights \['a'\]"),
        ({"a": Brightness()}, {"a": 1.0}, {"b": Steps()}, r"tiers \['b'\] name no part"),
        (
            {"a": Brightness(), "a_tier": Brightness()},
            {"a": 1.0, "a_tier": 1.0},
            {"a": Steps()},
            "both a part and a tier",
        ),
        ({}, {}, {}, "at least one reward"),
    ],
)
def test_names_that_do_not_match_are_a_sentence(parts, weights, tiers, said):
    with pytest.raises(ValueError, match=f"reward.weighted.*{said}"):
        Weighted(parts, weights, tiers)


# JPEG


@pytest.mark.parametrize("quality", [10, 95])
def test_jpeg_is_the_size_of_the_file(tmp_path, cpu, pictures, prompts, quality):
    images = torch.cat([pictures(2, 33, 20), torch.full((1, 3, 33, 20), 0.5)])
    sizes = []
    for i, levels in enumerate(to_bytes(images)):
        Image.fromarray(levels).save(tmp_path / f"{i}.jpg", quality=quality)
        sizes.append((tmp_path / f"{i}.jpg").stat().st_size)
    smaller = Jpeg(quality).load(cpu)(images, prompts("", "", "")).total
    larger = Jpeg(quality, sign=1).load(cpu)(images, prompts("", "", "")).total
    assert (larger * 1000).round().int().tolist() == sizes
    assert torch.equal(smaller, -larger)
    assert sizes[2] < sizes[0]


def test_jpeg_of_a_broken_picture_is_invalid(cpu, pictures, prompts):
    images = pictures(2)
    images[0, 1, 2, 3] = math.nan
    scores = Jpeg().load(cpu)(images, prompts("", ""))
    assert scores.valid.tolist() == [False, True]
    assert scores.notes["jpeg"] == ("the picture holds NaN or infinity", "")


@pytest.mark.parametrize("settings", [{"quality": 0}, {"quality": 96}, {"sign": 0}])
def test_jpeg_settings_out_of_range_are_a_sentence(settings):
    with pytest.raises(ValueError, match=r"reward\.jpeg"):
        Jpeg(**settings)


# classifier


@pytest.fixture
def classifier(tmp_path):
    """A ResNet for three classes (or one) in the real format."""

    def make(labels, **settings):
        torch.manual_seed(0)
        config = ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=len(labels),
            id2label=dict(enumerate(labels)), label2id={name: i for i, name in enumerate(labels)}, **settings,
        )  # fmt: skip
        model = ResNetForImageClassification(config).eval()
        model.save_pretrained(tmp_path)
        prepared = {"do_resize": True, "size": {"height": 32, "width": 32}, "resample": 2, "image_processor_type": "X"}
        prepared |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(prepared))
        return model, str(tmp_path)

    return make


def test_classifier_outputs_are_those_of_the_model(classifier, cpu, pictures, prompts):
    model, folder = classifier(["fake", "real", "odd"])
    images, asked = pictures(5, 32, 32), prompts(*"abcde")
    with torch.no_grad():
        logits = model(images * 2 - 1).logits
    for output, wanted in (("probability", logits.softmax(-1)[:, 1]), ("logit", logits[:, 1]), ("value", logits[:, 1])):
        for label in ("real", 1):
            scores = ImageClassifier(folder, label, output, batch=2).load(cpu)(images, asked)
            torch.testing.assert_close(scores.total, wanted, atol=1e-5, rtol=1e-5)
    images = images.requires_grad_()
    ImageClassifier(folder, "real").load(cpu)(images, asked).total[2].backward()
    assert images.grad[2].abs().sum() > 0 and images.grad[0].abs().sum() == 0


@pytest.mark.parametrize("labels", [["good"], ["good", "sharp"]])
def test_outputs_that_may_hold_at_once_are_each_a_sigmoid(classifier, cpu, pictures, prompts, labels):
    model, folder = classifier(labels, problem_type="multi_label_classification" if len(labels) > 1 else None)
    with torch.no_grad():
        logit = model(pictures(2, 32, 32) * 2 - 1).logits[:, 0]
    scores = ImageClassifier(folder, "good").load(cpu)(pictures(2, 32, 32), prompts("", ""))
    torch.testing.assert_close(scores.total, logit.sigmoid(), atol=1e-5, rtol=1e-5)


def test_a_label_the_model_lacks_is_a_sentence(classifier, cpu):
    _, folder = classifier(["fake", "real", "odd"])
    with pytest.raises(ValueError, match=r"no label 'reel'; did you mean 'real'\? \(choices: fake, odd, real\)"):
        ImageClassifier(folder, "reel").load(cpu)
    with pytest.raises(ValueError, match="3 is not one of the model's 3 outputs"):
        ImageClassifier(folder, 3).load(cpu)


def test_attributes_that_agree_are_counted(classifier, cpu, pictures):
    """Against the model's own outputs: the released share is over all labels, the other over those asked for."""
    model, folder = classifier(["hair", "ink", "MEL"], problem_type="multi_label_classification")
    images = pictures(6, 32, 32)
    asked = [[], ["hair"], ["ink", "MEL"], ["hair", "ink", "MEL"], ["MEL"], ["ink"]]
    prompts = [Prompt(str(i), "", {"attributes": names}) for i, names in enumerate(asked)]
    with torch.no_grad():
        logits = model(images * 2 - 1).logits
    cut = float(logits.median()) + 1e-3  # so that some are there and some are not
    there = logits > cut
    share = 1 / (1 + math.exp(-cut))
    for count in ("all", "requested"):
        scores = AttributeMatch(folder, count=count, threshold=share, batch=4).load(cpu)(images, prompts)
        for i, names in enumerate(asked):
            shown = {name for name, yes in zip(("hair", "ink", "MEL"), there[i].tolist(), strict=True) if yes}
            if count == "all":
                agreed = 3 - len(shown ^ set(names))
                assert float(scores.total[i]) == pytest.approx(agreed / 3)
            elif names:
                assert float(scores.total[i]) == pytest.approx(len(shown & set(names)) / len(names))
            else:
                assert not scores.valid[i] and scores.notes["attribute_match"][i] == "the prompt asks for no attribute"


def test_what_cannot_be_matched_is_not_scored(classifier, cpu, pictures):
    _, folder = classifier(["hair", "ink"], problem_type="multi_label_classification")
    images = pictures(4, 32, 32)
    images[3] = torch.nan
    facts = [{}, {"attributes": "hair"}, {"attributes": ["hiar"]}, {"attributes": ["hair"]}]
    scores = AttributeMatch(folder).load(cpu)(images, [Prompt(str(i), "", f) for i, f in enumerate(facts)])
    assert not scores.valid.any()
    notes = scores.notes["attribute_match"]
    assert notes[0] == notes[1] == "the prompt's facts do not list 'attributes'"
    assert notes[2] == "the classifier has no label 'hiar' (choices: hair, ink)"
    assert notes[3] == "the classifier's answer is not finite"
    with pytest.raises(ValueError, match=r"threshold: expected above 0 and below 1, got 1\.0"):
        AttributeMatch(folder, threshold=1.0)


# quality through pyiqa

pyiqa_missing = importlib.util.find_spec("pyiqa") is None


@pytest.mark.skipif(not pyiqa_missing, reason="pyiqa is installed")
@pytest.mark.parametrize("reward", [Maniqa(), ClipIQA()])
def test_without_pyiqa_the_extra_is_named(reward, cpu):
    with pytest.raises(ValueError, match=r"needs pyiqa .*pip install 'burnish\[quality\]'"):
        reward.load(cpu)


@pytest.mark.slow
@pytest.mark.skipif(pyiqa_missing, reason="needs pyiqa: pip install 'burnish[quality]'")
@pytest.mark.parametrize("reward", [Maniqa(crops=2), ClipIQA()])
def test_released_quality_metrics_score_pictures(reward, cpu, pictures, prompts):
    scores = reward.load(cpu)(pictures(2, 224, 256), prompts("", ""))
    assert scores.valid.all() and ((scores.total > 0) & (scores.total < 1)).all()


def test_maniqa_is_the_mean_over_its_crops_in_bounded_batches(cpu, pictures, prompts):
    """With a network that gives the mean of a crop, the score is known. The network itself is pyiqa's."""
    sizes = []

    def mean(crops):
        sizes.append(len(crops))
        return crops.mean((1, 2, 3), keepdim=True).flatten(1)

    settings = Maniqa(crops=5, side=8, seed=3, batch=4)
    images = pictures(3, 20, 24)
    scores = _ManiqaScorer(settings, mean, cpu)(images, prompts("", "", ""))
    torch.testing.assert_close(scores.total, random_crops(images, 5, 8, 3).mean((1, 2, 3, 4)))
    assert sizes == [4, 4, 4, 3]
    moved = _ManiqaScorer(settings, mean, cpu)(images[[2, 0, 1]], prompts("", "", ""))
    torch.testing.assert_close(moved.total, scores.total[[2, 0, 1]])
