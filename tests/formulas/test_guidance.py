from __future__ import annotations

import pytest
import torch

from burnish.formulas.guidance import as_long_as, guided, weight_from_show_o, weight_from_var


def test_guidance_by_hand():
    cond, null = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 2.0])
    assert guided(cond, null, 2.0).tolist() == [5.0, -2.0]
    assert guided(cond, null, 0.0).tolist() == [1.0, 2.0]
    assert guided(cond, None, 1.0) is cond


def test_a_length_by_hand():
    cond, led = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[0.0, 10.0], [-6.0, 8.0]])
    torch.testing.assert_close(as_long_as(cond, led), torch.tensor([[0.0, 5.0], [-1.2, 1.6]]))


def test_guidance_without_null_logits_says_what_is_missing():
    with pytest.raises(ValueError, match="unconditional"):
        guided(torch.zeros(3), None, 2.0)


def test_show_o_at_w_is_ours_at_w_plus_1():
    cond, null, w = torch.randn(5), torch.randn(5), 1.75
    torch.testing.assert_close(guided(cond, null, weight_from_show_o(w)), (1 + w) * cond - w * null)


def test_var_guidance_grows_from_none_to_all():
    assert weight_from_var(4.0, 0, 10) == 1.0
    assert weight_from_var(4.0, 9, 10) == 5.0
    assert weight_from_var(4.0, 0, 1) == 1.0


def test_gradient_of_the_guided_logp_and_of_a_detached_null():
    """d log p_g(a) / dc = w (onehot - p_g) and d / du = (1 - w)(onehot - p_g); autoregressive.md, section 2."""
    cond, null = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    w, a = 3.0, 2
    g = guided(cond, null, w)
    slope = torch.nn.functional.one_hot(torch.tensor(a), 6) - g.detach().softmax(-1)
    dc, du = torch.autograd.grad(g.log_softmax(-1)[a], [cond, null])
    torch.testing.assert_close(dc, w * slope)
    torch.testing.assert_close(du, (1 - w) * slope)
    detached = guided(cond, null, w, detach_null=True).log_softmax(-1)[a]
    dc, du = torch.autograd.grad(detached, [cond, null], allow_unused=True)
    torch.testing.assert_close(dc, w * slope)
    assert du is None
