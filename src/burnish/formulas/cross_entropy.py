"""The cross-entropy method: a Gaussian is drawn from, and fitted to the best of what it gave (Rubinstein 1999)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def refitted(
    drawn: Float[Tensor, "p k *d"],
    worth: Float[Tensor, "p k"],
    elites: int,
    mean: Float[Tensor, "p *d"],
    std: Float[Tensor, "p *d"],
    keep: float = 0.0,
) -> tuple[Float[Tensor, "p *d"], Float[Tensor, "p *d"]]:
    """Mean and deviation (ddof 0), in each dimension, of the `elites` best of k draws; p such Gaussians at once.

    With ddof 0 the Gaussian has the second moment of its elites, so that fitting alone does not shrink what is drawn.
    keep    part of the former mean and deviation that stays
    worth   -inf, or NaN, for draws that have none; they are never elites. With fewer than two elites nothing changes.
    """
    worth = torch.where(worth.isfinite(), worth, -torch.inf)
    best = worth.argsort(dim=1, descending=True, stable=True)[:, :elites]
    counts = worth.gather(1, best).isfinite()
    shape = (*counts.shape, *[1] * (drawn.dim() - 2))
    chosen, share = drawn[torch.arange(len(drawn)).unsqueeze(1), best], counts.to(drawn).view(shape)
    number = share.sum(1).clamp(min=1)
    centre = (chosen * share).sum(1) / number
    spread = ((chosen - centre.unsqueeze(1)).square() * share).sum(1).div(number).sqrt()
    enough = (counts.sum(1) > 1).view(-1, *[1] * (mean.dim() - 1))
    return (
        torch.where(enough, torch.lerp(centre, mean, keep), mean),
        torch.where(enough, torch.lerp(spread, std, keep), std),
    )
