"""Weights divided among processes: FSDP2 of torch (Zhao et al. 2023, arXiv:2304.11277), and what its weights ask for.

A divided weight is a DTensor, of which each process holds some rows. Layers are put together when their forward or
backward pass needs them and divided again after it, so all processes have to make the same passes in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def shard(module: nn.Module, mesh: Any) -> None:
    """Divide the weights of a module of diffusers or transformers over a mesh of one dimension, in place.

    Its repeated blocks are put together one at a time. Gradients are summed over the processes, not averaged. Names of
    weights stay as they were, the weights themselves are new objects. Raises ValueError for a module without blocks.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    kinds = set(getattr(module, "_no_split_modules", None) or ())
    blocks = [part for part in module.modules() if type(part).__name__ in kinds]
    if not blocks:
        raise ValueError(f"shard: {type(module).__name__} does not say which of its layers belong together")
    for part in [*reversed(blocks), module]:  # inner ones first
        # Also the outermost is divided again after a forward pass: it would keep whole weights that are no more the
        # live ones once a copy of them is put to work.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def divided(tensor: Tensor) -> bool:
    """Whether this process holds a part of it."""
    return hasattr(tensor, "full_tensor")


def full(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process. All of them ask for it."""
    return tensor.full_tensor() if divided(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor; the same storage."""
    return tensor.to_local() if divided(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Divided as another tensor of the same shape is, if it is; each process takes its rows of its own copy of all."""
    if not divided(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    spec: Any = like
    return distribute_tensor(tensor.to(spec.device), spec.device_mesh, spec.placements, src_data_rank=None)


def kept(tensor: Tensor) -> Tensor:
    """A fresh copy on the CPU. Of a divided tensor the first process has all, and the others nothing."""
    everything = full(tensor)
    if divided(tensor) and torch.distributed.get_rank():
        return torch.empty(0)
    return everything.to("cpu", copy=True).contiguous()
