"""A reward of pictures, asked about frames of videos."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from burnish.core import Reward, Scorer
from burnish.rewards.frames import Frames
from burnish.rewards.tiers import Tiers
from burnish.rewards.weighted import Weighted
from burnish.types import Prompt, Scores

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Red(Reward):
    """Mean of the red channel, and the width of the picture. A picture that is darker than 0.1 cannot be scored."""

    differentiable: ClassVar[bool] = True

    def load(self, device: torch.device) -> Scorer:
        return _Red()


class _Red(Scorer):
    def __call__(self, images, prompts) -> Scores:
        assert images.dim() == 4 and len(images) == len(prompts)
        red, wide = images[:, 0].mean((1, 2)), images.new_full((len(images),), images.shape[-1])
        scores = Scores.of(
            "red", torch.where(red < 0.1, torch.nan, red), ["dark" if r < 0.1 else p.text for r, p in zip(red, prompts)]
        )
        return Scores(scores.total, {**scores.parts, "wide": wide}, scores.valid, scores.notes)


def videos(*levels):
    """One video per row of levels, a flat frame for each."""
    return torch.tensor(levels)[:, :, None, None, None].expand(-1, -1, 3, 4, 6)


PROMPTS = [Prompt("0", "one"), Prompt("1", "two")]
MEDIA = videos([0.2, 0.4, 0.6, 0.8], [0.5, 0.9, 0.05, 0.3])


def test_the_mean_over_frames_counts():
    found = Frames(Red()).load(CPU)(MEDIA[:1], PROMPTS[:1])
    assert found.total[0] == pytest.approx(0.5) and found.parts["wide"].tolist() == [6]
    assert found.notes == {"red": ("one",)}


def test_some_frames_are_spread_evenly_and_one_is_the_middle():
    assert Frames(Red(), count=2).load(CPU)(MEDIA, PROMPTS).total.tolist() == pytest.approx([0.6, 0.6])
    assert Frames(Red(), count=1).load(CPU)(MEDIA[:1], PROMPTS[:1]).total.item() == pytest.approx(0.6)


def test_a_video_with_a_frame_that_cannot_be_scored_is_invalid():
    found = Frames(Red()).load(CPU)(MEDIA, PROMPTS)
    assert found.valid.tolist() == [True, False] and found.total[1].isnan() and found.parts["red"][1].isnan()
    assert found.notes["red"] == ("one", "two; dark")


def test_a_strip_is_one_picture():
    found = Frames(Red(), join="strip").load(CPU)(MEDIA, PROMPTS)
    assert found.total.tolist() == pytest.approx([0.5, 0.4375]) and found.parts["wide"].tolist() == [24, 24]


def test_pictures_are_scored_as_they_are():
    pictures = MEDIA[:, 1]
    for join in ("mean", "strip"):
        found = Frames(Red(), join=join).load(CPU)(pictures, PROMPTS)
        torch.testing.assert_close(found.total, pictures[:, 0, 0, 0])


def test_the_gradient_reaches_the_frames_that_were_scored():
    media = MEDIA[:1].clone().requires_grad_()
    Frames(Red(), count=2).load(CPU)(media, PROMPTS[:1]).total.sum().backward()
    assert media.grad[0, [1, 3], 0] == pytest.approx(torch.full((2, 4, 6), 1 / 48))
    assert media.grad[0, [0, 2]].abs().max() == 0 and Frames(Red()).differentiable


def test_rewards_of_rewards_read_videos_if_all_inside_do():
    assert Frames(Red()).videos and not Red().videos and Tiers(Frames(Red())).videos and not Tiers(Red()).videos
    weights = {"a": 1.0, "b": 0.0}
    assert Weighted({"a": Frames(Red()), "b": Frames(Red())}, weights).videos
    assert not Weighted({"a": Frames(Red()), "b": Red()}, weights).videos


def test_a_count_of_none():
    with pytest.raises(ValueError, match=r"reward\.frames\.count: expected 1 or more, got 0"):
        Frames(Red(), count=0)
