"""Drawing tokens by a graph that does not change from token to token: torch.compile, in CUDA graphs on a GPU.

`GPT.next` attends to as many slots as there are tokens, so that each of its steps has other shapes. Here a step attends
to a quarter, a half, three quarters or all of the slots, and those that hold nothing yet are masked: a step has one of
four shapes, and the slot that it writes is a number in the device's memory. Rows are drawn by powers of two, some for
nothing. A GPU is then told of a whole step at once, in place of some fifteen kernels for every layer, of which each
takes less long than telling.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from burnish.models.llamagen.gpt import GPT, Cache

LENGTHS = 4  # shapes of a step
GRAPHS = 64  # that may be compiled: four for each power of two that rows are drawn by


def padded(rows: int) -> int:
    """The next power of two: for how many rows the cache has to have room."""
    return 1 << (rows - 1).bit_length()


class StaticSteps:
    """Stands in for a GPT's `next`."""

    def __init__(self, gpt: GPT, side: int, cache: Cache) -> None:
        self.gpt = gpt
        self.turns = torch.view_as_real(gpt.turns(side))
        self.slots = torch.arange(side**2 + 1, device=self.turns.device)
        on_gpu = self.turns.is_cuda
        self.step = _compiled(on_gpu)
        for room in (*cache.keys, *cache.values) if on_gpu else ():
            torch._dynamo.mark_static_address(room)  # a graph writes into the cache itself, not into a copy

    def next(
        self, ids: Int[Tensor, " b"], position: int, side: int, cache: Cache, bias: Tensor | None
    ) -> Float[Tensor, "b dim"]:
        """Output that predicts token `position + 1`. On a GPU it is overwritten by the next one.

        The cache has room for as many rows as `padded` says.
        """
        seen = seen_of(position + 1, len(self.slots))
        cache.room_for(seen)
        more = F.pad(ids, (0, len(cache.keys[0]) - len(ids)))
        if self.turns.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        slot = self.slots[position + 1 : position + 2]
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):
            return self.step(self.gpt, more, self.turns, slot, self.slots[:seen], cache, bias)[: len(ids)]


def seen_of(slot: int, slots: int) -> int:
    """Slots that a step attends to which writes `slot`: all up to it, and up to a quarter of them more."""
    quarter = -(-slots // LENGTHS)
    return min(slots, quarter * (slot // quarter + 1))


@lru_cache(maxsize=2)
def _compiled(on_gpu: bool) -> Callable[..., Tensor]:
    return torch.compile(_step, dynamic=False, fullgraph=True, mode="reduce-overhead" if on_gpu else None)


def _step(
    gpt: GPT, ids: Tensor, turns: Tensor, slot: Int[Tensor, "1"], slots: Int[Tensor, " seen"], cache: Cache,
    bias: Tensor | None,
) -> Tensor:  # fmt: skip
    mask = torch.zeros(len(slots), dtype=cache.keys[0].dtype, device=ids.device)
    mask = mask.masked_fill(slots > slot, -torch.inf).expand(len(ids), 1, 1, -1)
    mask = mask if bias is None else mask + bias[..., : len(slots)]
    return gpt.at(ids, turns[slot].squeeze(0), slot, slice(0, len(slots)), cache, mask)
