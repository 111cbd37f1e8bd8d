"""Frames of videos: which are looked at, and how they are laid out."""

import pytest
import torch

from burnish.formulas.frames import is_video, pictures_of, spread, strip
from burnish.formulas.sentinel import statistics


@pytest.mark.parametrize(
    ("frames", "count", "found"),
    [
        (9, 1, [4]),
        (8, 1, [4]),
        (8, 2, [2, 6]),
        (8, 4, [1, 3, 5, 7]),
        (33, 3, [5, 16, 27]),
        (3, 8, [0, 1, 2]),
        (1, 4, [0]),
    ],
)
def test_frames_are_the_middles_of_equal_parts(frames, count, found):
    assert spread(frames, count) == found


def test_videos_are_rows_of_pictures():
    videos = torch.rand(2, 3, 3, 4, 5)
    pictures = videos[0]
    assert is_video(videos) and not is_video(pictures)
    assert torch.equal(pictures_of(videos)[4], videos[1, 1]) and pictures_of(pictures) is pictures
    side_by_side = strip(videos)
    assert side_by_side.shape == (2, 3, 4, 15) and torch.equal(side_by_side[1, :, :, 10:], videos[1, 2])


def test_statistics_are_means_over_frames_and_videos_differ_as_wholes():
    videos = torch.rand(4, 3, 3, 16, 16)
    group = torch.tensor([0, 0, 1, 1])
    found, frames = statistics(videos, group), statistics(videos.flatten(0, 1), group.repeat_interleave(3))
    for name in set(found) - {"diversity"}:
        assert found[name] == pytest.approx(frames[name])
    apart = [(videos[a] - videos[b]).square().mean().sqrt() for a, b in ((0, 1), (2, 3))]
    assert found["diversity"] == pytest.approx(float(sum(apart)) / 2)
