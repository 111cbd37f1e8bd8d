"""Products of eight-bit numbers: by hand, within their bound, and row by row."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from burnish.models.eight_bits import Int8Linear, in_eight_bits, rounded


def test_levels_by_hand():
    """The largest of a row is 127 steps; the others are the nearest number of them."""
    levels, scale = rounded(torch.tensor([[1.0, -2.54, 0.009], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(scale[0], torch.tensor([0.02]))
    assert levels.tolist() == [[50, -127, 0], [0, 0, 0]]


def test_a_product_by_hand():
    layer = Int8Linear(torch.tensor([[127.0, 2.0], [0.0, -1.27]]))
    x = torch.tensor([[1.27, 0.64]])  # 127 and 64 steps of 0.01
    torch.testing.assert_close(layer(x), torch.tensor([[127 * 1.27 + 2 * 0.64, -1.27 * 0.64]]))


@pytest.mark.parametrize("shape", [(1, 8), (40, 8), (2, 3, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_is_within_the_bound_of_the_steps(shape, dtype):
    """Both factors are off by half a step at most: |error| <= sum |x| s_w / 2 + |w| s_x / 2 + s_x s_w / 4."""
    torch.manual_seed(0)
    weight, x = torch.randn(6, 8), torch.randn(shape).to(dtype)
    y = Int8Linear(weight)(x)
    steps_w, steps_x = (part.abs().amax(-1) / 127 for part in (weight, x.float()))
    bound = x.float().abs().sum(-1, keepdim=True) * steps_w / 2 + steps_x.unsqueeze(-1) * weight.abs().sum(1) / 2
    bound = bound + 8 * steps_x.unsqueeze(-1) * steps_w / 4
    exact = x.float() @ weight.t()
    assert y.dtype == dtype and y.shape == exact.shape
    slack = exact.abs() * 2**-8 if dtype == torch.bfloat16 else 1e-6
    assert bool(((y.float() - exact).abs() <= bound + slack).all())
    assert (y.float() - exact).abs().max() > 1e-4  # rounded it is


def test_a_row_does_not_depend_on_others():
    torch.manual_seed(0)
    layer, x = Int8Linear(torch.randn(16, 64)), torch.randn(33, 64)
    x[7] *= 1000
    assert torch.equal(layer(x)[20:], layer(x[20:]))


def test_only_linear_layers_of_the_part_are_rounded():
    model = nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(4)), "head": nn.Linear(4, 2)}
    )
    copy = in_eight_bits(model, "body")
    assert isinstance(copy["body"][0], Int8Linear) and isinstance(model["body"][0], nn.Linear)
    assert copy["head"].weight is model["head"].weight and copy["body"][1].weight is model["body"][1].weight


def test_sums_are_whole_without_the_processors_own():
    """oneDNN held to AVX2 adds pairs in 16 bits and cuts them off: products are then made otherwise, and the same."""
    code = (
        "import torch; from burnish.models.eight_bits import Int8Linear, _sums_are_whole;"
        "torch.manual_seed(0); layer = Int8Linear(torch.rand(8, 3000));"
        "print(_sums_are_whole(torch.device('cpu')), layer(torch.rand(3, 3000)).sum(dtype=torch.float64).item())"
    )
    told = []
    for kept in ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, {}):
        ran = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **kept}, capture_output=True, text=True, check=True
        )
        told.append(ran.stdout.split())
    assert told[0][1] == told[1][1]
    if platform.machine() == "x86_64":
        assert told[0][0] == "False"
