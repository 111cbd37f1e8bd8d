"""Where a sample stands among the valid members of its group. Every pair of samples is compared at once."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def beaten_by(values: Float[Tensor, " b"], group: Int[Tensor, " b"], valid: Bool[Tensor, " b"]) -> Int[Tensor, " b"]:
    """How many valid members of its group have a larger value than each sample."""
    return (_rivals(group, valid) & (values > values.unsqueeze(1))).sum(1)


def beats(values: Float[Tensor, " b"], group: Int[Tensor, " b"], valid: Bool[Tensor, " b"]) -> Int[Tensor, " b"]:
    """How many valid members of its group have a smaller value than each sample."""
    return (_rivals(group, valid) & (values < values.unsqueeze(1))).sum(1)


def win_rate(values: Float[Tensor, " b"], group: Int[Tensor, " b"], valid: Bool[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Share of the other valid members that a sample beats, a tie counting half, float64. Their mean is 1/2.

    1/2 for invalid samples and those without valid siblings.
    """
    others = _rivals(group, valid).sum(1)
    ahead = beats(values, group, valid) + 0.5 * _ties(values, group, valid)
    return torch.where(valid & (others > 0), ahead.double() / others.clamp(min=1), 0.5)


def order(
    values: Float[Tensor, " b"], group: Int[Tensor, " b"], valid: Bool[Tensor, " b"], ids: tuple[int, ...]
) -> Int[Tensor, " b"]:
    """Place of each valid sample in its group, 0 the best; of equal ones the smaller id comes first."""
    names = torch.tensor(ids, device=values.device)
    earlier = (values == values.unsqueeze(1)) & (names < names.unsqueeze(1))
    return beaten_by(values, group, valid) + (_rivals(group, valid) & earlier).sum(1)


def _rivals(group: Tensor, valid: Tensor) -> Bool[Tensor, "b b"]:
    """[i, j]: j is another valid member of the group of i."""
    others = ~torch.eye(len(group), dtype=torch.bool, device=group.device)
    return (group == group.unsqueeze(1)).to(valid.device) & others.to(valid.device) & valid


def _ties(values: Tensor, group: Tensor, valid: Tensor) -> Int[Tensor, " b"]:
    return (_rivals(group, valid) & (values == values.unsqueeze(1))).sum(1)
