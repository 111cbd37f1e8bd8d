"""Reward models that rest in the processor's memory, and are on the accelerator only while they score.

They then take no room beside drawing and learning, for the time of moving them there and back, once a step (or once a
part of a step, with `overlap`). Weights alone move: what a reward has cached stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from burnish.core import Scorer
from burnish.types import Prompt, Scores

HOME = torch.device("cpu")


class Resting(Scorer):
    """A reward whose networks are on `device` while it is called, and at rest otherwise.

    Not for one that is differentiated: its backward pass would find them gone.
    """

    def __init__(self, scorer: Scorer, device: torch.device) -> None:
        self._scorer, self._device, self._networks = scorer, device, list(networks_in(scorer))
        self._move(HOME)

    def __call__(self, images: Float[Tensor, "b *f 3 h w"], prompts: Sequence[Prompt]) -> Scores:
        self._move(self._device)
        try:
            return self._scorer(images, prompts)
        finally:
            self._move(HOME)

    def _move(self, device: torch.device) -> None:
        for network in self._networks:
            network.to(device)


def networks_in(thing: object) -> Iterator[nn.Module]:
    """Every network that an object holds: in attributes, in what these hold, and in what functions close over."""
    yield from _networks(thing, set())


def _networks(thing: Any, seen: set[int]) -> Iterator[nn.Module]:
    if id(thing) in seen or isinstance(thing, (type, ModuleType, Tensor, str, int, float)):
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
        return
    for part in _parts(thing):
        yield from _networks(part, seen)


def _parts(thing: Any) -> Iterator[Any]:
    if isinstance(thing, Mapping):
        yield from thing.values()
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from thing
    elif isinstance(thing, FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or ())
    elif isinstance(thing, MethodType):
        yield thing.__self__
    elif isinstance(thing, partial):
        yield from (thing.func, thing.args, thing.keywords)
    else:
        yield from getattr(thing, "__dict__", {}).values()
