"""What the trainings of the world share: the pace of the learning rate, and which weights Muon takes."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

Optimisers = Sequence[torch.optim.Optimizer]


def optimisers(blocks: torch.nn.Module, weights: Iterable[torch.nn.Parameter], decay: float) -> Optimisers:
    """Muon (Jordan et al. 2024) for the matrices inside `blocks`, AdamW for other `weights`. `paced` sets the rate."""
    hidden = [weight for weight in blocks.parameters() if weight.dim() == 2]
    inner = {id(weight) for weight in hidden}
    rest = [weight for weight in weights if id(weight) not in inner]
    return (
        torch.optim.Muon(hidden, lr=1e-3, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=decay),
    )


def paced(used: Optimisers, lr: float, warmup: int, step: int, done: float) -> None:
    """Set the learning rate: it rises over `warmup` steps, and falls as a cosine of the share `done` of the time."""
    rate = lr * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * done))
    for group in (group for optimiser in used for group in optimiser.param_groups):
        group["lr"] = rate


def untyped(library: str) -> Any:
    """A library whose annotations are narrower than what it takes (diffusers: one block where there are several)."""
    return importlib.import_module(library)
