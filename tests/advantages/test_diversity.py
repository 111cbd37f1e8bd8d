"""What every sample adds to the likeness of a set to a diverse one. Section 4 (W3) of the specification."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from laws import laws
from PIL import Image

from burnish.advantages.diversity_credit import DiversityCredit
from burnish.advantages.group_mean import GroupMean
from burnish.formulas.discrepancy import credits, discrepancy
from burnish.models.features import pixel_features
from burnish.types import Scores, take


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_by_hand():
    """Kernels of 0, 1, 2: 1, 1 and 27; with the reference 1: 1, 8 and 27. Without 0: 27 - 35."""
    samples, reference = column(0, 1, 2), column(1)
    assert float(discrepancy(samples, reference)) == pytest.approx(29 / 3 - 24)
    assert float(credits(samples, reference)[0]) == pytest.approx((27 - 35) - (29 / 3 - 24))
    two = column(1, 3)
    assert float(discrepancy(samples, two)) == pytest.approx(29 / 3 + 64 - 2 * (1 + 8 + 27 + 1 + 64 + 343) / 6)


@pytest.mark.parametrize("references", [0, 1, 6])
def test_the_closed_form_is_what_leaving_out_gives(references):
    random = torch.Generator().manual_seed(0)
    samples = torch.randn(7, 4, generator=random, dtype=torch.float64)
    reference = torch.randn(references, 4, generator=random, dtype=torch.float64)
    whole = discrepancy(samples, reference)
    left = [discrepancy(torch.cat([samples[:i], samples[i + 1 :]]), reference) for i in range(7)]
    torch.testing.assert_close(credits(samples, reference), torch.stack(left) - whole)


def test_the_lone_sample_of_the_rare_cluster_alone_has_credit():
    """A reference of two equal clusters, and five samples near one of them with one near the other."""
    random = torch.Generator().manual_seed(1)
    centres = torch.zeros(2, 8, dtype=torch.float64)
    centres[0, 0] = centres[1, 1] = 4.0

    def near(which: list[int]) -> torch.Tensor:
        return centres[which] + 0.1 * torch.randn(len(which), 8, generator=random, dtype=torch.float64)

    found = credits(near([0] * 5 + [1]), near([0, 1] * 10))
    assert found[5] > 0 and (found[:5] < 0).all()


def test_two_samples_have_none():
    assert credits(column(1, 2), column(3)).tolist() == [0.0, 0.0]


def test_credit_and_score_are_added(tmp_path):
    folder = tmp_path / "diverse"
    folder.mkdir()
    random = np.random.default_rng(0)
    levels = random.integers(0, 256, (5, 2, 2, 3), dtype=np.uint8)
    for number, level in enumerate(levels):
        Image.fromarray(level).save(folder / f"{number}.png")
    rollout = take(laws.drawn_steps(), torch.arange(8))
    media = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    rollout = replace(rollout, media=media)
    scores = Scores.of("one", torch.tensor([1.0, 2.0, float("nan"), 4.0, 0.0, 0.0, 1.0, 2.0], dtype=torch.float64))
    kept = scores.valid
    length = 12**0.5  # of as many features, so that the kernel is (cos + 1)^3
    reference = length * pixel_features(torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 255).double()
    credit = torch.zeros(8, dtype=torch.float64)
    credit[kept] = credits(length * pixel_features(media[kept]).double(), reference)
    total = torch.where(kept, 2.0 * credit + 0.5 * scores.total, torch.nan)
    found = DiversityCredit(GroupMean(), str(folder), weight=2.0, score=0.5)(scores, rollout)
    torch.testing.assert_close(found, GroupMean()(replace(scores, total=total), rollout))


def test_features_of_pictures_tell_a_spread_from_its_mean():
    """Reds and blues against purples only: their mean is the same, and a linear kernel would see nothing."""
    red, blue = (torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 2, 2) for colour in ((1.0, 0.2, 0), (0, 0.2, 1.0)))
    spread, alike = torch.cat([red, blue] * 4), ((red + blue) / 2).expand(8, 3, 2, 2)
    noise = 0.01 * torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    told = []
    for media in (spread + noise, alike + noise):
        working = DiversityCredit(GroupMean()).begin(None)
        working(Scores.of("one", torch.zeros(8)), replace(take(laws.drawn_steps(), torch.arange(8)), media=media))
        told.append(working.metrics()["discrepancy"])
    assert told[0] < 0.8 * told[1]


def test_a_reference_that_does_not_fit_is_a_sentence(tmp_path):
    rollout = replace(laws.drawn_steps(), media=torch.rand(12, 3, 2, 2))
    scores = Scores.of("one", torch.arange(12.0))
    with pytest.raises(ValueError, match=r"diversity_credit\.reference: no picture in"):
        DiversityCredit(GroupMean(), str(tmp_path))(scores, rollout)
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="another size than the samples"):
        DiversityCredit(GroupMean(), str(tmp_path))(scores, rollout)
    Image.new("RGB", (4, 3)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="differ in size"):
        DiversityCredit(GroupMean(), str(tmp_path))(scores, rollout)
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="is not a picture that can be read"):
        DiversityCredit(GroupMean(), str(tmp_path))(scores, rollout)
