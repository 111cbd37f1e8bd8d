"""How much better one reward thinks of a sample than others do: GARDO, arXiv:2512.24138. b samples.

Rewards of different scales are compared by the share of the samples that each thinks a sample better than.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.formulas.ranks import beats


def uncertainty(
    main: Float[Tensor, " b"], others: Sequence[Float[Tensor, " b"]], valid: Bool[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """w(main) - mean over the others of w, w_i = #{j: y_i > y_j} / b; float64, in (-1, 1).

    NaN for a sample that is not valid or that one of the others could not score; it is not compared with either.
    """
    known = valid & torch.stack([main, *others]).isfinite().all(0)
    one = torch.zeros(len(main), dtype=torch.long, device=main.device)
    rates = [beats(values, one, known).double() / max(1, int(known.sum())) for values in (main, *others)]
    return torch.where(known, rates[0] - torch.stack(rates[1:]).mean(0), torch.nan)


def uncertain(values: Float[Tensor, " b"], share: float) -> Bool[Tensor, " b"]:
    """Which of them lie above the (1 - share) quantile of those that are 0 or more. None where all are equal."""
    risky = values[values >= 0]
    if not len(risky):
        return torch.zeros_like(values, dtype=torch.bool)
    return values > torch.quantile(risky, 1 - share)


def adapted(share: float, mean: float, past: Sequence[float], change: float, low: float, high: float) -> float:
    """The next share: larger by `change` if `mean` exceeds all past ones, smaller if all exceed it, within bounds."""
    if past and mean > max(past):
        share *= 1 + change
    elif past and mean < min(past):
        share *= 1 - change
    return min(max(share, low), high)
