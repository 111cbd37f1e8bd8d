"""AdamW, whose moments are kept in 32 bits or, with torchao, in 8 (Dettmers et al. 2022, arXiv:2110.02861).

Eight bits are a code, which a table translates, times the largest value among 256 neighbours. Weights of fewer than
4,096 numbers, or of a number that 256 does not divide, keep moments of 32 bits. Codes, factors and the table are saved
in plain tensors, which can be read without torchao.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from burnish.recipe.recipe import Optim

MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw(weights: Sequence[torch.nn.Parameter], optim: Optim) -> torch.optim.Optimizer:
    """The optimiser of a recipe. Raises ValueError if it needs torchao and that is missing."""
    kind = torch.optim.AdamW if optim.moments == 32 else _library().AdamW8bit
    return kind(weights, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay)


def stepped(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """One update of the weights at this learning rate."""
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
    with _as_written(optimiser):
        optimiser.step()


@contextmanager
def _as_written(optimiser: torch.optim.Optimizer) -> Iterator[None]:
    """On a processor torchao's updates run as they are written: compiling one for every shape takes minutes."""
    weight = optimiser.param_groups[0]["params"][0]
    if isinstance(optimiser, torch.optim.AdamW) or weight.device.type != "cpu":
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def plain(moment: Tensor) -> Tensor:
    """A moment in 32 bits."""
    return moment.dequantize() if _is_packed(moment) else moment


def packed(moment: Tensor) -> Tensor | dict[str, Tensor]:
    """A moment in tensors that anybody can read."""
    if not _is_packed(moment):
        return moment
    known: Any = moment
    return {"codes": known.codes, "scale": known.scale, "table": known.qmap, "signed": torch.tensor(known.signed)}


def unpacked(moment: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The inverse of `packed`."""
    if isinstance(moment, Tensor):
        return moment
    kind = _library().subclass_8bit.OptimState8bit
    return kind(moment["codes"], moment["scale"], moment["table"], bool(moment["signed"]), torch.float32)


def _is_packed(moment: Tensor) -> bool:
    return hasattr(moment, "codes")  # torchao's OptimState8bit


def _library() -> Any:
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")  # kernels that are not for optimisers
    try:
        return import_module("torchao.optim")
    except ImportError as problem:
        raise ValueError("optim.moments: 8 bits need torchao: pip install 'burnish[torchao]'") from problem
