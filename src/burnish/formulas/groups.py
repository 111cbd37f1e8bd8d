"""Statistics of groups of samples, of which some may be invalid. No loop over groups; `group` may be any integers.

Worked in float64, so that a group of equal scores has a deviation of exactly 0. Invalid members (their value may be
NaN) are left out of every statistic of their group, and are given 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def group_count(group: Int[Tensor, " b"], valid: Bool[Tensor, " b"]) -> Int[Tensor, " b"]:
    """Valid members of the group of each sample."""
    _, index = group.unique(return_inverse=True)
    return _spread(valid.long(), index)


def group_mean(values: Float[Tensor, " b"], group: Int[Tensor, " b"], valid: Bool[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Mean of the valid members of the group of each sample, float64; 0 in a group without any."""
    _, index = group.unique(return_inverse=True)
    values = torch.where(valid, exact(values), 0.0)
    return _spread(values, index) / _spread(valid.long(), index).clamp(min=1)


def group_centred(
    values: Float[Tensor, " b"], group: Int[Tensor, " b"], valid: Bool[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """R_i minus the mean of its group, float64; 0 for invalid members and in groups of fewer than two valid ones."""
    return torch.where(valid, exact(values) - group_mean(values, group, valid), 0.0)


def group_std(
    values: Float[Tensor, " b"], group: Int[Tensor, " b"], valid: Bool[Tensor, " b"], ddof: int = 1
) -> Float[Tensor, " b"]:
    """Standard deviation of the valid members of the group of each sample, float64; 0 where too few to have one."""
    _, index = group.unique(return_inverse=True)
    squares = _spread(group_centred(values, group, valid).square(), index)
    return (squares / (_spread(valid.long(), index) - ddof).clamp(min=1)).sqrt()


def group_normed(
    values: Float[Tensor, " b"], group: Int[Tensor, " b"], valid: Bool[Tensor, " b"], eps: float
) -> Float[Tensor, " b"]:
    """(R_i - mean) / (std + eps) within the group, float64 and ddof 1. DeepSeekMath 2024, section 4.1."""
    return group_centred(values, group, valid) / (group_std(values, group, valid) + eps)


def leave_one_out(
    values: Float[Tensor, " b"], group: Int[Tensor, " b"], valid: Bool[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """R_i minus the mean of the others, = G / (G - 1) (R_i - mean), float64. Kool et al. 2019; RLOO, Ahmadian 2024."""
    count = group_count(group, valid)
    return group_centred(values, group, valid) * count / (count - 1).clamp(min=1)


def flat(values: Float[Tensor, " b"], group: Int[Tensor, " b"], valid: Bool[Tensor, " b"]) -> Bool[Tensor, " b"]:
    """Samples of groups that teach nothing: all valid values are equal, or fewer than two are valid."""
    names, index = group.unique(return_inverse=True)
    values = exact(values)
    most = values.new_full((len(names),), -torch.inf)
    least = values.new_full((len(names),), torch.inf)
    most.scatter_reduce_(0, index, torch.where(valid, values, -torch.inf), "amax")
    least.scatter_reduce_(0, index, torch.where(valid, values, torch.inf), "amin")
    return (most <= least)[index]  # also where neither was set


def exact(values: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Float64 without gradient (float32 on devices that have nothing longer)."""
    return values.detach().to(torch.float32 if values.device.type == "mps" else torch.float64)


def _spread(values: Tensor, index: Tensor) -> Tensor:
    """The sum over each group, handed to each of its members."""
    return values.new_zeros(int(index.max()) + 1 if len(index) else 0).index_add_(0, index, values)[index]
