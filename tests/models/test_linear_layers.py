"""Layers that draw in place of others: the same products, of adapted weights too, in a copy of its own."""

import pytest
import torch
from torch import nn

from burnish.models.linear_layers import PackedLinear, packed, with_linear_layers
from burnish.models.lora import Lora, adapt, adapters_off

CPU = torch.device("cpu")
packs = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is without oneDNN")


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(40, 24, bias=False), nn.LayerNorm(24))
        self.head = nn.Linear(24, 7, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


@packs
@pytest.mark.parametrize("shape", [(1, 40), (0, 40), (33, 40), (2, 3, 40)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_a_packed_product_is_the_product(shape, dtype, close):
    torch.manual_seed(0)
    weight, x = torch.randn(24, 40) / 40**0.5, torch.randn(shape)
    y = PackedLinear(weight, dtype)(x)
    assert y.dtype == dtype and y.shape == (*shape[:-1], 24)
    torch.testing.assert_close(y.double(), x.double() @ weight.double().t(), rtol=close, atol=close)


@packs
def test_a_packed_copy_draws_as_the_model_does_and_leaves_it_be():
    torch.manual_seed(0)
    model, x = Two(), torch.randn(5, 40)
    copy = packed(model, torch.float32, CPU)
    torch.testing.assert_close(copy(x), model(x), rtol=1e-5, atol=1e-6)
    assert isinstance(copy.head, PackedLinear) and isinstance(model.head, nn.Linear)
    assert copy.body[1].weight is model.body[1].weight
    with torch.no_grad():
        model.head.weight.zero_()
    assert copy(x).abs().max() > 0.1, "made of the weights as they were"


@packs
def test_adapters_are_in_what_is_packed_only_while_they_are_at_work():
    torch.manual_seed(0)
    model, x = Two(), torch.randn(5, 40)
    adapt(model, Lora(rank=2), ("head",))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    adapted = packed(model, torch.float32, CPU)
    assert isinstance(adapted.head.base_layer, PackedLinear)
    assert adapted.head.lora_A["default"].weight is model.head.lora_A["default"].weight
    with adapters_off(model):
        plain = packed(model, torch.float32, CPU)
        torch.testing.assert_close(plain(x), model(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adapted(x), model(x), rtol=1e-5, atol=1e-5)
    assert (adapted(x) - plain(x)).abs().max() > 0.1


def test_nothing_is_packed_for_another_device():
    model = Two()
    assert packed(model, torch.float32, torch.device("cuda")) is model


def test_layers_outside_of_the_part_are_shared():
    model = Two()
    copy = with_linear_layers(model, "body", lambda weight: nn.Identity())
    assert isinstance(copy.body[0], nn.Identity) and copy.head.weight is model.head.weight


def test_a_layer_is_made_once():
    model, made = Two(), []
    adapt(model, Lora(rank=2), ("head",))
    with_linear_layers(model, "", lambda weight: made.append(weight.shape) or nn.Identity())
    assert made == [(24, 40), (7, 24)]


def test_a_layer_with_a_bias_is_refused():
    with pytest.raises(AssertionError, match="bias"):
        with_linear_layers(nn.Sequential(nn.Linear(2, 2)), "", nn.Identity)
