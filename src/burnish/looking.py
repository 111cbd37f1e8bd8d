"""What the run's reward makes of a state on the way: of the picture that is expected of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Denoiser, Scorer
from burnish.types import Prompt, Scores, concatenate


@torch.no_grad()
def looked(
    decoder: Denoiser, scorer: Scorer, clean: Float[Tensor, "n *d"], prompts: Sequence[Prompt], rows: int
) -> Scores:
    """Scores of decoded clean states, `rows` of them at once."""
    found, start = [], 0
    for some in clean.split(rows):
        found.append(scorer(decoder.decode(some).clamp(0, 1), prompts[start : start + len(some)]))
        start += len(some)
    return concatenate(found)
