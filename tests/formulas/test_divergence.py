from __future__ import annotations

import math

import pytest
import torch

from burnish.formulas.divergence import estimate, k1, k2, k3

P = torch.tensor([0.3, -1.0, 0.7, 0.0, 1.2, -0.4], dtype=torch.float64)
Q = torch.tensor([-0.2, 0.5, 0.1, 0.9, 0.0, 0.3], dtype=torch.float64)


def kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """KL of softmax(a) from softmax(b), by its definition."""
    return (a.softmax(0) * (a.log_softmax(0) - b.log_softmax(0))).sum()


def finite_difference(f, at: torch.Tensor, h: float = 1e-6) -> torch.Tensor:
    steps = h * torch.eye(len(at), dtype=at.dtype)
    return torch.stack([(f(at + s) - f(at - s)) / (2 * h) for s in steps])


def test_estimators_by_hand():
    """p = 1/2, q = 1/4 on the token: log q / p = -log 2."""
    p, q = torch.tensor(0.5).log(), torch.tensor(0.25).log()
    assert k1(p, q).item() == pytest.approx(math.log(2))
    assert k2(p, q).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(p, q).item() == pytest.approx(0.5 - 1 + math.log(2))


def test_k1_and_k3_have_the_right_mean_and_k2_has_not():
    logp, logq, p = P.log_softmax(0), Q.log_softmax(0), P.softmax(0)
    truth = kl(P, Q)
    torch.testing.assert_close((p * k1(logp, logq)).sum(), truth)
    torch.testing.assert_close((p * k3(logp, logq)).sum(), truth)
    assert abs((p * k2(logp, logq)).sum() - truth) > 0.01 * truth


def test_k3_is_not_negative_and_all_vanish_only_where_the_laws_agree():
    gap = torch.linspace(-30, 30, 601, dtype=torch.float64)
    zero = torch.zeros_like(gap)
    assert (k3(zero, gap) >= 0).all()
    for name in ("k1", "k2", "k3"):
        values = estimate(name, zero, gap)
        assert torch.isfinite(values).all()
        assert ((values == 0) == (gap == 0)).all()


@pytest.mark.parametrize("name, target", [
    ("k1", lambda a: 0.0 * a.sum()),
    ("k2", lambda a: kl(a, Q)),
    ("k3", lambda a: kl(Q, a)),
])  # fmt: skip
def test_gradient_identities_by_finite_differences(name, target):
    """As loss terms over samples of p: E grad k1 = 0, E grad k2 = grad KL(p || q), E grad k3 = grad KL(q || p)."""
    logits = P.clone().requires_grad_()
    loss = (
        P.softmax(0) * estimate(name, logits.log_softmax(0), Q.log_softmax(0))
    ).sum()  # samples are not differentiated
    (found,) = torch.autograd.grad(loss, [logits])
    torch.testing.assert_close(found, finite_difference(target, P), atol=1e-8, rtol=1e-6)


def test_k1_in_the_reward_has_the_gradient_of_the_kl():
    """E[k1 grad log p] = grad KL(p || q): why k1 belongs in the reward."""
    logits = P.clone().requires_grad_()
    logp = logits.log_softmax(0)
    (found,) = torch.autograd.grad((P.softmax(0) * k1(logp, Q.log_softmax(0)).detach() * logp).sum(), [logits])
    torch.testing.assert_close(found, finite_difference(lambda a: kl(a, Q), P), atol=1e-8, rtol=1e-6)
