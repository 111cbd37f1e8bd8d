"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), by peft: put into a network, and added into its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Lora:
    """Adapters in place of all weights."""

    rank: int = 16  # of each update
    alpha: int = 32  # the update is scaled by alpha / rank
    layers: tuple[str, ...] = ()  # which get one: those whose names end so; none named: those the policy's papers adapt

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1:
            raise ValueError(f"lora: rank and alpha must be at least 1, got {self.rank} and {self.alpha}")


def adapt(
    module: nn.Module, lora: Lora, layers: Sequence[str], start: Literal["kaiming", "gaussian"] = "kaiming"
) -> None:
    """Put adapters on the layers whose names end so, or on those that `lora` names, and freeze everything else.

    Raises ValueError if there is no such layer, or if one cannot be adapted.

    start  of the first factor: peft's own, or N(0, 1 / rank) as diffusers' training scripts have it. The second is 0,
           so that the network is unchanged until it is trained
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.layers or layers),
        init_lora_weights=True if start == "kaiming" else "gaussian",
    )
    try:
        inject_adapter_in_model(config, module)
    except ValueError as problem:
        raise ValueError(f"lora.layers: {problem}") from problem
    for weight in module.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # beside frozen weights in bfloat16, adapters are float32 all the same


def _adapted(module: nn.Module) -> list[Any]:
    """The layers of a module that have peft adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]


def adapters_at_work(module: nn.Module) -> bool:
    """Whether the peft adapters of a module have not been switched off."""
    return not any(layer.disable_adapters for layer in _adapted(module))


@contextmanager
def adapters_off(module: nn.Module) -> Iterator[None]:
    """A block in which the peft adapters of a module do nothing."""
    layers = _adapted(module)
    frozen = [weight for layer in layers for weight in layer.parameters() if not weight.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)  # which asks for gradients of all of them
        for weight in frozen:
            weight.requires_grad_(False)


def merged(module: M) -> M:
    """A copy, with its adapters added into the weights, under the names the weights had before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    whole = deepcopy(module)
    for parent in list(whole.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BaseTunerLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())
    return whole
