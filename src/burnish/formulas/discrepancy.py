"""How far a set of samples is from a reference set, and which share of that each sample has: kernel two-sample tests.

Maximum mean discrepancy, unbiased (Gretton et al. 2012, eq. 3), with the cubic kernel of KID (arXiv:1801.01401). M
samples and N references of d features.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def kernel(a: Float[Tensor, "m d"], b: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    """(a . b / d + 1)^3."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def discrepancy(samples: Float[Tensor, "m d"], reference: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """mean_{i != j} k(g_i, g_j) + mean_{i != j} k(r_i, r_j) - 2 mean k(g, r); terms that have no pair are left out."""
    m, n = len(samples), len(reference)
    found = _pairs(kernel(samples, samples)).sum() / (m * (m - 1))
    if n:
        found = found - 2 * kernel(samples, reference).mean()
    return found + _pairs(kernel(reference, reference)).sum() / (n * (n - 1)) if n > 1 else found


def credits(samples: Float[Tensor, "m d"], reference: Float[Tensor, "n d"]) -> Float[Tensor, " m"]:
    """MMD^2 without a sample, minus that with it: above 0 if it brings the set nearer the reference. 0 for m < 3.

    With S_i the kernel sums of sample i over the others and T_i over the references, S and T their sums:
    (S - 2 S_i) / ((m - 1)(m - 2)) - S / (m (m - 1)) - 2 (T - T_i) / ((m - 1) n) + 2 T / (m n).
    """
    m, n = len(samples), len(reference)
    if m < 3:
        return samples.new_zeros(m)
    own = _pairs(kernel(samples, samples)).sum(1)
    found = (own.sum() - 2 * own) / ((m - 1) * (m - 2)) - own.sum() / (m * (m - 1))
    if n:
        cross = kernel(samples, reference).sum(1)
        found = found - 2 * (cross.sum() - cross) / ((m - 1) * n) + 2 * cross.sum() / (m * n)
    return found


def _pairs(values: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    return values - torch.diag(values.diagonal())
