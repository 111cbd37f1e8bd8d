"""Pictures whose statistics can be worked out on paper."""

from __future__ import annotations

import math

import pytest
import torch

from burnish.formulas.sentinel import (
    colour_entropy,
    contrast,
    edges,
    grid,
    group_diversity,
    luminance,
    pairwise_distance,
    statistics,
)


def flat(r: float, g: float, b: float, size: int = 8) -> torch.Tensor:
    return torch.tensor([r, g, b])[None, :, None, None].expand(1, 3, size, size).clone()


def test_luminance_weights():
    assert luminance(flat(1, 0, 0))[0, 0, 0] == pytest.approx(0.299)
    assert luminance(flat(0, 1, 0))[0, 0, 0] == pytest.approx(0.587)
    assert luminance(flat(1, 1, 1))[0, 0, 0] == pytest.approx(1)


def test_a_flat_grey_picture():
    s = statistics(flat(0.5, 0.5, 0.5), torch.tensor([0]))
    assert s.pop("brightness") == pytest.approx(0.5)
    assert math.isnan(s.pop("diversity"))  # a group of one has no diversity; it is not 0
    assert s == pytest.approx({"dark_share": 0, "contrast": 0, "edges": 0, "colour_entropy": 0, "grid": 0}, abs=1e-6)


def test_half_black_half_white():
    picture = flat(0, 0, 0)
    picture[..., 4:] = 1
    s = statistics(picture, torch.tensor([0]))
    assert s["brightness"] == pytest.approx(0.5)
    assert s["dark_share"] == pytest.approx(0.5)
    assert s["contrast"] == pytest.approx(0.5)
    assert s["colour_entropy"] == pytest.approx(1)  # two equal colours: one bit
    assert s["edges"] == pytest.approx((1 / 7 + 0) / 2)  # one of seven steps across is 1, none down


def test_colour_entropy_of_unequal_shares():
    picture = flat(0, 0, 0)
    picture[:, 0, :2] = 1  # a quarter is red
    expected = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert colour_entropy(picture)[0] == pytest.approx(expected)
    assert colour_entropy(flat(0.26, 0, 0))[0] == 0  # a new level is one more colour, not more of them


def test_statistics_of_each_picture_are_its_own():
    light = torch.stack([torch.zeros(8, 8), torch.arange(8.0)[None].expand(8, 8) / 7])
    assert contrast(light)[0] == 0
    assert contrast(light)[1] == pytest.approx(math.sqrt((8**2 - 1) / 12) / 7)  # a uniform ramp
    assert edges(light).tolist() == pytest.approx([0, (1 / 7 + 0) / 2])


@pytest.mark.parametrize("phase", [0, 3, 7])
def test_a_grid_at_the_cells_period_is_found_at_any_phase(phase):
    light = torch.zeros(1, 64, 64)
    light[:, :, phase::16] = 1
    light[:, :, phase + 1 :: 16] = 1  # lines two pixels wide every 16
    assert grid(light, 16) > 0.9
    assert grid(light, 24) < 0.3


def test_thin_lines_have_a_known_length():
    # Cells alternate every 8 pixels: each edge sits between 7 and 8 of its cell, so all phases are equal.
    light = ((torch.arange(64) // 8) % 2).float()[None, None].expand(2, 64, 64)
    assert grid(light, 8) == pytest.approx(1)
    assert grid(light.mT, 8) == pytest.approx(1)  # down as well as across


def test_edges_anywhere_are_no_grid():
    light = torch.rand(64, 64, 64, generator=torch.Generator().manual_seed(0))
    assert grid(light, 8) < 0.02


def test_a_cell_of_one_pixel_is_refused():
    with pytest.raises(ValueError, match="2 pixels or wider"):
        grid(torch.zeros(1, 8, 8), 1)


def test_diversity_looks_within_groups_only():
    black, white = flat(0, 0, 0), flat(1, 1, 1)
    images = torch.cat([black, black, white, white])
    assert group_diversity(images, torch.tensor([0, 0, 1, 1])) == 0
    assert group_diversity(images, torch.tensor([0, 1, 0, 1])) == pytest.approx(1)
    assert group_diversity(images, torch.tensor([0, 1, 0, 2])) == pytest.approx(1)  # groups of one are left out
    assert group_diversity(images, torch.tensor([0, 0, 0, 0])) == pytest.approx(4 / 6)  # four of six pairs differ


def test_pairwise_distance_by_hand():
    rows = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    far = 5 / math.sqrt(2)
    assert pairwise_distance(rows).tolist() == pytest.approx([far / 2, far, far / 2])
    assert pairwise_distance(rows[:1]).isnan().all()
