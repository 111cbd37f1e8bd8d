"""Adapters: which layers get one, and that the others stay as they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from burnish.models.lora import Lora, adapt


def network() -> nn.Module:
    return nn.ModuleDict({name: nn.Linear(3, 3) for name in ("first", "second")} | {"norm": nn.LayerNorm(3)})


def adapted(module: nn.Module) -> set[str]:
    return {name.split(".")[0] for name, weight in module.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(("named", "expected"), [((), {"first"}), (("second",), {"second"})])
def test_named_layers_take_the_place_of_the_usual_ones(named: tuple[str, ...], expected: set[str]) -> None:
    module = network()
    adapt(module, Lora(rank=2, alpha=2, layers=named), ("first",))
    assert adapted(module) == expected
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    assert all("lora_" in name for name in trained) and len(trained) == 2


@pytest.mark.parametrize("name", ["third", "norm"])
def test_layers_that_cannot_be_adapted_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=rf"(?i)lora\.layers: .*{'third' if name == 'third' else 'LayerNorm'}"):
        adapt(network(), Lora(layers=(name,)), ("first",))


def test_the_network_is_unchanged_until_it_is_trained() -> None:
    module, x = network(), torch.randn(4, 3)
    before = module["first"](x), module["second"](x)  # pyright: ignore[reportIndexIssue]
    adapt(module, Lora(rank=2, alpha=2), ("first", "second"))
    after = module["first"](x), module["second"](x)  # pyright: ignore[reportIndexIssue]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
