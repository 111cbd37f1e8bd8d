"""The suite against references that are known: the policy itself, and something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toy_references
from toys import ToyRaster

from burnish.suites.distribution import Distribution
from burnish.types import TokenPlan
from burnish.worlds.scenes.reference import pictures
from burnish.worlds.scenes.verify import verify


@pytest.fixture(scope="module")
def policy():
    return ToyRaster().load(torch.device("cpu"))


@pytest.fixture
def suite(clip: str) -> Distribution:
    return Distribution("toys:prompts", "toy_references:itself", clip, count=24, rows=16)


def test_a_policy_is_at_no_distance_from_itself(policy, suite):
    found = suite.run(policy, TokenPlan(), None, seed=5)
    assert found.metrics["fid"] == pytest.approx(0, abs=1e-6)
    assert found.metrics["precision"] == found.metrics["recall"] == 1
    assert len(found.prompts) == len(found.media) == 24
    assert set(found.values) == {"precision", "classified"}


def test_another_distribution_is_far(policy, suite):
    near = suite.run(policy, TokenPlan(), None, seed=6).metrics
    far = replace(suite, reference="toy_references:negative").run(policy, TokenPlan(), None, seed=6).metrics
    assert far["fid"] > 3 * near["fid"] > 0
    assert far["precision"] < near["precision"]


def test_rows_change_nothing(policy, suite):
    one, other = (replace(suite, rows=rows).run(policy, TokenPlan(), None, seed=6) for rows in (5, 24))
    assert torch.equal(one.media, other.media)
    assert one.metrics == pytest.approx(other.metrics, rel=1e-4)


def test_the_reference_is_made_once(policy, suite):
    mine = replace(suite, count=25)
    toy_references.CALLS.clear()
    mine.run(policy, TokenPlan(), None, seed=1)
    mine.run(policy, TokenPlan(), None, seed=2)
    assert toy_references.CALLS == [25]


def test_class_probabilities(policy, suite):
    found = suite.run(policy, TokenPlan(), None, seed=6)
    assert 1 <= found.metrics["inception_score"] <= 3  # three prompts
    assert found.metrics["classified"] == pytest.approx(float(found.values["classified"].mean()))


def test_a_folder_of_pictures(policy, suite, tmp_path: Path):
    from PIL import Image

    media = toy_references.itself(suite.questions(), 0)
    for i, picture in enumerate(media):
        levels = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(levels).save(tmp_path / f"{i:03d}.png")
    found = replace(suite, reference=str(tmp_path)).run(policy, TokenPlan(), None, seed=5).metrics
    assert found["fid"] == pytest.approx(0, abs=1e-3)  # 8 bits round
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"x\.png is not a picture"):
        replace(suite, reference=str(tmp_path), count=26).run(policy, TokenPlan(), None, seed=5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"count": 4}, "draw 5 or more"),
        ({"neighbours": 0}, "neighbours: expected 1 or more"),
        ({"template": "photo"}, r"lacks \{text\}"),
        ({"reference": "toy_references:nothing"}, "has no function 'nothing'"),
        ({"reference": "no_such_module:f"}, "cannot import 'no_such_module'"),
        ({"reference": "toy_references:gray"}, r"must return a tensor \(n, 3, h, w\), got \(24, 1, 4, 4\)"),
        ({"reference": "toy_references:few"}, "gives 3 pictures"),
        ({"reference": "nowhere"}, "neither a folder of pictures nor module:function"),
    ],
)
def test_mistakes_get_a_sentence(policy, suite, change, said):
    with pytest.raises(ValueError, match=said):
        replace(suite, **change).run(policy, TokenPlan(), None, seed=5)


def test_scenes_references_are_true_and_keyed():
    from burnish.worlds.scenes.classes import class_prompts

    asked = class_prompts()
    made = pictures(asked, 0)
    assert verify(made, asked).right.float().mean() > 0.95
    assert torch.equal(pictures(asked[:4], 0), made[:4])
    assert not torch.equal(pictures(asked[:4], 1), made[:4])
