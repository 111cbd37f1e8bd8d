from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.formulas.tokens import draw, draw_with_logp, entropy, filtered, law_logits, logp_of
from burnish.types import TokenPlan

LAWS = ("sampled", "guided", "tempered", "conditional")


def kept(logits: torch.Tensor) -> list[int]:
    return torch.isfinite(logits).nonzero().flatten().tolist()


def test_top_k_then_top_p_by_hand():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    assert kept(filtered(logits, 2, 1.0)) == [2, 3]
    assert kept(filtered(logits, 0, 0.5)) == [2, 3]  # 0.4 < 0.5, so one more
    assert kept(filtered(logits, 0, 0.35)) == [3]
    # After top-k 2 the masses are 3/7 and 4/7 = 0.571: p = 0.5 now needs one token only.
    assert kept(filtered(logits, 2, 0.5)) == [3]
    assert kept(filtered(logits, 0, 0.0)) == [3]


def test_ties_are_taken_in_the_order_of_their_ids():
    assert kept(filtered(torch.zeros(6), 2, 1.0)) == [0, 1]
    assert kept(filtered(torch.zeros(4), 0, 0.5)) == [0, 1]
    assert kept(filtered(torch.tensor([0.0, 1.0, 0.0, 0.0]), 3, 1.0)) == [0, 1, 2]


def test_no_filter_returns_the_input_itself():
    logits = torch.randn(2, 5)
    assert filtered(logits, 0, 1.0) is logits
    assert filtered(logits, 5, 1.0) is logits


def test_a_stored_id_outside_the_set_joins_it_and_keeps_a_gradient():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]], requires_grad=True)
    scored = filtered(logits, 2, 1.0, keep=torch.tensor([0]))
    assert kept(scored[0]) == [0, 2, 3]
    (slope,) = torch.autograd.grad(logp_of(scored, torch.tensor([0])).sum(), [logits])
    assert slope[0, 0] > 0 and slope[0, 1] == 0
    inside = filtered(logits, 2, 1.0, keep=torch.tensor([3]))
    assert torch.equal(inside, filtered(logits, 2, 1.0))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    v=st.integers(2, 40),
    k=st.integers(0, 45),
    p=st.floats(0.05, 1.0),
    coarse=st.booleans(),
)
def test_the_kept_set_against_a_sort_and_loop(seed, v, k, p, coarse):
    logits = torch.randn(v, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits = logits.round() if coarse else logits  # rounding makes ties
    order = sorted(range(v), key=lambda i: (-logits[i].item(), i))
    order = order[:k] if 0 < k < v else order
    mass, expected, held = logits[order].softmax(0), [], 0.0
    for i, m in zip(order, mass.tolist()):
        if p < 1.0 and expected and held > p - 1e-9:
            assert abs(held - p) > 1e-9 or held >= p
            break
        expected.append(i)
        held += m
    if p < 1.0 and any(abs(c - p) < 1e-9 for c in mass.cumsum(0).tolist()):
        return  # a sum that equals p up to rounding may fall on either side
    assert kept(filtered(logits, k, p)) == sorted(expected)


def test_all_laws_agree_without_guidance_temperature_and_filter():
    cond, null = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    for law in LAWS:
        assert torch.equal(law_logits(cond, null, TokenPlan(), law), cond)


def test_laws_by_hand():
    cond, null = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 1.0])
    plan = TokenPlan(guidance=3.0, temperature=2.0, top_k=2)
    assert law_logits(cond, null, plan, "conditional") is cond
    assert law_logits(cond, null, plan, "guided").tolist() == [2.0, -1.0, 0.5]
    torch.testing.assert_close(law_logits(cond, null, plan, "tempered"), torch.tensor([4 / 3, -2 / 3, 1 / 3]))
    assert law_logits(cond, null, plan, "sampled").tolist() == [2.0, -torch.inf, 0.5]


def test_tempered_law_is_focusdiffs():
    """softmax(c - (w - 1) / w u) = softmax(g / w); autoregressive.md, section 2."""
    cond, null, w = torch.randn(9, dtype=torch.float64), torch.randn(9, dtype=torch.float64), 5.0
    ours = law_logits(cond, null, TokenPlan(guidance=w), "tempered").softmax(-1)
    torch.testing.assert_close(ours, (cond - (w - 1) / w * null).softmax(-1), atol=1e-15, rtol=0)


@pytest.mark.parametrize("plan, law, word", [
    (TokenPlan(guidance=0.0), "tempered", "tempered"),
    (TokenPlan(guidance=2.0), "guided", "unconditional"),
])  # fmt: skip
def test_impossible_laws_are_explained(plan, law, word):
    null = None if law == "guided" else torch.zeros(4)
    with pytest.raises(ValueError, match=word):
        law_logits(torch.zeros(4), null, plan, law)


WRONG = {"temperature": 0.0, "group": 0, "guidance": -1.0, "top_k": -1, "top_p": 0.0}


@pytest.mark.parametrize("name, value", WRONG.items())
def test_a_plan_that_cannot_be_drawn_by_is_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        TokenPlan(**{name: value})


@pytest.mark.parametrize("v", [1, 2, 5, 16, 17, 30])
def test_draw_inverts_the_distribution_function(v):
    """Over an even grid of u, the share of each token is its probability, and ids rise with u."""
    logits = torch.randn(v, generator=torch.Generator().manual_seed(v))
    n = 4000
    uniform = (torch.arange(n) + 0.5) / n
    ids = draw(logits.expand(n, v), uniform)
    assert (ids.diff() >= 0).all()
    share = torch.bincount(ids, minlength=v) / n
    assert (share - logits.softmax(-1)).abs().max() <= 1.01 / n


def test_draw_never_returns_a_token_without_mass():
    n = 64
    below_one = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = torch.randn(n, 1000, generator=generator) * 8
        logits[torch.rand(n, 1000, generator=generator) < 0.97] = -torch.inf
        logits[:, 517] = 0.0  # never empty, and the last entries mostly are
        for u in (torch.zeros(n), below_one.expand(n), torch.rand(n, generator=generator)):
            ids = draw(logits, u)
            assert torch.isfinite(logits.gather(1, ids[:, None])).all()


def test_draw_with_logp_is_draw_logp_and_entropy():
    logits = filtered(torch.randn(8, 50) * 3, 10, 0.9)
    uniform = torch.rand(8)
    ids, logp, nats = draw_with_logp(logits, uniform)
    assert torch.equal(ids, draw(logits, uniform))
    torch.testing.assert_close(logp, logp_of(logits, ids))
    torch.testing.assert_close(nats, entropy(logits))


def test_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -torch.inf, -torch.inf], [0.0] + [-torch.inf] * 3])
    torch.testing.assert_close(entropy(logits), torch.tensor([4.0, 2.0, 1.0]).log())


def test_recorded_logp_is_the_one_recomputed():
    """Law test (2) and (4): the drawn token is inside the set, and teacher forcing gives the stored number."""
    cond, null = torch.randn(2, 32, 200) * 2
    plan = TokenPlan(guidance=4.0, temperature=0.8, top_k=20, top_p=0.9)
    ids, logp, _ = draw_with_logp(law_logits(cond, null, plan, "sampled"), torch.rand(32))
    again = logp_of(law_logits(cond, null, plan, "sampled", keep=ids), ids)
    assert torch.isfinite(again).all()
    torch.testing.assert_close(again, logp, atol=1e-5, rtol=0)
    conditional = logp_of(law_logits(cond, null, plan, "conditional"), ids)
    assert (conditional - logp).abs().mean() > 0.1  # law test (3): another law is seen


def test_half_precision_logits_are_scored_in_float32():
    logits = torch.randn(4, 1000).bfloat16()
    ids = torch.tensor([1, 2, 3, 4])
    assert logp_of(logits, ids).dtype == torch.float32
    assert draw_with_logp(logits, torch.rand(4))[1].dtype == torch.float32
