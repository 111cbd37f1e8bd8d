"""What the trainings of the world share: Muon, which weights it takes, the pace of the learning rate, and precision."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Optimisers = Sequence[torch.optim.Optimizer]


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): the momentum of a matrix, orthogonalised, at the scale of AdamW's steps.

    `torch.optim.Muon` multiplies in bfloat16, one matrix at a time: on a processor without such instructions that took
    three quarters as long as the forward and backward pass together. This one keeps the weights' own precision and
    takes all matrices of one shape at once: a quarter of the time. The step is torch's own
    (`adjust_lr_fn="match_rms_adamw"`, Nesterov momentum, decay apart from the step), which a test holds it to.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[torch.nn.Parameter, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    alike.setdefault(weight.shape, []).append((weight, weight.grad))
            for shape, pairs in alike.items():
                ahead = []
                for weight, grad in pairs:
                    momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                    momentum.lerp_(grad, 1 - group["momentum"])
                    ahead.append(grad.lerp(momentum, group["momentum"]))
                scale = group["lr"] * 0.2 * math.sqrt(max(shape))
                for (weight, _), change in zip(pairs, orthogonal(torch.stack(ahead)), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=scale)


def orthogonal(matrices: Float[Tensor, "n rows columns"], rounds: int = 5) -> Float[Tensor, "n rows columns"]:
    """Matrices whose singular values are near 1 and whose singular vectors stay: Newton-Schulz of fifth order."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def optimisers(blocks: torch.nn.Module, weights: Iterable[torch.nn.Parameter], decay: float) -> Optimisers:
    """Muon for the matrices inside `blocks`, AdamW for other `weights`. `paced` sets the rate."""
    hidden = [weight for weight in blocks.parameters() if weight.dim() == 2]
    inner = {id(weight) for weight in hidden}
    rest = [weight for weight in weights if id(weight) not in inner]
    return (
        Muon(hidden, lr=1e-3, weight_decay=decay),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=decay),
    )


def paced(used: Optimisers, lr: float, warmup: int, step: int, done: float) -> None:
    """Set the learning rate: it rises over `warmup` steps, and falls as a cosine of the share `done` of the time."""
    rate = lr * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * done))
    for group in (group for optimiser in used for group in optimiser.param_groups):
        group["lr"] = rate


@contextmanager
def bfloat16(wanted: bool = True) -> Iterator[None]:
    """Products in bfloat16, over float32 weights: half the time, on a processor that has instructions for it.

    The fused attention is slow backwards in bfloat16 on a CPU: plain products take half the time of a step.
    """
    if not wanted:
        yield
        return
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield


def untyped(library: str) -> Any:
    """A library whose annotations are narrower than what it takes (diffusers: one block where there are several)."""
    return importlib.import_module(library)
