"""Copies of a network that only draw: other linear layers stand in them, which are quicker and have no gradient."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def with_linear_layers(model: M, part: str, make: Callable[[Float[Tensor, "out in"]], nn.Module]) -> M:
    """A copy whose linear layers inside `part` (empty: all of it) are `make` of their weights (out, in).

    Adapters of peft are added to the weights if these are at work. All other weights are shared. Layers have to be
    without bias. The copy does not follow the weights of these layers: it is made anew.
    """
    copy = deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    for parent in list(copy.get_submodule(part).modules()):
        for name, layer in list(parent.named_children()):
            weight = _weight(layer)
            if weight is not None:
                setattr(parent, name, make(weight))
    return copy


def _weight(layer: Any) -> Tensor | None:
    """The weights of a linear layer, adapted or not, and None of any other."""
    if not isinstance(base := getattr(layer, "base_layer", layer), nn.Linear):
        return None
    assert base.bias is None, "a layer with a bias"
    weight = base.weight.detach()
    if base is not layer and not layer.disable_adapters:
        weight = sum((layer.get_delta_weight(name) for name in layer.active_adapters), weight)
    return weight


class PackedLinear(nn.Module):
    """x W^T of weights (out, in) that lie in memory as the processor's products read them.

    F.linear lays weights out so at every call, which is most of the time where rows are few. On one thread with
    AVX-512, 768 to 2048 inputs, a product takes this share of F.linear's time: 4 rows 0.5, 16 rows 0.6, 32 rows 0.7,
    512 rows 0.85; of a vocabulary of 16384 for 16 rows 0.45. Sums are those of float32 (or bfloat16) in another order.
    """

    def __init__(self, weight: Float[Tensor, "out in"], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), FEW_ROWS)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, None, "none", [], "")


FEW_ROWS = 16  # what packing is told to expect; other numbers of rows are as quick


def packed(model: M, dtype: torch.dtype, device: torch.device) -> M:
    """A copy to draw with, or the model itself where there is nothing to gain: products of a GPU, torch without oneDNN.

    dtype  of the arithmetic, as autocast would have it
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return model
    return with_linear_layers(model, "", lambda weight: PackedLinear(weight, dtype))
