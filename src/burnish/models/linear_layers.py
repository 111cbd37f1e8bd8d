"""Copies of a network that only draw: other linear layers stand in them, which are quicker and have no gradient."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def with_linear_layers(model: M, part: str, make: Callable[[Float[Tensor, "out in"]], nn.Module]) -> M:
    """A copy whose linear layers inside `part` (empty: all of it) are `make` of their weights (out, in).

    Adapters of peft stay beside them as they are, at work or not. All other weights are shared. Layers have to be
    without bias. The copy does not follow the weights of these layers: it is made anew.
    """
    copy = deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    _exchange(copy.get_submodule(part), make)
    return copy


def _exchange(parent: nn.Module, make: Callable[[Tensor], nn.Module]) -> None:
    for name, layer in list(parent.named_children()):
        if isinstance(layer, nn.Linear):
            assert layer.bias is None, "a layer with a bias"
            setattr(parent, name, make(layer.weight.detach()))
        elif name not in ("lora_A", "lora_B"):
            _exchange(layer, make)


class CastLinear(nn.Module):
    """x W^T of weights (out, in) that have been cast once: autocast inside a compiled graph does so at every call."""

    def __init__(self, weight: Float[Tensor, "out in"], dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(dtype))
        self.weight: Tensor

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        return F.linear(x.to(self.weight.dtype), self.weight)


class PackedLinear(nn.Module):
    """x W^T of weights (out, in) that lie in memory as the processor's products read them.

    F.linear lays weights out so at every call, which is most of the time where rows are few. On one thread with
    AVX-512, 768 to 2048 inputs, a product takes this share of F.linear's time: 4 rows 0.5, 16 rows 0.6, 32 rows 0.7,
    512 rows 0.85; of a vocabulary of 16384 for 16 rows 0.45. Sums are those of float32 (or bfloat16) in another order.
    """

    def __init__(self, weight: Float[Tensor, "out in"], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), FEW_ROWS)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, None, "none", [], "")


FEW_ROWS = 16  # what packing is told to expect; other numbers of rows are as quick


def packed(model: M, dtype: torch.dtype, device: torch.device) -> M:
    """A copy to draw with, or the model itself where layers cannot be packed: on a GPU, by a torch without oneDNN.

    dtype  of the arithmetic, as autocast would have it
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return model
    return with_linear_layers(model, "", lambda weight: PackedLinear(weight, dtype))
