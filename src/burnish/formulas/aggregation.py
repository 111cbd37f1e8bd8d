"""From a loss of each decision to a sum and its count. The learner divides once, over micro-batches and ranks.

`weight` is 0 on padding, `keep` False on samples that do not count. What stands there has no influence, even NaN.

    token      every token weighs the same: sum over tokens / tokens (DAPO; BNPO over the whole batch)
    sequence   every sequence weighs the same: mean of the means (GRPO, GSPO)
    constant   sum over tokens / (sequences x length), length a constant (Dr.GRPO); length 1 sums a sequence (RLOO)
    local      the token mean of each micro-batch, which therefore depends on the split (BNPO, TRL's default)
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.types import Mean

Aggregation = Literal["token", "sequence", "constant", "local"]
Sum = tuple[Float[Tensor, ""], Float[Tensor, ""]]  # (total, count)


def counted(weight: Float[Tensor, "b k"], keep: Bool[Tensor, " b"]) -> Bool[Tensor, "b k"]:
    """Decisions that have a say."""
    return (weight > 0) & keep.unsqueeze(1)


def per_decision(advantage: Float[Tensor, " b"] | Float[Tensor, "b k"]) -> Float[Tensor, "b #k"]:
    """An advantage of samples or of decisions, ready to multiply decisions."""
    return advantage.unsqueeze(1) if advantage.dim() == 1 else advantage


def token(values: Float[Tensor, "b k"], weight: Float[Tensor, "b k"], keep: Bool[Tensor, " b"]) -> Sum:
    """Sum over tokens, and their number."""
    weighed, weight = _weighed(values, weight, keep)
    return weighed.sum(), weight.sum()


def sequence(values: Float[Tensor, "b k"], weight: Float[Tensor, "b k"], keep: Bool[Tensor, " b"]) -> Sum:
    """Sum of the means of sequences, and the number of sequences with at least one token."""
    weighed, weight = _weighed(values, weight, keep)
    length = weight.sum(1)
    means = weighed.sum(1) / torch.where(length > 0, length, 1.0)
    return means.sum(), (length > 0).sum().to(weight.dtype)


def constant(values: Float[Tensor, "b k"], weight: Float[Tensor, "b k"], keep: Bool[Tensor, " b"], length: int) -> Sum:
    """Sum over tokens, and the number of kept sequences times `length`."""
    weighed, weight = _weighed(values, weight, keep)
    return weighed.sum(), (keep.sum() * length).to(weight.dtype)


def local(values: Float[Tensor, "b k"], weight: Float[Tensor, "b k"], keep: Bool[Tensor, " b"]) -> Sum:
    """The token mean of this micro-batch, and 1; or 0 and 0 if it has no token that counts."""
    total, count = token(values, weight, keep)
    return total / torch.where(count > 0, count, 1.0), (count > 0).to(count.dtype)


def aggregate(
    name: Aggregation,
    values: Float[Tensor, "b k"],
    weight: Float[Tensor, "b k"],
    keep: Bool[Tensor, " b"],
    length: int = 0,
) -> Sum:
    """The aggregation of that name. `length` is for "constant"; 0 takes the number of decisions k."""
    if name == "constant":
        return constant(values, weight, keep, length or weight.shape[1])
    return {"token": token, "sequence": sequence, "local": local}[name](values, weight, keep)


def token_mean(values: Tensor, weight: Float[Tensor, "b k"], keep: Bool[Tensor, " b"]) -> Mean:
    """A metric: the mean over tokens that count, not divided yet. No gradient."""
    return Mean(*token(values.detach().to(weight.dtype), weight, keep))


def _weighed(values: Tensor, weight: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    weight = weight * keep.unsqueeze(1)
    return torch.where(weight > 0, values * weight, 0.0), weight
