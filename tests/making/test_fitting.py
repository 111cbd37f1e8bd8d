"""Our Muon is torch's own but for bfloat16, and takes the matrices inside the blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from burnish.making.fitting import Muon, optimisers, orthogonal


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
def test_steps_are_those_of_torch(shape):
    draws = torch.Generator().manual_seed(sum(shape))
    start = [torch.randn(shape, generator=draws) for _ in range(3)]
    grads = [[torch.randn(shape, generator=draws) for _ in start] for _ in range(4)]
    ours, theirs = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    settings = {"lr": 0.05, "weight_decay": 0.1}
    pair = (Muon(ours, **settings), torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw"))
    for step in grads:
        for weights, optimiser in zip((ours, theirs), pair, strict=True):
            for weight, grad in zip(weights, step, strict=True):
                weight.grad = grad.clone()
            optimiser.step()
    for a, b, first in zip(ours, theirs, start, strict=True):
        moved = (b - first).norm()
        assert (a - b).norm() < 0.02 * moved  # bfloat16 keeps 8 bits


def test_orthogonal_keeps_singular_vectors_and_levels_singular_values():
    matrix = torch.randn(1, 12, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(matrix[0], full_matrices=False)
    inside = u.mT @ orthogonal(matrix)[0] @ v.mT
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=1e-9, rtol=0)
    assert s.max() / s.min() > 3
    assert inside.diagonal().min() > 0.6 and inside.diagonal().max() < 1.3


def test_a_weight_without_a_gradient_stays():
    weights = [nn.Parameter(torch.ones(4, 6)) for _ in range(2)]
    optimiser = Muon(weights, lr=0.1, weight_decay=0.5)
    weights[0].grad = torch.ones(4, 6)
    optimiser.step()
    assert not torch.equal(weights[0], torch.ones(4, 6))
    assert torch.equal(weights[1], torch.ones(4, 6))


def test_matrices_inside_go_to_muon_and_all_else_to_adamw():
    net = nn.ModuleDict({"embed": nn.Embedding(7, 4), "blocks": nn.Linear(4, 4)})
    muon, adam = optimisers(net["blocks"], net.parameters(), decay=0.01)
    assert [w.shape for w in muon.param_groups[0]["params"]] == [(4, 4)]
    assert {w.shape for w in adam.param_groups[0]["params"]} == {(7, 4), (4,)}
