"""benchmarks/agreement.py: cosines worked out by hand, and gradients of a run that stays where it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import agreement


def test_kinds_are_compared_by_their_mean_products() -> None:
    found = {
        "blocks.0.a.weight": torch.tensor([[3.0, 0.0], [0.0, 4.0]]),
        "blocks.1.a.bias": torch.tensor([[1.0], [2.0]]),
        "b.weight": torch.tensor([[1.0], [1.0]]),
        "idle.weight": torch.zeros(2, 5),
    }
    # a: products 10 and 20 in length, 2 between; b: 1, 1 and 1; together 11, 21 and 3.
    rows = agreement.table(found)
    assert [(key, size) for key, _, _, size in rows] == [("b", 1), ("all", 9), ("blocks.*.a", 3)]
    assert [cosine for _, cosine, _, _ in rows] == pytest.approx([1.0, 3 / 16, 2 / 15])
    assert [share for _, _, share, _ in rows] == pytest.approx([1 / 16, 1.0, 15 / 16])


@pytest.mark.slow
def test_gradients_of_every_step_are_of_the_same_weights() -> None:
    small = ["source.on_policy.per_step=2", "source.on_policy.plan.ode.steps=2", "optim.only=[context_embedder]"]
    found = agreement.gradients("scenes/awm", small, 2)
    again = agreement.gradients("scenes/awm", small, 2)
    assert set(found) == {"context_embedder.weight", "context_embedder.bias"}
    for name, each in found.items():
        assert each.shape[0] == 2 and each.abs().sum() > 0
        assert torch.equal(each, again[name])
