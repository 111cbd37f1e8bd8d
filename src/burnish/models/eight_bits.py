"""Linear layers in eight bits, to draw faster: both factors of each product are rounded, the sums are exact.

Vector-wise as in LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339, section 2.1), without its columns in sixteen bits: a
scale for every output of the weights, and one for every row of the inputs, so that a row does not depend on others.
What draws then differs from what is trained, by about one part in a hundred of a layer's output. Policies record the
log-probabilities of what drew, so that ratios against them are those of importance sampling, as of any other law. A
last bit that differs before it is rounded may be a level afterwards: as in bfloat16, rows drawn in other company may be
other pictures of the same law.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn

from burnish.models.linear_layers import M, with_linear_layers

LEVELS = 127
LEAST_ROWS = 17  # of a product that CUDA makes of eight-bit numbers


class Int8Linear(nn.Module):
    """x W^T of weights (out, in), in eight bits. The result has the inputs' dtype."""

    def __init__(self, weight: Float[Tensor, "out in"]) -> None:
        super().__init__()
        levels, scale = rounded(weight)
        levels = levels.t() if levels.is_cuda else levels.t().contiguous()  # (in, out), as each likes it in memory
        self.register_buffer("levels", levels)
        self.register_buffer("scale", scale)
        self.levels: Tensor
        self.scale: Tensor
        self.whole = _sums_are_whole(levels.device)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        levels, scale = rounded(x.reshape(-1, x.shape[-1]))
        rows = len(levels)
        if x.is_cuda and rows < LEAST_ROWS:
            levels = F.pad(levels, (0, 0, 0, LEAST_ROWS - rows))
        product = torch.ops.aten._int_mm if self.whole else _slow_product
        sums = product(levels, self.levels)[:rows]
        return (sums * scale * self.scale.t()).to(x.dtype).view(*x.shape[:-1], -1)


def _slow_product(a: Int8[Tensor, "m k"], b: Int8[Tensor, "k n"]) -> Tensor:
    """Sums of products of whole numbers in float32, exact: 1024 x 127^2 is below 2^24."""
    with torch.autocast(a.device.type, enabled=False):
        parts = (x.float() @ y.float() for x, y in zip(a.split(1024, 1), b.split(1024), strict=True))
        return sum((part.to(torch.int32) for part in parts), torch.zeros((), dtype=torch.int32, device=a.device))


@lru_cache(maxsize=8)
def _sums_are_whole(device: torch.device) -> bool:
    """Whether eight-bit products keep their sums: processors without VNNI add pairs in 16 bits, and cut them off."""
    most = torch.full((32, 64), LEVELS, dtype=torch.int8, device=device)
    return bool((torch.ops.aten._int_mm(most, most.t()) == 64 * LEVELS**2).all())


def rounded(x: Float[Tensor, "rows columns"]) -> tuple[Tensor, Float[Tensor, "rows 1"]]:
    """Levels from -127 to 127 of every row, in int8, and the row's step between two."""
    scale = x.float().abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / LEVELS
    return (x / scale).round().to(torch.int8), scale


def in_eight_bits(model: M, part: str) -> M:
    """A copy whose linear layers inside `part` are in eight bits (see `with_linear_layers`)."""
    return with_linear_layers(model, part, Int8Linear)
