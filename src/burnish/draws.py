"""Drawing a whole evaluation: fixed prompts under fixed noise, some rows at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.core import Policy
from burnish.formulas.noise import Noise
from burnish.types import Plan, Prompt


def draw_all(
    policy: Policy, prompts: Sequence[Prompt], plan: Plan, seed: int, rows: int
) -> Float[Tensor, "n *f c h w"]:
    """One picture, or video, a prompt, on the CPU.

    Sample i has the noise (seed, "evaluate", step 0, id i), whatever `rows` is.
    So two policies, or one before and after training, are asked the same with the same noise.
    """
    media = []
    for start in range(0, len(prompts), rows):
        some = prompts[start : start + rows]
        noise = Noise(seed, 0, tuple(range(start, start + len(some))), "evaluate")
        media.append(policy.sample(some, plan, noise).media.detach().float().cpu())
    return torch.cat(media)
