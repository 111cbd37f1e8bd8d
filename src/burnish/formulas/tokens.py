"""The law a token is drawn from: filters, draws, log-probabilities, entropy. Everything in nats, in float32 or better.

`v` is the vocabulary; leading dimensions are free. Vocabularies are large (16,384), so a full pass counts as a cost.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.formulas.guidance import guided
from burnish.types import Law, TokenPlan

FLOOR = -1000.0  # exp of it is 0 in float32 and float64, and 0 times it is 0, which 0 times -inf is not


def law_logits(
    cond: Float[Tensor, "*n v"],
    null: Float[Tensor, "*n v"] | None,
    plan: TokenPlan,
    law: Law,
    keep: Int[Tensor, "*n"] | None = None,
) -> Float[Tensor, "*n v"]:
    """Logits whose log-softmax is `law`, where c and u are conditional and unconditional logits and g = u + w (c - u).

    sampled      g / T within top-k and top-p: the law tokens are drawn from, exactly
    guided       g / T, unfiltered
    tempered     g / w, the law FocusDiff trains: softmax(c - (w - 1) / w u), which is the guided law at temperature w
    conditional  c, as AR-GRPO and most released systems train, whatever they sample from

    `keep` are stored ids being scored; they stay inside the filter (see `filtered`).
    Raises ValueError for guidance without `null`, a temperature that is not positive, or "tempered" with w <= 0.
    """
    if law == "conditional":
        return cond
    mixed = guided(cond, null, plan.guidance, plan.detach_null)
    if law == "tempered":
        return _cooled(mixed, plan.guidance, "law 'tempered' divides by the guidance weight, which")
    mixed = _cooled(mixed, plan.temperature, "temperature")
    return mixed if law == "guided" else filtered(mixed, plan.top_k, plan.top_p, keep)


def _cooled(logits: Tensor, temperature: float, what: str) -> Tensor:
    if temperature <= 0:
        raise ValueError(f"{what} must be above 0, not {temperature} (for the likeliest token always, use top_k: 1)")
    return logits if temperature == 1.0 else logits / temperature


def filtered(
    logits: Float[Tensor, "*n v"], top_k: int, top_p: float, keep: Int[Tensor, "*n"] | None = None
) -> Float[Tensor, "*n v"]:
    """Logits with -inf outside the kept set: the `top_k` likeliest, then the fewest of them with `top_p` of the mass.

    Exactly k are kept: equal logits are taken in the order of their ids. At least one is always kept. top_k = 0 (or
    k >= v) and top_p = 1 do not filter, and return the input itself.

    `keep` adds one id to each set. A token drawn from the set is in it, so at the weights that drew it this changes
    nothing and the law is exact; after an update the set moves, and a stored token that fell out of it is scored as if
    it were the one more that is kept: its log-probability stays finite and keeps a gradient.
    """
    vocabulary = logits.shape[-1]
    limited = 0 < top_k < vocabulary
    if not limited and top_p >= 1.0:
        return logits
    kept = _kept(logits.detach(), top_k if limited else vocabulary, top_p)
    if keep is not None:
        kept.scatter_(-1, keep.unsqueeze(-1), True)
    return logits.masked_fill(~kept, -torch.inf)


def _kept(logits: Tensor, top_k: int, top_p: float) -> Bool[Tensor, "*n v"]:
    """Which tokens are in the set. Only values are sorted: it is what lies above the last one, plus ties in order."""
    if top_k < logits.shape[-1]:
        values = logits.topk(top_k, -1).values
    else:
        values = logits.sort(-1, descending=True).values
    count = torch.full_like(values[..., :1], values.shape[-1], dtype=torch.long)
    if top_p < 1.0:
        mass = values.to(_precise(values)).softmax(-1)
        before = mass.cumsum(-1) - mass
        count = (before < top_p).sum(-1, keepdim=True).clamp_(min=1)  # the first is kept even at top_p = 0
    last = values.gather(-1, count - 1)
    above, equal = logits > last, logits == last
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


def draw(logits: Float[Tensor, "b v"], uniform: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Ids drawn from softmax(logits) by inverting its distribution function at `uniform` in [0, 1).

    A token of probability 0 is never drawn, however `uniform` and the sums round.
    """
    return _inverted((logits.to(_precise(logits)) - logits.amax(-1, keepdim=True)).exp_(), uniform)


def draw_with_logp(
    logits: Float[Tensor, "b v"], uniform: Float[Tensor, " b"]
) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, " b"]]:
    """The ids of `draw`, their log-probability and entropy of the law, from one exponential a token; no gradient."""
    with torch.no_grad():
        gap = (logits.to(_precise(logits)) - logits.amax(-1, keepdim=True)).clamp_(min=FLOOR)
        mass = gap.exp()
        ids = _inverted(mass, uniform)
        total = mass.sum(-1)
        logp = gap.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - total.log()
        return ids, logp, total.log() - torch.linalg.vecdot(mass, gap) / total


def _inverted(mass: Float[Tensor, "b v"], uniform: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """First the block of tokens, then the token in it: a running sum over the vocabulary is slow on a CPU, and in
    parallel need not be monotonous."""
    b, v = mass.shape
    side = max(1, int(v**0.5))
    whole = v // side * side
    blocks = mass[:, :whole].reshape(b, -1, side).sum(-1)
    if whole < v:
        blocks = torch.cat([blocks, mass[:, whole:].sum(-1, keepdim=True)], 1)
    block, left = _first_above(blocks, uniform.to(mass.device, mass.dtype) * blocks.sum(-1))
    index = block.unsqueeze(-1) * side + torch.arange(side, device=mass.device)
    inside = mass.gather(-1, index.clamp(max=v - 1)).masked_fill(index >= v, 0.0)
    return block * side + _first_above(inside, left)[0]


def _first_above(
    mass: Float[Tensor, "b n"], target: Float[Tensor, " b"]
) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
    """The entry in which the running sum passes `target`, and how far into it. The entry is never one without mass."""
    # Sums are monotonous whatever the order of summation, and rise only where there is mass.
    upto = mass.cumsum(-1).masked_fill_(mass == 0, 0.0).cummax(-1).values
    # Below the last sum, or rounding of u near 1 would run past the end.
    target = torch.minimum(target, torch.nextafter(upto[:, -1], torch.zeros_like(target)))
    entry = torch.searchsorted(upto, target.unsqueeze(-1), right=True)
    before = torch.where(entry > 0, upto.gather(-1, (entry - 1).clamp(min=0)), torch.zeros_like(upto[:, :1]))
    return entry.squeeze(-1), (target.unsqueeze(-1) - before).squeeze(-1)


def logp_of(logits: Float[Tensor, "*n v"], ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Log-probability of `ids` under softmax(logits). Keeps the logits for the backward pass and no other full copy."""
    logits = logits.to(_precise(logits))
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def entropy(logits: Float[Tensor, "*n v"]) -> Float[Tensor, "*n"]:
    """Entropy of softmax(logits), differentiable. Tokens at -inf add nothing."""
    gap = logits.to(_precise(logits)).log_softmax(-1).clamp(min=FLOOR)
    return -(gap.exp() * gap).sum(-1)


def _precise(values: Tensor) -> torch.dtype:
    """float64 stays; anything shorter is worked on in float32."""
    return torch.promote_types(values.dtype, torch.float32)
