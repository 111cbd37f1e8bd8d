"""Within-prompt distances that can be worked out, on a policy small enough to list."""

from __future__ import annotations

import pytest
import torch
from toys import ToyRaster

from burnish.suites.diversity import Diversity
from burnish.types import TokenPlan


def test_pixels_are_pairwise_distances_within_a_prompt():
    policy = ToyRaster().load(torch.device("cpu"))
    found = Diversity("toys:prompts", count=2, per_prompt=3).run(policy, TokenPlan(), None, seed=0)
    assert [p.id for p in found.prompts] == ["toy0"] * 3 + ["toy1"] * 3
    expected = []
    for i in range(6):
        others = [j for j in range(i // 3 * 3, i // 3 * 3 + 3) if j != i]
        expected.append(sum(float((found.media[i] - found.media[j]).square().mean().sqrt()) for j in others) / 2)
    assert found.values["pixels"].tolist() == pytest.approx(expected, abs=1e-6)
    assert found.metrics["pixels"] == pytest.approx(sum(expected) / 6)


def test_a_collapsed_policy_has_none(clip: str):
    spread = ToyRaster(spread=0.7).load(torch.device("cpu"))
    sure = ToyRaster(spread=0.7).load(torch.device("cpu"))
    with torch.no_grad():
        sure.weights["bias"][:, 2] += 1000
    suite = Diversity("toys:prompts", per_prompt=4, features=clip)
    wide, none = suite.run(spread, TokenPlan(), None, 0).metrics, suite.run(sure, TokenPlan(), None, 0).metrics
    assert none == pytest.approx({"pixels": 0, "clip": 0}, abs=1e-5)
    assert wide["pixels"] > 0.1 and wide["clip"] > 1e-3


def test_clip_distances_by_hand(clip: str):
    policy = ToyRaster().load(torch.device("cpu"))
    found = Diversity("toys:prompts", count=1, per_prompt=3, features=clip).run(policy, TokenPlan(), None, seed=3)
    a, b, c = torch.nn.functional.normalize(_vectors(clip, found.media), dim=1)
    gap = [float(1 - x @ y) for x, y in ((a, b), (a, c), (b, c))]
    expected = [(gap[0] + gap[1]) / 2, (gap[0] + gap[2]) / 2, (gap[1] + gap[2]) / 2]
    assert found.values["clip"].tolist() == pytest.approx(expected, abs=1e-5)


def _vectors(clip: str, media: torch.Tensor) -> torch.Tensor:
    from burnish.models.clip_towers import load_towers

    with torch.no_grad():
        return load_towers(clip, "", "test", torch.device("cpu"), "float32", 8).pictures(media)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="per_prompt: expected 2 or more, got 1"):
        Diversity("toys:prompts", per_prompt=1)
