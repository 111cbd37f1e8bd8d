"""Distances between two sets of features: Fréchet, precision and recall, inception score."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def moments(features: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Mean and unbiased covariance of the rows, in float64. Raises ValueError for fewer than two rows."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"moments need features of shape (n, d) with n >= 2, got {tuple(features.shape)}")
    rows = features.double()
    mean = rows.mean(0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)


def frechet_distance(
    mean_a: Float[Tensor, " d"], cov_a: Float[Tensor, "d d"], mean_b: Float[Tensor, " d"], cov_b: Float[Tensor, "d d"]
) -> float:
    """Squared Fréchet distance of two Gaussians, |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)). Dowson and Landau 1982.

    On Inception features this is the FID (Heusel et al. 2017, equation 6). The trace of (A B)^(1/2) is the sum of the
    singular values of A^(1/2) B^(1/2): both roots are symmetric, so nothing complex appears, and a singular covariance
    needs no jitter.
    """
    root = _root(cov_a.double()) @ _root(cov_b.double())
    shift = (mean_a.double() - mean_b.double()).square().sum()
    spread = cov_a.double().trace() + cov_b.double().trace() - 2 * torch.linalg.svdvals(root).sum()
    return max(float(shift + spread), 0.0)  # rounding may leave -1e-12 for equal Gaussians


def _root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def coverage(points: Float[Tensor, "n d"], manifold: Float[Tensor, "m d"], k: int = 3) -> Float[Tensor, " n"]:
    """1 for each point within the manifold, else 0. Kynkäänniemi et al. 2019, equation 1.

    The manifold is the union of balls around its rows, each reaching that row's k-th nearest neighbour (itself
    excluded). The mean of coverage(generated, real) is precision; of coverage(real, generated), recall.
    Raises ValueError if the manifold has no k-th neighbour.
    """
    if not 1 <= k < len(manifold):
        raise ValueError(
            f"the {k}-th neighbour of a set of {len(manifold)} does not exist; choose 1 <= k < {len(manifold)}"
        )
    rows = manifold.double()
    # 'donot_use_mm': a row's distance to itself must be exactly 0, or it would not be the nearest.
    inner = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    radius = inner.kthvalue(k + 1, dim=1).values  # the nearest of all is the row itself
    outer = torch.cdist(points.double(), rows, compute_mode="donot_use_mm_for_euclid_dist")
    return (outer <= radius).any(1).double()


def inception_score(probabilities: Float[Tensor, "n c"]) -> float:
    """exp of the mean KL(p(y|x) || p(y)), between 1 and c. Salimans et al. 2016, section 4. One split.

    Raises ValueError for rows that are not distributions.
    """
    p = probabilities.double()
    if p.ndim != 2 or len(p) == 0 or bool((p < 0).any()) or bool(((p.sum(1) - 1).abs() > 1e-4).any()):
        raise ValueError("inception_score needs rows of class probabilities that sum to 1")
    marginal = p.mean(0, keepdim=True)
    return float((torch.special.xlogy(p, p) - torch.special.xlogy(p, marginal)).sum(1).mean().exp())
